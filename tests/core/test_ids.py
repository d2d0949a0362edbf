"""Ids: UUIDv7, never twice, in order of time, and not shared with a forked child."""

from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from packshot.core import ids
from packshot.core.ids import new_id


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    parsed = [uuid.UUID(hex=new_id()) for _ in range(3 * ids.BATCH)]
    after = time.time_ns() // 1_000_000
    assert {one.variant for one in parsed} == {uuid.RFC_4122}
    assert {one.version for one in parsed} == {7}
    assert all(before <= one.int >> 80 <= after for one in parsed)


def test_ids_sort_by_time() -> None:
    first = new_id()
    time.sleep(0.002)
    assert first < new_id()


def test_threads_never_get_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda _: [new_id() for _ in range(2000)], range(8)))
    made = [one for part in parts for one in part]
    assert len(set(made)) == len(made)


def test_every_random_bit_varies() -> None:
    values = [int(new_id(), 16) for _ in range(2000)]
    fixed = 0xF << 76 | 0b11 << 62
    free = ((1 << 80) - 1) & ~fixed
    ones, zeros = 0, free
    for value in values:
        ones |= value & free
        zeros &= value
    assert ones == free
    assert zeros == 0


def test_a_forked_child_draws_its_own() -> None:
    while not ids.tails:  # the last of a batch leaves none, one time in 256
        new_id()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "".join(new_id()[12:] for _ in range(50)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(read, 4096).decode()
    os.close(read)
    os.close(write)
    theirs = {text[at : at + 20] for at in range(0, len(text), 20)}
    assert len(theirs) == 50
    assert theirs.isdisjoint(new_id()[12:] for _ in range(2 * ids.BATCH))
