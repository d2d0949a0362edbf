"""Signs of life: the last one is found, and one that cannot be trusted is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packshot.ledger import signs
from packshot.ledger.journal import Journal
from packshot.ledger.signs import Sign, last_sign, sign_path, tick_us


def test_the_last_sign_is_found_by_its_life(tmp_path: Path) -> None:
    assert last_sign(tmp_path, 7) is None
    before = tick_us()
    sign = Sign(tmp_path, 7)
    first = last_sign(tmp_path, 7)
    assert first is not None
    assert before <= first <= tick_us()
    sign.beat()
    second = last_sign(tmp_path, 7)
    assert second is not None
    assert second >= first
    sign.close()
    sign.close()
    sign.beat()
    assert last_sign(tmp_path, 7) == second
    assert last_sign(tmp_path, 8) is None


@pytest.mark.parametrize("content", [b"", bytes(16), b"x" * 15, b"x" * 17])
def test_what_power_left_of_it_is_no_sign(tmp_path: Path, content: bytes) -> None:
    sign_path(tmp_path, 1).write_bytes(content)
    assert last_sign(tmp_path, 1) is None


def test_a_sign_that_cannot_be_written_goes(tmp_path: Path, monkeypatch) -> None:
    sign = Sign(tmp_path, 1)

    def fails(*_: object) -> int:
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(signs.os, "pwrite", fails)
        sign.beat()
    assert last_sign(tmp_path, 1) is None, "an old sign would hide what was used since"
    sign.beat()
    assert not sign_path(tmp_path, 1).exists()


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_journal_gives_signs_while_nothing_is_written(tmp_path: Path, durability) -> None:
    journal = Journal(tmp_path, "w", durability=durability)
    first = last_sign(tmp_path / "w", journal.epoch)
    assert first is not None
    while (now := last_sign(tmp_path / "w", journal.epoch)) == first:
        os.sched_yield()
    assert now is not None
    assert now > first
    journal.close()
    ended = last_sign(tmp_path / "w", journal.epoch)
    assert ended is not None
    assert ended >= now
