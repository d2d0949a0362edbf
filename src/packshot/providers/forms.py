"""Forms (``multipart/form-data``), for the APIs of pictures that take nothing else.

Source: RFC 7578. The boundary is drawn once in each process: nobody outside can know it, so no text
and no file of a caller's can end a part early.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

__all__ = ["CONTENT_TYPE", "form"]

BOUNDARY = f"packshot-{secrets.token_hex(24)}"

CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
"""What a call with a form says of its body."""


def form(texts: Mapping[str, str], files: Mapping[str, tuple[bytes, str]]) -> bytes:
    """Return a form's body: ``texts`` by name, and ``files`` (bytes and media type) by name.

    Names are ours, never a caller's: they are written as they are.
    """
    parts: list[bytes] = []
    for name, text in texts.items():
        head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'
        parts += [head.encode("ascii"), text.encode(), b"\r\n"]
    for name, (data, kind) in files.items():
        head = (
            f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"; filename="{name}"\r\n'
            f"content-type: {kind}\r\n\r\n"
        )
        parts += [head.encode("ascii"), data, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode("ascii")])
