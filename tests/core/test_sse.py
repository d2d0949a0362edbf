"""Server-sent events: cut and read as the HTML standard says, in whatever pieces they come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from packshot.core.errors import UpstreamBroken
from packshot.core.sse import Event, Splitter, encode, parse

ALPHABET = [b"\n", b"\r", b"\r\n", b"\n\n", b"data", b"event", b"id", b"retry", b":", b" ", b"x"]
STREAMS = st.lists(st.sampled_from([*ALPHABET, b"data: ", "é".encode(), b"\x00"]), max_size=40).map(
    b"".join
)


def standard(stream: bytes) -> list[Event]:
    """Read a whole stream line by line, as §9.2.6 of the HTML standard tells it."""
    lines: list[bytes] = []
    line = bytearray()
    at = 0
    while at < len(stream):
        if stream[at : at + 2] == b"\r\n":
            at += 1
        if stream[at : at + 1] in {b"\n", b"\r"}:
            lines.append(bytes(line))
            line.clear()
        else:
            line += stream[at : at + 1]
        at += 1
    found: list[Event] = []
    data, name = b"", b""
    for row in lines:
        if not row:
            if data:
                found.append(Event(name.decode(errors="replace"), data[:-1]))
            data, name = b"", b""
            continue
        field, _, value = row.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data += value + b"\n"
        elif field == b"event":
            name = value
    return found


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@given(STREAMS)
@example(b"data: a\n\n\ndata: b\n\n")
@example(b"event: x\n\ndata: b\r\n\r\n")
@example(b"data\n\ndata:\n\n")
def test_events_are_read_as_the_standard_says(stream: bytes) -> None:
    assert parse(stream) == standard(stream)


@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [10])
@example(b"data: a\n\ndata: b\n\n", [8])
def test_pieces_come_out_as_whole_events_and_nothing_is_lost(
    stream: bytes, cuts: list[int]
) -> None:
    splitter = Splitter()
    out = [splitter.feed(part) for part in pieces(stream, cuts)]
    assert b"".join(out) + bytes(splitter.rest) == stream
    assert [event for part in out for event in parse(part)] == standard(stream)
    # What is kept holds no event that has ended: nothing waits that could go.
    assert not standard(bytes(splitter.rest))


@given(STREAMS)
def test_byte_by_byte_is_the_same_as_in_one_piece(stream: bytes) -> None:
    splitter = Splitter()
    assert [e for at in range(len(stream)) for e in parse(splitter.feed(stream[at : at + 1]))] == (
        standard(stream)
    )


@given(st.binary(max_size=50), st.sampled_from(["", "message_stop", "é"]))
def test_what_is_encoded_is_read_again(data: bytes, name: str) -> None:
    data = data.replace(b"\r", b"")
    assert parse(encode(data, name)) == [Event(name, data)]


def test_a_line_break_in_data_starts_another_data_line() -> None:
    assert encode(b"a\r\nb\rc\nd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"


def test_a_line_break_in_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="one line"):
        encode(b"x", "a\ndata: forged")


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert parse(b"\xef\xbb\xbfdata: a\n\n") == [Event("", b"a")]


def test_an_event_without_an_end_is_refused_at_the_limit() -> None:
    splitter = Splitter(limit=10)
    assert splitter.feed(b"data: 1234") == b""
    with pytest.raises(UpstreamBroken, match="more than 10 bytes") as caught:
        splitter.feed(b"5")
    assert caught.value.sent
    assert caught.value.began


def test_a_whole_event_leaves_as_the_very_bytes_that_came() -> None:
    part = b"data: {}\n\n"
    assert Splitter().feed(part) is part
