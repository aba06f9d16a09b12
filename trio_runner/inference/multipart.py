"""The body of a form with one picture, in pieces around the picture, which is not copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


def form(
    boundary: str, field: str, picture: bytes, fields: Mapping[str, str] | None = None
) -> tuple[str, tuple[bytes, ...]]:
    """The Content-Type and the body of a form with the JPEG in `field` and the texts in `fields` (RFC 7578).

    Args:
        boundary: Separates the parts; it must not occur in any of them.
        field: The name of the picture's field.
        picture: A JPEG.
        fields: Further fields by their names, before the picture.
    """
    texts = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name.translate(_ESCAPES)}"\r\n\r\n{text}\r\n'
        for name, text in (fields or {}).items()
    )
    head = (
        f'{texts}--{boundary}\r\nContent-Disposition: form-data; name="{field.translate(_ESCAPES)}"; '
        'filename="frame.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return f"multipart/form-data; boundary={boundary}", (head.encode(), picture, f"\r\n--{boundary}--\r\n".encode())
