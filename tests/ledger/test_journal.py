"""The journal: what is appended is read back, also after a write that failed."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.frames import HEADER, scan
from packshot.ledger.journal import Journal, RealFiles, read_journals
from packshot.ledger.records import Dispatched


class FullDisk(RealFiles):
    full = False

    def write(self, descriptor, data):
        return RealFiles.write(descriptor, data[:5] if self.full else data)


def test_events_come_back_in_order_over_segments(tmp_path):
    journal = Journal(tmp_path, "w", segment_bytes=100)
    events = [Dispatched(f"a{i}", i) for i in range(20)]
    assert [journal.append(event) for event in events] == list(range(1, 21))
    journal.wait(20)
    journal.close()
    assert [row.event for row in read_journals(tmp_path)] == events
    assert len(list(tmp_path.glob("w/*.journal"))) > 1


def test_a_full_disk_leaves_nothing_behind_and_work_resumes(tmp_path):
    disk = FullDisk()
    journal = Journal(tmp_path, "w", files=disk)
    journal.append(Dispatched("a", 1))
    disk.full = True
    with pytest.raises(LedgerUnavailable, match="part of a record"):
        journal.append(Dispatched("b", 2))
    disk.full = False
    assert journal.append(Dispatched("c", 3)) == 2
    journal.close()
    assert [row.event.attempt for row in read_journals(tmp_path)] == ["a", "c"]


class FailingDisk(RealFiles):
    """Syncs fail while ``failing`` is one of "file", "folder"; each try is counted."""

    def __init__(self):
        self.failing, self.tries = "", 0

    def sync(self, descriptor):
        self.tries += 1
        if self.failing == "file":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(descriptor)

    def sync_folder(self, path):
        if self.failing == "folder":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        RealFiles.sync_folder(path)


def test_after_a_failed_sync_nothing_is_taken_until_the_restart(tmp_path):
    disk = FailingDisk()
    journal = Journal(tmp_path, "w", durability="power", files=disk)
    journal.wait(journal.append(Dispatched("a", 1)))
    disk.failing, tries = "file", disk.tries
    with pytest.raises(LedgerUnavailable, match=r"cannot be synced.*restart"):
        journal.wait(journal.append(Dispatched("b", 2)))
    disk.failing = ""  # the next sync would succeed, and say nothing about the pages that are lost
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match="restart"):
            journal.append(Dispatched("c", 3))
        with pytest.raises(LedgerUnavailable, match="restart"):
            journal.wait(2)
    with pytest.raises(LedgerUnavailable, match="restart"):
        journal.close()
    assert disk.tries == tries + 1
    again = Journal(tmp_path, "w", durability="power", files=disk)
    again.wait(again.append(Dispatched("d", 4)))
    again.close()
    assert {row.event.attempt for row in read_journals(tmp_path)} >= {"a", "d"}


def test_a_folder_that_cannot_be_synced_ends_the_life(tmp_path):
    disk = FailingDisk()
    journal = Journal(tmp_path, "w", segment_bytes=10, files=disk)
    journal.append(Dispatched("a", 1))
    disk.failing = "folder"
    with pytest.raises(LedgerUnavailable):
        journal.append(Dispatched("b", 2))
    disk.failing = ""
    with pytest.raises(LedgerUnavailable, match=r"folder cannot be synced.*restart"):
        journal.append(Dispatched("c", 3))
    with pytest.raises(LedgerUnavailable):
        journal.close()
    again = Journal(tmp_path, "w", files=disk)
    again.append(Dispatched("d", 4))
    again.close()
    assert [row.event.attempt for row in read_journals(tmp_path)] == ["a", "d"]


def test_a_journal_that_could_not_be_begun_can_be_tried_again(tmp_path):
    disk = FailingDisk()
    for disk.failing in ("folder", "file"):
        with pytest.raises(LedgerUnavailable, match="cannot write the journal"):
            Journal(tmp_path, "w", files=disk)
    disk.failing = ""
    Journal(tmp_path, "w", files=disk).close()


def test_the_name_of_each_new_folder_is_synced(tmp_path):
    """Or a loss of power would take the folder, with all that was synced in it."""
    synced = []

    class Watched(RealFiles):
        def sync_folder(self, path):
            synced.append((path, sorted(each.name for each in path.iterdir())))
            RealFiles.sync_folder(path)

    Journal(tmp_path / "state" / "journal", "w", files=Watched()).close()
    assert synced[:3] == [
        (tmp_path, ["state"]),
        (tmp_path / "state", ["journal"]),
        (tmp_path / "state" / "journal", ["w"]),
    ]


class Moody(RealFiles):
    """A disk that takes each write, a part of it, or none; sometimes it cannot even be cut."""

    def __init__(self, moods):
        self.moods = iter(moods)
        self.mood = "good"

    def write(self, descriptor, data):
        self.mood = next(self.moods, "good")
        if self.mood == "good":
            return RealFiles.write(descriptor, data)
        if self.mood == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = RealFiles.write(descriptor, data[: len(data) // 2])
        if self.mood == "torn":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return taken

    def truncate(self, descriptor, size):
        if self.mood == "stuck":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(descriptor, size)


@settings(max_examples=150, deadline=None)
@given(
    moods=st.lists(
        st.sampled_from(["good", "good", "short", "full", "torn", "stuck"]), min_size=3, max_size=40
    ),
    segment=st.sampled_from([60, 1000]),
)
def test_what_was_taken_is_there_and_nothing_else(moods, segment):
    with tempfile.TemporaryDirectory() as folder:
        disk = Moody(["good", *moods])  # the first is the number of the life
        journal = Journal(Path(folder), "w", segment_bytes=segment, files=disk)
        taken, over = [], False
        for number in range(len(moods)):
            try:
                assert journal.append(Dispatched(f"a{number}", number)) == len(taken) + 1
            except LedgerUnavailable:
                over = over or disk.mood == "stuck"
            else:
                assert not over, "a life with a torn end takes nothing any more"
                taken.append(f"a{number}")
        if over:
            with pytest.raises(LedgerUnavailable):
                journal.close()
        else:
            journal.close()
        assert [row.event.attempt for row in read_journals(Path(folder))] == taken


LIMITED = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from packshot.core.errors import LedgerUnavailable
    from packshot.ledger.journal import Journal
    from packshot.ledger.records import Dispatched
    journal = Journal(Path(sys.argv[1]), "w")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    for number in range(1000):
        try:
            journal.append(Dispatched(f"a{number}", number))
        except LedgerUnavailable:
            break
        print(f"a{number}", flush=True)
    for _ in range(3):
        try:
            journal.append(Dispatched("refused " * 20, 1))
        except LedgerUnavailable:
            print("refused", file=sys.stderr, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    journal.append(Dispatched("room again", 1))
    print("room again", flush=True)
    journal.close()
""")


def test_a_file_that_the_kernel_lets_grow_no_more(tmp_path):
    """Not a mock: EFBIG behind a short write, by a limit that needs no rights."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    told = done.stdout.splitlines()
    assert done.stderr.splitlines() == ["refused"] * 3
    assert 10 < len(told) < 1000
    assert told[-1] == "room again"
    assert [row.event.attempt for row in read_journals(tmp_path)] == told


def test_frames_after_torn_ones_are_found(tmp_path):
    rng = random.Random(3)
    journal = Journal(tmp_path, "w")
    for number in range(60):
        journal.append(Dispatched(f"a{number}" * 30, number))
    journal.close()
    (file,) = tmp_path.glob("w/*.journal")
    whole = file.read_bytes()
    starts = [0]
    while starts[-1] < len(whole):
        (length, _) = HEADER.unpack_from(whole, starts[-1])
        starts.append(starts[-1] + HEADER.size + length)
    for _ in range(100):
        data = bytearray(whole)
        at = rng.randrange(0, len(data) - 512, 512)
        data[at : at + 512] = rng.choice((bytes(512), rng.randbytes(512)))
        hit = {
            number
            for number, (begin, end) in enumerate(pairwise(starts))
            if begin < at + 512 and end > at
        }
        found = scan(bytes(data), sealed=True)
        assert [seq - 1 for seq, _ in found.events] == [n for n in range(60) if n not in hit]
        assert found.damage or found.stuck
