"""The fault matrix: what goes wrong upstream, what the caller sees of it, and what it costs.

It knows nothing of the gateway's inside. `run_case` arms a fake provider, has a request made by
whatever `Call` is handed in, and holds what came of it against the table; `check_books` holds the
ledger's entries against what the provider billed.

The table is true of a gateway that was just started (a retry budget may be spent, a breaker may be
open), with one target and no fallback:

- two keys, `KEYS`, that the fake knows; ``max_retries`` is `RETRIES` with waits of milliseconds;
- ``first_byte_s`` and ``idle_s`` are `PATIENCE_S`;
- what is left of a caller that hangs up is cancelled, not drained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from packshot.core.types import Usage
from packshot.providers.fake import Fake
from packshot.providers.fake_script import NEVER, Delay, Fault, Rule, Settings, Truth, limited

LONG = "PACKSHOT_LONG" in os.environ
"""Whether the long versions run, too: all combinations of the matrix, the whole outage, the rolling
restart. ``PACKSHOT_LONG=1 ./packshot test tests/gateway`` takes some minutes more."""

KEYS = ("k1", "k2")
RETRIES = 2
PATIENCE_S = 0.4
PACE_S = 0.005
"""Between the events of a stream that a caller hangs up on."""
APART_S = 0.03
"""Between the events of a stream that breaks."""

Api: TypeAlias = Literal["openai", "anthropic"]

Sight: TypeAlias = Literal[
    "answer",  # 200, whole, and what the provider's last answer said, once
    "error",  # a status of 400 or more, and an error in the API's own shape
    "error_event",  # 200, the beginning of an answer, then an error event and no end marker
    "hung_up",  # the caller itself left
]

Book: TypeAlias = Literal[
    "free",  # failed_free, 0
    "exact",  # succeeded, to the nano-euro what was billed
    "as_said",  # succeeded, by what the provider said of its usage, which is not what it billed
    "bound",  # unknown, or succeeded without a usage: never less than what was billed
]


@dataclass(frozen=True)
class Seen:
    """What a caller must get. ``status`` is one of these; ``codes`` are words of the error's code
    or type, one of which must be there, where any are given."""

    what: Sight
    status: tuple[int, ...] = (200,)
    codes: tuple[str, ...] = ()
    retry_after_s: tuple[float, float] | None = None


@dataclass(frozen=True)
class Case:
    """A row. ``faults`` befall the first requests, ``rule`` all; ``books`` are the attempts.

    ``more`` is how many attempts beyond ``books`` there may be, each like the last of them.
    ``hang_up_after`` is after how many events the caller leaves.
    """

    name: str
    seen: Seen
    books: tuple[Book, ...]
    faults: tuple[Fault, ...] = ()
    rule: Rule | None = None
    more: int = 0
    apis: tuple[Api, ...] = ("openai", "anthropic")
    streams: tuple[bool, ...] = (False, True)
    hang_up_after: int | None = None
    settings: Settings = field(default_factory=lambda: Settings(keys=dict.fromkeys(KEYS)))


@dataclass(frozen=True)
class Saw:
    """What a caller got. ``text`` is all text of the answer, ``events`` the events before any
    error. ``complete``: the body ended as its API says (with [DONE] or message_stop if streamed).
    ``error`` is the error's JSON as text, "" for none."""

    status: int
    text: str = ""
    events: int = 0
    complete: bool = False
    error: str = ""
    retry_after_s: float | None = None
    hung_up: bool = False


class Call(Protocol):
    """Makes one request for text through the gateway, without retries of its own."""

    async def __call__(self, *, api: Api, stream: bool, hang_up_after: int | None) -> Saw: ...


@dataclass(frozen=True)
class Report:
    """What came of a case: for `check_books`, which wants the ledger too."""

    case: Case
    saw: Saw
    truths: tuple[Truth, ...]


class Entry(Protocol):
    """What is read of a ledger's entry."""

    @property
    def outcome(self) -> str: ...
    @property
    def amount(self) -> int: ...


ANSWER = Seen("answer")
CUT = Seen("error_event")
SERVER = Seen("error", (500, 502, 503, 504))
DELAYS: tuple[Delay, ...] = ("none", "seconds", "date", "ms", "gemini", "replicate", "absurd")

BEFORE: dict[str, tuple[Fault, Book]] = {
    "500": (Fault(status=500), "free"),
    "503": (Fault(status=503), "free"),
    "529": (Fault(status=529), "free"),
    "billed, then 504": (Fault(status=504, billed="all"), "bound"),
    "reset": (Fault(ending="reset", at=-1), "bound"),
    "closed": (Fault(ending="close", at=-1), "bound"),
    "billed, then reset": (Fault(ending="reset", at=-1, billed="all"), "bound"),
    "silence before the head": (Fault(head_after_s=NEVER), "bound"),
    "silence after the head": (Fault(first_after_s=NEVER), "bound"),
    "cut after the head": (Fault(ending="close", at=0), "bound"),
    "reset after the head": (Fault(ending="reset", at=0), "bound"),
    "no chunk": (Fault(ending="bad_chunk", at=0), "bound"),
    "error under 200": (Fault(ending="error_event", at=0, billed="nothing"), "bound"),
    "first event is no JSON": (Fault(ending="bad_json", at=0), "bound"),
}
"""What happens before the caller has seen a byte: the next attempt answers, and nothing shows.
``bound`` of what was not billed is at least 0: how sure it can be is the gateway's affair."""

DURING: dict[str, Fault] = {
    "close": Fault(ending="close"),
    "torn": Fault(ending="torn"),
    "reset": Fault(ending="reset"),
    "stall": Fault(ending="stall"),
    "bad chunk": Fault(ending="bad_chunk"),
    "bad JSON": Fault(ending="bad_json"),
    "error event": Fault(ending="error_event"),
}
"""What happens at an event: never a second answer, and never what looks like a proper end."""

KEY_FAULTS = {
    "401": Fault(status=401, code="auth"),
    "402": Fault(status=402),
    "403": Fault(status=403),
    "insufficient_quota": Fault(status=429, code="quota"),
    "credit balance too low": Fault(status=400, code="quota"),
}
OF_ONE: dict[str, tuple[Api, ...]] = {
    "insufficient_quota": ("openai",),
    "credit balance too low": ("anthropic",),
}
"""How only one of the APIs says that the account is out of money."""

BOTH: tuple[Api, ...] = ("openai", "anthropic")


def at(fault: Fault, event: int, every_s: float = 0.0) -> Fault:
    """Return the fault, happening at another event, and the events at a pace."""
    given = {name: getattr(fault, name) for name in fault.__struct_fields__}
    return Fault(**{**given, "at": event, "every_s": every_s})


def _rate_limits() -> list[Case]:
    once = [
        Case(f"429 once, {delay}", ANSWER, ("free", "exact"), (limited(delay, 5),))
        for delay in DELAYS
    ]
    always = [
        Case(
            f"429 always, {delay}",
            Seen("error", (429,), ("rate_limit",), (1, 30.0 if delay != "absurd" else 1e6)),
            ("free", "free"),
            rule=Rule(fault=limited(delay, 28)),
        )
        for delay in DELAYS
        if delay != "none"
    ]
    # Without a delay, the gateway may wait for its keys to be well again, as often as its retry
    # budget lets a quiet gateway retry (3 times), and then try both.
    bare = Case(
        "429 always, none",
        Seen("error", (429,), ("rate_limit",)),
        ("free", "free"),
        rule=Rule(fault=limited("none")),
        more=6,
    )
    return [*once, *always, bare]


def _keys() -> list[Case]:
    one = [
        Case(f"{name}, one key", ANSWER, ("free", "exact"), (fault,), apis=OF_ONE.get(name, BOTH))
        for name, fault in KEY_FAULTS.items()
    ]
    both = [
        Case(
            f"{name}, every key",
            # The gateway's keys are its own affair: no 401 that would make the caller doubt his.
            Seen("error", (500, 502, 503)),
            ("free", "free"),
            rule=Rule(fault=fault),
            apis=OF_ONE.get(name, BOTH),
        )
        for name, fault in KEY_FAULTS.items()
    ]
    return [*one, *both]


def _before() -> list[Case]:
    once = [
        Case(f"{name}, once", ANSWER, (book, "exact"), (fault,))
        for name, (fault, book) in BEFORE.items()
    ]
    always = [
        Case(f"{name}, always", SERVER, (book,), rule=Rule(fault=fault), more=RETRIES)
        for name, (fault, book) in BEFORE.items()
    ]
    return [*once, *always]


def _during() -> list[Case]:
    cases: list[Case] = []
    for name, fault in DURING.items():
        cases += [
            # Apart: were they to come in one read, nothing would have been seen before the fault,
            # and another attempt might rightly answer.
            Case(f"{name} at event {k}", CUT, ("bound",), (at(fault, k, APART_S),), streams=(True,))
            for k in (1, 2, 4, 7)
        ]
        cases.append(
            Case(
                f"{name} in the body",
                ANSWER,
                ("bound", "exact"),
                (at(fault, 4),),
                streams=(False,),
            )
        )
    return cases


def _ends() -> list[Case]:
    no_end = Fault(ending="no_end")
    return [
        Case("no end marker", CUT, ("bound",), (no_end,), streams=(True,)),
        Case("no last chunk", ANSWER, ("bound", "exact"), (no_end,), streams=(False,)),
        Case("closed behind the end marker", ANSWER, ("exact",), (at(DURING["close"], 999),)),
    ]


def _caller() -> list[Case]:
    context = Fault(status=400, code="context")
    blocked = Fault(status=400, code="filter")
    return [
        Case(
            "context length",
            Seen("error", (400,), ("context_length_exceeded", "invalid_request_error")),
            ("free",),
            (context,),
        ),
        Case(
            "content filter",
            Seen("error", (400,), ("content_filter", "content_policy", "invalid_request_error")),
            ("free",),
            (blocked,),
        ),
        Case("bad request", Seen("error", (400,)), ("free",), (Fault(status=400),)),
        Case("no such model", Seen("error", (404,)), ("free",), rule=Rule(fault=Fault(status=404))),
    ]


def _usages() -> list[Case]:
    return [
        Case("usage absent", ANSWER, ("bound",), (Fault(usage="absent"),)),
        Case("usage doubled", ANSWER, ("as_said",), (Fault(usage="double"),)),
        Case("usage zero", ANSWER, ("as_said",), (Fault(usage="zero"),)),
        Case("usage negative", ANSWER, ("bound",), (Fault(usage="negative"),)),
        Case("usage impossible", ANSWER, ("bound",), (Fault(usage="impossible"),)),
    ]


def _slow() -> list[Case]:
    late = PATIENCE_S / 2
    return [
        Case("nothing wrong", ANSWER, ("exact",)),
        Case("slow head", ANSWER, ("exact",), (Fault(head_after_s=late),)),
        Case("slow first token", ANSWER, ("exact",), (Fault(first_after_s=late),)),
        Case("slow drip", ANSWER, ("exact",), (Fault(every_s=0.01),)),
    ]


def hang_ups(last: int, billed: Literal["all", "sent", "nothing"] = "all") -> list[Case]:
    """Return a case for each event up to ``last`` after which the caller may leave.

    ``billed`` is how the provider bills it.
    """
    settings = Settings(
        keys=dict.fromkeys(KEYS), hangup=billed, usual=Fault(every_s=PACE_S), reply_bytes=300
    )
    return [
        Case(
            f"hung up after event {k}, billed {billed}",
            Seen("hung_up"),
            ("bound",),
            streams=(True,),
            hang_up_after=k,
            settings=settings,
        )
        for k in range(1, last + 1)
    ]


CASES: tuple[Case, ...] = (
    *_slow(),
    *_rate_limits(),
    *_keys(),
    *_before(),
    *_during(),
    *_ends(),
    *_caller(),
    *_usages(),
)

FLAPPING = Rule(fault=Fault(status=503), up_s=30, down_s=30)
"""Well for 30 s, ill for 30 s, by the fake's own clock: for a run with a fallback, in which every
caller must get an answer, and no more than a fifth of the calls may be retries."""


async def run_case(case: Case, client_call: Call, fake: Fake, *, api: Api, stream: bool) -> Report:
    """Run one row for one API, and hold what the caller saw and the fake noted against it.

    Raises:
        AssertionError: it is not as the table says.
    """
    fake.clear()
    fake.next(*case.faults)
    if case.rule is not None:
        # Rules count what they have seen: each run has its own.
        given = {name: getattr(case.rule, name) for name in case.rule.__struct_fields__}
        fake.rule(Rule(**given))
    saw = await client_call(api=api, stream=stream, hang_up_after=case.hang_up_after)
    await fake.ended()
    report = Report(case, saw, tuple(fake.truth))
    check_seen(report, stream=stream)
    least = len(case.books)
    attempts = len(report.truths)
    assert least <= attempts <= least + case.more, f"{attempts} attempts, {least} expected"
    return report


def check_seen(report: Report, *, stream: bool) -> None:
    """Hold what the caller saw against the table.

    Raises:
        AssertionError: it is not as the table says.
    """
    seen, saw, last = report.case.seen, report.saw, report.truths[-1]
    assert saw.status in seen.status, saw
    if seen.what == "answer":
        assert saw.complete, saw
        assert not saw.error, saw
        assert saw.text == last.text, "not what the provider said, or more than once"
    elif seen.what == "error":
        assert saw.error, "an error without a body that says so"
        assert not saw.text, saw
        if seen.codes:
            assert any(code in saw.error for code in seen.codes), saw.error
    elif seen.what == "error_event":
        assert stream
        assert saw.error, "the stream ended without a word"
        assert not saw.complete, "an error, and then the marker of a proper end"
        assert saw.events >= 1, saw
        assert last.text.startswith(saw.text), "not the beginning of what the provider said"
    else:
        assert saw.hung_up, saw
        assert last.text.startswith(saw.text), saw
    if seen.retry_after_s is not None:
        low, high = seen.retry_after_s
        assert saw.retry_after_s is not None, "no Retry-After"
        assert low <= saw.retry_after_s <= high, saw


def check_books(
    report: Report,
    entries: Sequence[Entry],
    price: Callable[[Usage], int],
    *,
    drained: bool = False,
) -> None:
    """Hold the ledger against what the provider billed.

    ``entries`` are in the order of their attempts. ``price`` returns the nano-euros of a usage.
    ``drained`` says that streams whose caller left were read to their end.

    Raises:
        AssertionError: they do not agree.
    """
    truths, books = report.truths, list(report.case.books)
    books += books[-1:] * (len(truths) - len(books))
    found = [(entry.outcome, entry.amount) for entry in entries]
    assert len(found) == len(truths), f"{found} for {len(truths)} attempts"
    for number, (book, truth, entry) in enumerate(zip(books, truths, entries, strict=True)):
        billed = price(truth.billed) if truth.billed is not None else 0
        what = f"attempt {number + 1}: {entry.outcome} of {entry.amount}, billed {billed} ({book})"
        if book == "free":
            assert (entry.outcome, entry.amount, billed) == ("failed_free", 0, 0), what
        elif book == "exact":
            assert (entry.outcome, entry.amount) == ("succeeded", billed), what
        elif book == "as_said":
            assert entry.outcome == "succeeded", what
        elif drained and report.case.hang_up_after is not None:
            assert (entry.outcome, entry.amount) == ("failed_billed", billed), what
        else:
            assert entry.amount >= billed, what
            assert billed == 0 or entry.outcome in {"unknown", "succeeded", "failed_billed"}, what
