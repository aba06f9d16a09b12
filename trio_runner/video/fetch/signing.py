"""AWS Signature Version 4 for a GET of S3, in the `Authorization` header; no network.

The signature is a page of HMAC with published test vectors. The libraries that make it are botocore, with the
descriptions of all of AWS, and clients with a transport of their own, which follows redirects to any address.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from trio_runner.video.fetch.messages import Credentials

_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


def encoded_path(key: str) -> str:
    """The path of an object as S3 signs it, each byte but letters, digits and - _ . ~ / percent-encoded."""
    return quote(key, safe="/-_.~")


def signed_headers(
    headers: Mapping[str, str], path: str, query: str, credentials: Credentials, *, region: str, now: datetime
) -> dict[str, str]:
    """`headers` and those that authorise a GET with them.

    Args:
        headers: By their names in small letters, `host` among them; all of them are signed.
        path: Percent-encoded.
        query: As it is sent: `name=value` pairs, percent-encoded, in the order of their names.
        credentials: Whose request this is.
        region: The region that the endpoint belongs to.
        now: In UTC. S3 refuses a request whose time is 15 minutes off.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": stamp}
    if credentials.session_token:
        signed["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in sorted(signed))
    request = f"GET\n{path}\n{query}\n{lines}\n{names}\n{_EMPTY_SHA256}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope},SignedHeaders={names},"
        f"Signature={_hmac(key, text).hex()}"
    )
    return {**signed, "authorization": authorization}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
