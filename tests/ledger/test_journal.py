"""The journal: what is appended is read back, also after a write that failed."""

from __future__ import annotations

import pytest

from packshot.core.errors import LedgerUnavailable
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
