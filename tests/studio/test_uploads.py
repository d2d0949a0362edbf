"""Uploads beside the work: bounded, in no order, and nothing of them is lost or hidden."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from packshot.core.errors import OutputError
from packshot.studio.objects import Objects
from packshot.studio.recipes.step import Kept
from packshot.studio.uploads import Uploader


class Gate:
    """A store whose writes wait until they are let through; some fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.began = threading.Semaphore(0)
        self.bad: set[bytes] = set()
        self.put_: list[bytes] = []

    def put(self, data: bytes, name: str, /) -> Kept:
        self.began.release()
        assert self.open.wait(30)
        if data in self.bad:
            raise OutputError(f"{name} could not be written")
        self.put_.append(data)
        return Kept(name, "", len(data), requests=1)


def test_files_arrive_under_the_key_that_was_said(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path))
    with Uploader(objects) as uploads:
        handed = [uploads.put(f"file {k}".encode(), "x.png") for k in range(30)]
        stored = [uploads.done(kept) for kept in handed]
    assert [kept.key for kept in stored] == [kept.key for kept in handed]
    assert all(kept.new for kept in stored)
    assert objects.read(handed[7].key) == b"file 7"


def test_put_comes_back_before_the_file_is_stored_and_waits_where_too_many_do() -> None:
    gate = Gate()
    with Uploader(gate, depth=2, threads=1) as uploads:
        first = uploads.put(b"1", "1.png")
        uploads.put(b"2", "2.png")
        assert not uploads.is_done(first)
        third = threading.Thread(target=uploads.put, args=(b"3", "3.png"))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        gate.open.set()
        third.join(30)
        assert not third.is_alive()
    assert gate.put_ == [b"1", b"2", b"3"]


def test_an_error_is_that_of_its_file_and_it_may_be_tried_again() -> None:
    gate = Gate()
    gate.open.set()
    gate.bad = {b"2"}
    with Uploader(gate) as uploads:
        good, bad = uploads.put(b"1", "1.png"), uploads.put(b"2", "2.png")
        assert uploads.done(good).requests == 1
        with pytest.raises(OutputError, match=r"2\.png could not be written"):
            uploads.done(bad)
        gate.bad = set()
        assert uploads.done(uploads.put(b"2", "2.png")).requests == 1


def test_an_error_that_nobody_asked_for_comes_out_in_the_end() -> None:
    gate = Gate()
    gate.open.set()
    gate.bad = {b"2"}
    uploads = Uploader(gate)
    uploads.put(b"2", "2.png")
    with pytest.raises(OutputError, match=r"2\.png could not be written"):
        uploads.close()


def test_the_same_content_twice_is_one_upload() -> None:
    gate = Gate()
    with Uploader(gate) as uploads:
        one, two = uploads.put(b"1", "1.png"), uploads.put(b"1", "1.png")
        gate.open.set()
        assert uploads.done(one) == uploads.done(two)
    assert gate.put_ == [b"1"]


def test_who_asked_to_be_told_is_told() -> None:
    gate = Gate()
    told = threading.Event()
    with Uploader(gate) as uploads:
        kept = uploads.put(b"1", "1.png", then=told.set)
        assert not told.is_set()
        gate.open.set()
        assert told.wait(30)
        assert uploads.is_done(kept)


def test_after_an_error_only_what_is_under_way_is_finished() -> None:
    gate = Gate()
    uploads = Uploader(gate, threads=1)
    uploads.put(b"1", "1.png")
    second = uploads.put(b"2", "2.png")
    gate.began.acquire()
    leaving = threading.Thread(target=uploads.__exit__, args=(KeyboardInterrupt, OSError(), None))
    leaving.start()
    while not uploads.is_done(second):
        leaving.join(0.01)
    assert leaving.is_alive()
    gate.open.set()
    leaving.join(30)
    assert gate.put_ == [b"1"]
