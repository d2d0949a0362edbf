"""Limits that processes share: exact under four of them, whole after any of them is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from packshot.core.errors import OutputError
from packshot.state.limits import Ask, Rule
from packshot.state.shared import (
    HEADER,
    MARK,
    NAPS,
    PROBES,
    RECORD,
    RING,
    RING_SIZE,
    TOTAL,
    SharedLimits,
)
from tests.state.conftest import Clock

DAY = Rule(20_000, 86_400)

HAMMER = """
import sys
from pathlib import Path
from packshot.state.limits import Ask, Rule
from packshot.state.shared import SharedLimits
limits = SharedLimits(Path(sys.argv[1]))
asks = [Ask("requests", Rule(int(sys.argv[2]), 86_400)), Ask("tokens", Rule(10**12, 86_400), 3)]
print("ready", flush=True)
sys.stdin.readline()
taken = 0
while limits.take_now(asks) is None:
    taken += 1
print(taken)
"""


def hammer(path: Path, limit: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HAMMER, str(path), str(limit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_four_processes_admit_exactly_the_limit(tmp_path: Path) -> None:
    processes = [hammer(tmp_path / "limits", DAY.limit) for _ in range(4)]
    for process in processes:
        go(process)
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == DAY.limit
    limits = SharedLimits(tmp_path / "limits")
    assert limits.peek([Ask("requests", DAY)])[0].remaining == 0
    assert 10**12 - limits.peek([Ask("tokens", Rule(10**12, 86_400))])[0].remaining == 3 * DAY.limit
    limits.close()


def test_a_forked_child_has_a_lock_of_its_own(tmp_path: Path) -> None:
    """Both halves of a fork count against the object that was made before it."""
    # One after the other: two that print at once may print in one line.
    end = "if child: os.waitpid(child, 0)\nprint(taken, flush=True)"
    code = HAMMER.replace("print(taken)", end).replace('print("ready", flush=True)', "import os")
    code = code.replace("sys.stdin.readline()", "child = os.fork()")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "limits"), str(DAY.limit)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) == 2
    assert sum(counts) == DAY.limit


def test_workers_that_are_killed_leave_whole_sums_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    limits = SharedLimits(path)
    asks = [Ask("requests", Rule(10**9, 86_400)), Ask("tokens", Rule(10**12, 86_400), 3)]
    draw = random.Random(7)
    for _ in range(12):
        process = hammer(path, 10**9)
        go(process)
        threading.Event().wait(draw.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert limits.take_now(asks) is None
        used = [ask.rule.limit - limits.peek([Ask(ask.key, ask.rule)])[0].remaining for ask in asks]
        for ask, total in zip(asks, used, strict=True):
            record = limits._places[ask.key][0]
            assert sum(limits._words[record + RING : record + RING + RING_SIZE]) == total
        # A request that died between the two counts was never answered: it may count for one.
        assert 0 <= used[0] - used[1] // 3 <= 12
    assert used[0] > 100
    limits.close()


@pytest.mark.parametrize("torn", [TOTAL, RING])
def test_a_record_that_was_half_written_is_summed_anew(tmp_path: Path, torn: int) -> None:
    clock = Clock(0.0)
    limits = SharedLimits(tmp_path / "limits", clock)
    rule = Rule(10)
    assert limits.take_now([Ask("k", rule, 4)]) is None
    record = limits._places["k"][0]
    limits._words[record + MARK] = 1
    limits._words[record + torn] += 5  # one of the two words was written, the other not
    left = limits.peek([Ask("k", rule)])[0].remaining
    assert left == (6 if torn == TOTAL else 1)
    assert limits._words[record + MARK] == 0
    limits.close()


def test_keys_that_collide_have_records_of_their_own(tmp_path: Path) -> None:
    clock = Clock()
    limits = SharedLimits(tmp_path / "limits", clock, records=PROBES)
    other = SharedLimits(tmp_path / "limits", clock, records=PROBES)
    rule = Rule(5)
    for k in range(PROBES):
        assert limits.take_now([Ask(f"key {k}", rule, k % 5)]) is None
    for k in range(PROBES):
        assert other.peek([Ask(f"key {k}", rule)])[0].remaining == 5 - k % 5
    assert limits.evicted == 0
    clock.move(1)
    assert limits.take_now([Ask("key 0", rule, 0)]) is None  # used, though nothing was taken
    assert limits.take_now([Ask("one too many", rule, 5)]) is None
    assert limits.evicted == 1
    assert other.peek([Ask("one too many", rule)])[0].remaining == 0
    clock.move(62)
    for k in range(100, 100 + PROBES):
        assert other.take_now([Ask(f"key {k}", rule, 5)]) is None
    assert other.evicted == 0
    limits.close()
    other.close()


def test_what_was_counted_before_a_reboot_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot"
    boot.write_text("one")
    monkeypatch.setattr("packshot.state.shared.BOOT_ID", boot)
    rule = Rule(5)
    for boot_id, left in (("one", 5), ("one", 2), ("two", 5)):
        boot.write_text(boot_id)
        limits = SharedLimits(tmp_path / "limits", Clock())
        assert limits.peek([Ask("k", rule)])[0].remaining == left
        assert limits.take_now([Ask("k", rule, 3)]) is None or left < 3
        limits.close()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not limits, and precious")
    with pytest.raises(OutputError, match="no file of limits"):
        SharedLimits(path)
    assert path.read_text() == "not limits, and precious"
    with pytest.raises(OutputError, match="shared limits"):
        SharedLimits(tmp_path / "none" / "limits")


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    limits = SharedLimits(tmp_path / "limits", records=PROBES)
    assert (tmp_path / "limits").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "limits").stat().st_size == (HEADER + PROBES * RECORD) * 8
    limits.close()


HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_was_stopped_with_the_lock_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rule = tmp_path / "limits", Rule(10)
    limits = SharedLimits(path, Clock())
    asks = [Ask("k", rule, 4)]
    assert limits.take_now(asks) is None
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    naps: list[float] = []
    monkeypatch.setattr("packshot.state.shared.RETRY_S", 3600.0)
    monkeypatch.setattr("packshot.state.shared.time.sleep", naps.append)
    assert limits.take_now(asks) is None
    assert len(naps) == NAPS
    naps.clear()
    # Nobody waits again: the limit holds here alone, and what is given back is counted.
    assert limits.take_now(asks) is None
    assert limits.take_now(asks) is not None
    limits.give_back_now(asks)
    assert limits.peek([Ask("k", rule)])[0].remaining == 6
    assert naps == []
    assert limits.alone == 5
    holder.kill()
    holder.communicate(timeout=30)
    assert limits.peek([Ask("k", rule)])[0].remaining == 6
    assert limits.alone == 5
    limits.close()
