"""What a caller says to the gateway of a call: which headers there are, and their other place.

A client that adds no headers says it in the body's metadata:
``metadata: {"packshot_timeout_ms": "800"}`` says what the header ``x-packshot-timeout-ms: 800``
does, and so for each of `HEADERS`. Such members are for the gateway alone: they are taken out.
"""

from __future__ import annotations

import msgspec

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.providers.base import Fields

__all__ = ["HEADERS", "said_in"]

PREFIX = "packshot_"
HEADERS = {
    PREFIX + name: b"x-packshot-" + name.replace("_", "-").encode()
    for name in (
        "route", "target", "timeout_ms", "tags", "session", "render", "recipe", "batch", "stage",
        "cache",
    )
}  # fmt: skip
"""Members of the metadata, and the headers that say the same."""

MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
TEXT = msgspec.json.Decoder(str)


def said_in(fields: Fields) -> dict[bytes, bytes]:
    """Return what a body's metadata says, as headers; it is no longer in ``fields`` then.

    Raises:
        InvalidRequest: a member that begins with ``packshot_`` is none of `HEADERS`, or no text.
    """
    metadata = fields["metadata"]
    if PREFIX.encode() not in bytes(metadata):
        return {}
    try:
        members = MEMBERS.decode(metadata)
    except (msgspec.MsgspecError, RecursionError):
        return {}  # no object: the provider says so better
    said: dict[bytes, bytes] = {}
    for member in [name for name in members if name.startswith(PREFIX)]:
        if member not in HEADERS:
            raise unknown_name("member of metadata", member[:200], HEADERS)
        said[HEADERS[member]] = _text(member, members.pop(member))
    if members:
        fields["metadata"] = msgspec.Raw(msgspec.json.encode(members))
    else:
        del fields["metadata"]
    return said


def _text(member: str, raw: msgspec.Raw) -> bytes:
    try:
        return TEXT.decode(raw).encode("ascii")
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"metadata.{member} is text in ASCII, as its header is") from error
