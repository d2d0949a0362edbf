"""Idempotency keys: the first answer again, and no second call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packshot.core.clock import HOUR_US
from packshot.core.errors import IdempotencyError, InvalidRequest
from packshot.ledger import idempotency
from packshot.ledger.idempotency import Answers
from packshot.ledger.leases import Shared, open_shared
from tests.ledger.desk import Desk
from tests.ledger.world import NOW


@pytest.fixture
def answers(shared: Shared) -> Answers:
    """Return an empty store of answers."""
    return Answers(shared)


def test_the_same_key_and_body_replays_the_first_answer(answers: Answers) -> None:
    assert answers.once("k", b"body", "red", NOW) is None
    answers.remember("k", b"\x00answer", "red", NOW)
    for _ in range(2):
        assert answers.once("k", b"body", "red", NOW) == b"\x00answer"


def test_another_body_is_refused(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    with pytest.raises(IdempotencyError, match="another body"):
        answers.once("k", b"other", "red", NOW)
    answers.remember("k", b"answer", "red", NOW)
    with pytest.raises(IdempotencyError, match="another body"):
        answers.once("k", b"other", "red", NOW)


def test_a_call_in_flight_is_waited_for(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    with pytest.raises(IdempotencyError, match="not done"):
        answers.once("k", b"body", "red", NOW + 1)


def test_a_first_call_that_died_blocks_its_key_for_ten_minutes(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    assert answers.once("k", b"body", "red", NOW + idempotency.IN_FLIGHT_US) is None


def test_a_key_is_its_scopes_own(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    assert answers.once("k", b"other", "blue", NOW) is None
    assert answers.once("dk", b"x", "re", NOW) is None


def test_an_answer_expires_after_a_day(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    answers.remember("k", b"answer", "red", NOW)
    assert answers.once("k", b"body", "red", NOW + 24 * HOUR_US - 1) == b"answer"
    assert answers.once("k", b"other", "red", NOW + 24 * HOUR_US) is None


def test_a_failed_call_may_be_made_again(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    answers.forget("k", "red")
    assert answers.once("k", b"other", "red", NOW) is None


def test_too_long_an_answer_is_not_kept_and_not_paid_for_twice(answers: Answers) -> None:
    answers.once("k", b"body", "red", NOW)
    answers.remember("k", bytes(idempotency.MAX_ANSWER + 1), "red", NOW)
    with pytest.raises(IdempotencyError, match="new key"):
        answers.once("k", b"body", "red", NOW)


def test_the_oldest_answers_go_first_and_calls_in_flight_stay(shared: Shared) -> None:
    answers = Answers(shared, max_keys=3)
    answers.once("flying", b"body", "", NOW)
    for number in range(4):
        answers.once(f"k{number}", b"body", "", NOW)
        answers.remember(f"k{number}", b"answer", "", NOW + number)
    assert answers.once("k3", b"body", "", NOW) == b"answer"
    assert answers.once("k2", b"body", "", NOW) == b"answer"
    assert answers.once("k0", b"body", "", NOW) is None
    with pytest.raises(IdempotencyError, match="not done"):
        answers.once("flying", b"body", "", NOW)


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_has_a_length(answers: Answers, key: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 255"):
        answers.once(key, b"", "", NOW)


def test_keys_are_not_to_be_found_in_the_file(tmp_path: Path) -> None:
    shared = open_shared(str(tmp_path / "ledger.db"))
    answers = Answers(shared)
    answers.once("a-secret-key", b"a-secret-body", "red", NOW)
    answers.close()
    content = (tmp_path / "caps.db").read_bytes()
    assert b"a-secret" not in content


def test_of_many_at_once_one_is_the_first(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")

    def call(_: int) -> bool:
        answers = Answers(open_shared(url))
        try:
            return answers.once("k", b"body", "", NOW) is None
        except IdempotencyError:
            return False
        finally:
            answers.close()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(call, range(24))) == 1


def test_the_ledger_passes_keys_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.ledger.once("k", b"body", "red") is None
    desk.ledger.remember("k", b"answer", "red")
    assert desk.ledger.once("k", b"body", "red") == b"answer"
    desk.ledger.forget("k", "red")
    assert desk.ledger.once("k", b"body", "red") is None
    desk.ledger.close()


def test_a_ledger_without_answers_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ledger._answers = None
    with pytest.raises(InvalidRequest, match="idempotency"):
        desk.ledger.once("k", b"body")
    desk.ledger.close()
