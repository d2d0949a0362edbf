"""Who waits for whom: one call for all, and no burst where its answer is none to share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.gateway.cache.entry import Entry
from packshot.gateway.cache.flights import MOST_SEATS, Flights, Hit, Seat
from packshot.providers.base import Failure
from packshot.providers.fake_script import Fault, Rule, Settings, Truth
from tests.gateway.cache.test_cache import KEYS, YAML, body_of
from tests.gateway.world import world

HIT = Hit("k", Entry(b"", "", "", "", 0, 1, 1))
BROKEN = Failure("server_error", 500, "broken")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY_A", "k1")
    monkeypatch.chdir(tmp_path)
    for letter in KEYS:
        monkeypatch.setenv(f"SECRET_{letter}", letter * 40)


class Crowd:
    """Callers of one request; ``outcome`` says what their calls bring, by their number."""

    def __init__(self, outcome: dict[int, Hit | Failure | str]) -> None:
        self.flights = Flights()
        self.outcome = outcome
        self.calls = self.busy = self.most = 0
        self.rounds: list[tuple[int, int]] = []
        """Calls under way, and calls that came back, when each was made."""

    async def one(self, owner: str = "one", left_s: float = 60.0) -> Hit | Failure | None:
        told = await self.flights.board("k", owner, monotonic() + left_s)
        if not isinstance(told, Seat):
            return told
        number, self.calls = self.calls, self.calls + 1
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.rounds.append((self.busy, self.calls - self.busy))
        try:
            await asyncio.sleep(0.001)
            what = self.outcome.get(number)
            if isinstance(what, Hit):
                told.hit = what
            elif isinstance(what, Failure):
                told.failure = what
            elif what == "hangs up":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(1)
            return what if isinstance(what, Hit) else None
        except asyncio.CancelledError:
            told.abandoned = True
            raise
        finally:
            self.busy -= 1
            self.flights.land(told)


def together(crowd: Crowd, count: int) -> list[Hit | Failure | BaseException | None]:
    async def test() -> list[Hit | Failure | BaseException | None]:
        calls = [crowd.one() for _ in range(count)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)

    got = asyncio.run(test())
    assert len(crowd.flights) == 0
    return got


def test_nothing_to_share_lets_two_go_for_each_that_comes_back() -> None:
    crowd = Crowd({})
    assert together(crowd, 200) == [None] * 200
    assert crowd.calls == 200
    assert all(busy <= back + 1 for busy, back in crowd.rounds)
    assert len(crowd.rounds) == 200
    assert crowd.most == MOST_SEATS


def test_one_that_can_be_shared_serves_all_the_rest() -> None:
    crowd = Crowd({7: HIT})
    got = together(crowd, 200)
    assert got.count(HIT) >= 200 - 15
    assert crowd.calls <= 15


def test_who_hangs_up_says_nothing_of_the_answer() -> None:
    crowd = Crowd({0: "hangs up", 1: "hangs up", 2: HIT})
    got = together(crowd, 50)
    assert got.count(HIT) == 48
    assert [busy for busy, _ in crowd.rounds] == [1, 1, 1]


def test_a_failure_is_its_owners_alone_and_a_deadline_nobodys() -> None:
    async def test() -> None:
        crowd = Crowd({0: BROKEN, 1: HIT})
        got = await asyncio.gather(*(crowd.one(owner) for owner in ("a", "a", "b", "b", "b")))
        assert got == [None, BROKEN, HIT, None, HIT]
        late = Crowd({0: Failure("timeout", 0, "late", code="deadline"), 1: HIT})
        assert await asyncio.gather(*(late.one() for _ in range(3))) == [None, HIT, HIT]

    asyncio.run(test())


def test_nobody_waits_past_the_own_deadline_and_a_turn_that_comes_too_late_goes_on() -> None:
    async def test() -> None:
        flights = Flights()
        first = await flights.board("k", "one", monotonic() + 60)
        assert isinstance(first, Seat)
        with pytest.raises(TimeoutError):
            await flights.board("k", "one", monotonic() + 0.01)
        second, third = (
            asyncio.ensure_future(flights.board("k", "one", monotonic() + 60)) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.abandoned = True
        flights.land(first)  # the second's turn; it goes away before it knows
        second.cancel()
        seat = await third
        assert isinstance(seat, Seat)
        flights.land(seat)
        flights.land(seat)
        assert len(flights) == 0

    asyncio.run(test())


@given(
    st.lists(st.sampled_from(["hit", "failure", "nothing", "hangs up"]), max_size=12),
    st.integers(1, 40),
)
def test_whatever_comes_each_is_told_or_calls_once(kinds: list[str], count: int) -> None:
    what: dict[str, Hit | Failure | str] = {"hit": HIT, "failure": BROKEN}
    crowd = Crowd({n: what.get(kind, kind) for n, kind in enumerate(kinds)})
    got = together(crowd, count)
    told = sum(each in (HIT, BROKEN) for each in got) - sum(
        kind == "hit" for kind in kinds[: crowd.calls]
    )
    assert told + crowd.calls == count
    assert crowd.most <= MOST_SEATS


def most_at_once(rows: list[Truth]) -> int:
    ends = sorted([(row.at, 1) for row in rows] + [(row.until, -1) for row in rows])
    now = most = 0
    for _, step in ends:
        now += step
        most = max(most, now)
    return most


async def streams(url: str, count: int, headers: dict[str, str]) -> list[tuple[int, str, bytes]]:
    async def one() -> tuple[int, str, bytes]:
        body = body_of(stream=True)
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as got:
            return got.status, got.headers.get("x-packshot-cache", ""), await got.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=count)) as session:
        return await asyncio.gather(*(one() for _ in range(count)))


def test_broken_streams_are_no_burst_upstream_and_the_first_whole_one_serves_the_rest(
    tmp_path: Path,
) -> None:
    fakes = {"openai": Settings(), "anthropic": Settings()}
    with world(tmp_path, YAML, **fakes) as there:
        broken = Fault(ending="error_event", at=4, head_after_s=0.3, every_s=0.05)
        there.fakes["openai"].rules.append(Rule(fault=broken, times=3))
        headers = {"authorization": "Bearer " + "a" * 40}
        answers = asyncio.run(streams(there.url, 100, headers))
        rows = there.fakes["openai"].truth
        assert rows[0].until <= min(row.at for row in rows[1:])
        assert most_at_once(rows) <= 4
        assert 4 <= len(rows) <= 7
        assert sum(did == "hit" for _, did, _ in answers) == 100 - len(rows)
        assert len(there.booked()) == len(rows)


def test_no_caller_waits_for_another_past_its_deadline(tmp_path: Path) -> None:
    slow = Settings(usual=Fault(ending="error_event", at=3, head_after_s=2.0))
    with world(tmp_path, YAML, openai=slow, anthropic=Settings()) as there:
        headers = {"authorization": "Bearer " + "a" * 40, "x-packshot-timeout-ms": "1000"}

        async def test() -> list[tuple[int, str, bytes]]:
            return await asyncio.wait_for(streams(there.url, 20, headers), 30)

        answers = asyncio.run(test())
        assert {status for status, _, _ in answers} == {504}
        assert len(there.fakes["openai"].truth) == 1
