"""From the body of a request to the picture in it: forms and raw bodies, limits, and decoding."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import Field

    from trio_runner.embedded.detector import Image

PICTURE_FIELDS: Final = (b"frame", b"file", b"image")
MAX_BODY_BYTES: Final = 32 * 1024**2
MAX_PIXELS: Final = 64 * 1024**2
EXPECTED: Final = "expected one encoded picture (JPEG, PNG, WebP, BMP or TIFF)"


class RequestError(Exception):
    """A request that cannot be answered: the HTTP status, and a sentence for the client."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def find_picture(content_type: bytes, body: bytes) -> bytes:
    """Return the bytes of the picture in a request's body: those of the form's field, or the whole of it.

    Raises:
        RequestError: 400: nothing there, or a form that is broken or lacks the field.
    """
    kind, options = parse_options_header(content_type)
    if not body:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is empty; {EXPECTED}")
    if kind != b"multipart/form-data":
        return body
    fields = read_form(options.get(b"boundary", b""), body)
    for name in PICTURE_FIELDS:
        if fields.get(name):
            return fields[name]
    wanted = ", ".join(repr(name.decode()) for name in PICTURE_FIELDS)
    there = ", ".join(repr(name.decode(errors="replace")) for name in fields) or "none"
    missing = f"no picture in the form (fields there: {there}); {EXPECTED} in one of the fields {wanted}"
    raise RequestError(HTTPStatus.BAD_REQUEST, missing)


def read_form(boundary: bytes, body: bytes) -> dict[bytes, bytes]:
    """Split a multipart form into its fields.

    Raises:
        RequestError: 400: it is not a well-formed one.
    """
    fields: dict[bytes, bytes] = {}
    whole = False

    def keep(part: Field | File) -> None:
        if isinstance(part, File):
            part.file_object.seek(0)
            fields[part.field_name or b""] = part.file_object.read()
        else:
            fields[part.field_name or b""] = part.value or b""

    def end() -> None:
        nonlocal whole
        whole = True

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": MAX_BODY_BYTES}
        form = FormParser("multipart/form-data", keep, keep, end, boundary=boundary, config=in_memory)
        form.write(body)
    except FormParserError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the multipart form is broken: {error}") from error
    if not whole:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the multipart form is broken: it lacks its closing boundary")
    return fields


def read_picture(encoded: bytes) -> Image:
    """Decode a picture to height x width x 3 bytes (blue, green, red).

    Raises:
        RequestError: 400: no picture, or one of more than `MAX_PIXELS` pixels.
    """
    import cv2
    import numpy as np

    try:
        # OpenCV has an error for an empty buffer, and no other for too many pixels.
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR) if encoded else None
    except cv2.error as error:
        too_big = f"the picture has more than {MAX_PIXELS} pixels; {EXPECTED} of no more than that"
        raise RequestError(HTTPStatus.BAD_REQUEST, too_big) from error
    if image is None:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the {len(encoded)} bytes are not a picture; {EXPECTED}")
    return cast("Image", image)
