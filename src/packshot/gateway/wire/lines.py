"""Header lines: one block of bytes, each line ended by CRLF, as they go over the wire."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["lines_of", "pairs_of"]


def lines_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as whole lines.

    Raises:
        RuntimeError: one holds what would break out of its line.
    """
    given = list(headers)
    lines = b"".join([b"%b: %b\r\n" % (name, value) for name, value in given])
    count = len(given)
    if lines.count(b"\n") != count or lines.count(b"\r") != count or b"\0" in lines:
        raise RuntimeError("a header of the response holds a line's end or a NUL")
    return lines


def pairs_of(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Return what `lines_of` made into a block."""
    parts = [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]
    return [(name, value) for name, _, value in parts]
