"""Heads that come again: a client's calls have the same head, but for their content-length.

The official SDKs and most other clients send, on a connection that is kept, the same bytes before
each body. `head_of` cuts a head that llhttp has read, and that was accepted, at the value of its
content-length; `Head.length` tells whether a segment begins with the same bytes around another
length. Such a request is known already: it needs neither llhttp, whose state stays that between two
messages, nor the checks that its like has passed.

What counts as the same is narrow, so that nothing can be read in two ways: every byte of the
head, as llhttp saw it at the beginning of a message; a length in plain digits, without zeros
ahead; and no head that does more than to announce a body. All else goes to llhttp. A head is never
kept for another connection: it has a secret in it, and how long it takes to find a difference would
tell a stranger how much of it they have guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["LONGEST", "Head", "head_of"]

LONGEST = 4096
"""Bytes of a head that is kept; a connection keeps one."""

DIGITS = 9
"""Of a content-length; a body of a gigabyte goes the ordinary way."""

LENGTH = b"content-length"

UNUSUAL = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"trailer"})
"""Where one of these is among the headers, the head is not kept."""


class Head:
    """A head that was accepted, in two pieces: before and after the value of its content-length."""

    __slots__ = ("after", "before", "digest", "headers", "method", "start", "target")

    def __init__(
        self,
        before: bytes,
        after: bytes,
        method: bytes,
        target: bytes,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self.before = before
        self.after = after
        self.method = method
        self.target = target
        self.headers = headers
        """As they came last; they are the request's, so nobody changes them."""
        self.start = 0
        """Where the body of the last request that `length` found begins in its segment."""
        self.digest: bytes | None = None
        """What the application finds the caller by: the head's secret does not change."""

    def length(self, data: bytes) -> int:
        """Return the content-length of the request that begins ``data``, and have its ``headers``
        and ``start`` here; -1 where it does not begin with this head.
        """
        before, headers = self.before, self.headers
        begin = len(before)
        end = data.find(b"\r", begin, begin + DIGITS + 1)
        if end < 0 or not (data.startswith(before) and data.startswith(self.after, end)):
            return -1
        digits = data[begin:end]
        if digits != headers[LENGTH]:
            if not is_plain(digits):
                return -1
            self.headers = {**headers, LENGTH: digits}
        self.start = end + len(self.after)
        return int(digits)


def head_of(
    data: bytes, method: bytes, target: bytes, headers: Mapping[bytes, bytes], most: int
) -> Head | None:
    """Return the head, read as these parts, that ``data`` begins with; None where it is not kept.

    ``headers`` have lower-case names, none of which came twice; heads may have ``most`` bytes. The
    head is written anew from these parts, and must be what came: then no other reading of its bytes
    is possible.
    """
    digits = headers.get(LENGTH, b"")
    if not UNUSUAL.isdisjoint(headers) or not is_plain(digits):
        return None
    lines = b"".join([b"%b: %b\r\n" % line for line in headers.items()])
    whole = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines)
    size = len(whole)
    if size > min(LONGEST, most - DIGITS) or data[:size].lower() != whole.lower():
        return None
    begin = whole.index(b"\r\n%b: " % LENGTH) + len(LENGTH) + 4
    return Head(data[:begin], data[begin + len(digits) : size], method, target, headers)


def is_plain(digits: bytes) -> bool:
    """Tell whether this is a content-length as nearly everybody writes it."""
    return digits.isdigit() and len(digits) <= DIGITS and (digits[:1] != b"0" or len(digits) == 1)
