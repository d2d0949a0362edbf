"""A call of the gateway by packshot itself: in this process, or of one that runs elsewhere.

In this process there are no workers, ports, virtual keys or limits: a plan, a dispatcher and the
command's own ledger, in which each attempt is held and settled as in the server. Elsewhere, the
other gateway books the call on what the headers name.

A client belongs to the event loop in which it is first asked; `close` it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from time import monotonic, perf_counter
from typing import Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

import msgspec

from packshot.core.clock import wall_us
from packshot.core.errors import (
    InvalidRequest,
    LedgerError,
    PackshotError,
    UpstreamError,
    UpstreamTimeout,
    unknown_name,
)
from packshot.core.money import Nanos, nanos_of
from packshot.core.types import Usage
from packshot.gateway.dispatch import Answer, Dispatcher, Refused
from packshot.gateway.intake import DOORS, make_job
from packshot.gateway.job import Job
from packshot.gateway.money import Money
from packshot.gateway.pictures import (
    Picture,
    PictureAsk,
    PictureTrouble,
    check_pictures,
    picture_body,
    picture_in,
)
from packshot.gateway.plan import Plan, Target, build_plan
from packshot.gateway.settings import GatewaySettings
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.virtual_key import VirtualKey
from packshot.gateway.wire.pool import Pool, PoolLimits
from packshot.gateway.wire.upstream import Call, Origin, Timeouts
from packshot.gateway.worker import connect
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import PriceBook
from packshot.providers.base import FailureKind
from packshot.providers.rows import COMPATIBLE, row_of

__all__ = [
    "Ask",
    "Client",
    "Executor",
    "LocalClient",
    "RemoteClient",
    "Reply",
    "Trouble",
    "check_route",
    "run",
]

P = ParamSpec("P")
T = TypeVar("T")
Trouble: TypeAlias = Literal["", "unanswered", "deadline", "budget", "refused"]

CHAT = "/v1/chat/completions"
PICTURES = "/v1/images/generations"

MAX_REPLY_BYTES = 1 << 20
"""Of an answer: what packshot asks for has a few hundred tokens."""

MAX_PICTURE_BYTES = 64 << 20
"""Of an answer with a picture; one of a megapixel has two or three."""

OWN = VirtualKey("")
"""Whose calls those in this process are: nobody's, as the rest of a render is."""

SLACK_S = 0.25
"""How much later than its deadline a call is cancelled that should have ended by itself."""

PATIENCE_S = 1.0
"""How long the end waits for threads: one that asks a name server cannot be stopped."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A chat that answers with one JSON object.

    ``messages`` are (role, text) pairs, ``max_tokens`` the limit of the answer. ``deadline`` is a
    `time.monotonic`. ``booked_on`` holds what the call is booked on: "render", "recipe", "stage",
    "batch" and "tags" ("name=value", with commas).
    """

    route: str
    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    deadline: float
    booked_on: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a chat: its text, or, where ``trouble`` says why there is none, "".

    ``kind`` is one word for the trouble: nobody answered, or not before the deadline, or the ledger
    of either side did not let the call be made, or what was asked was refused: others may not be.
    ``cost`` is what all of its attempts cost, in nano-EUR, also of those that failed; ``priced`` is
    false where no price is known for them. ``provider`` and ``model`` are those of the last one.
    """

    text: str
    trouble: str = ""
    kind: Trouble = ""
    provider: str = ""
    model: str = ""
    attempts: int = 0
    cost: Nanos = 0
    priced: bool = True


class Client(Protocol):
    """Who can be asked."""

    async def chat(self, ask: Ask, /) -> Reply:
        """Return what came of a chat; that nobody answered is no error of the caller's."""
        ...

    async def picture(self, ask: PictureAsk, /) -> Picture:
        """Return what came of asking for a picture; as with `chat`."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


@dataclass(frozen=True, slots=True)
class _Called:
    """What came of a call in this process; ``job`` is None where it did not become one."""

    job: Job | None = None
    body: bytes = field(default=b"", repr=False)
    trouble: str = ""
    kind: PictureTrouble = ""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the headers of a gateway elsewhere say of a call."""

    provider: str
    model: str
    attempts: int
    cost: Nanos


class LocalClient:
    """The gateway of ``settings`` in this process, booking in ``ledger``.

    Raises:
        InvalidRequest: providers or routes have a mistake.
    """

    def __init__(self, settings: GatewaySettings, ledger: Ledger, book: PriceBook) -> None:
        self._plan: Plan = build_plan(settings)
        self._book = book
        self._money = Money(ledger, book)
        self._dispatcher = Dispatcher(self._money, Telemetry(), settings.server)

    async def chat(self, ask: Ask) -> Reply:
        """See `Client`."""
        made = await self._call(CHAT, _body(ask), ask, OWN)
        text, trouble = ("", made.trouble) if made.trouble else _said(made.body)
        kind: Trouble = made.kind if made.trouble else "refused"  # an answer, and no text in it
        return self._reply(made.job, text, trouble, kind if trouble else "")

    async def picture(self, ask: PictureAsk) -> Picture:
        """See `Client`."""
        made = await self._call(PICTURES, picture_body(ask), ask, VirtualKey(ask.account))
        data, seed, trouble = b"", 0, made.trouble
        if not trouble:
            data, seed, trouble = picture_in(made.body)
        kind = made.kind or "unanswered" if trouble else ""
        job = made.job
        if job is None or job.target is None:
            return Picture(data, seed, trouble, kind)
        name, model = job.target.provider.name, job.target.model
        priced = job.cost > 0 or self._prices(job.target, Usage("denoise", images=1))
        return Picture(data, seed, trouble, kind, name, model, job.attempts, job.cost, priced)

    async def _call(
        self, path: str, body: bytes, ask: Ask | PictureAsk, owner: VirtualKey
    ) -> _Called:
        """Make a call as the server would that has the door ``path``."""
        connect(self._plan)
        try:
            headers = {k.encode(): v.encode() for k, v in _headers(ask).items()}
            job = make_job(DOORS[path], self._plan, owner, headers, body, perf_counter())
        except PackshotError as error:
            return _Called(trouble=str(error), kind="unanswered")
        try:
            async with asyncio.timeout(max(0.0, ask.deadline - monotonic()) + SLACK_S):
                got = await self._dispatcher.answer(job)
                await self._money.flush()
        except Refused as refused:
            kind = KINDS.get(refused.failure.kind, "unanswered")
            return _Called(job, b"", refused.failure.message, kind)
        except TimeoutError:
            return _Called(job, b"", "the deadline passed", "deadline")
        except PackshotError as error:
            kind = "budget" if isinstance(error, LedgerError) else "unanswered"
            return _Called(job, b"", str(error), kind)
        return _Called(job, got.body if isinstance(got, Answer) else b"")

    def check(self, route: str) -> None:
        """Raise `InvalidRequest` for a route that the configuration does not have."""
        check_route(self._plan, route)

    def check_pictures(self, route: str) -> None:
        """Raise `InvalidRequest` for a route that is not there, or makes no pictures."""
        check_route(self._plan, route)
        check_pictures(self._plan, route)

    async def close(self) -> None:
        """See `Client`."""
        for provider in self._plan.providers.values():
            if provider.upstream is not None:
                await provider.upstream.close()
                provider.upstream = None

    def _reply(self, job: Job | None, text: str, trouble: str, kind: Trouble) -> Reply:
        if job is None or job.target is None:
            return Reply(text, trouble, kind)
        name, model = job.target.provider.name, job.target.model
        priced = job.cost > 0 or self._prices(job.target, Usage("caption", input_tokens=1))
        return Reply(text, trouble, kind, name, model, job.attempts, job.cost, priced)

    def _prices(self, target: Target, usage: Usage) -> bool:
        """Tell whether a price is known of a usage of this target."""
        price_as = target.provider.price_as
        return self._book.charge(usage, price_as, target.model, wall_us()).priced


class RemoteClient:
    """A gateway that runs elsewhere: ``url`` is its address, with or without ``/v1``.

    ``key`` is the virtual key that it knows us by, "" for none.

    Raises:
        InvalidRequest: the URL or the key cannot be used; plain http only in a private network.
    """

    def __init__(self, url: str, key: str = "") -> None:
        base = url.rstrip("/").removesuffix("/v1")
        row = row_of(COMPATIBLE.name, base, name="gateway")
        at = row.address
        self._lines = row.header_lines(key) + b"content-type: application/json\r\n"
        self._row = row
        self._origin = Origin(at.scheme, at.host, at.port)
        self._pool: Pool | None = None

    async def chat(self, ask: Ask) -> Reply:
        """See `Client`. What a call cost that we gave up on stands in the other ledger only."""
        try:
            status, body, told = await self._call(CHAT, _body(ask), ask, MAX_REPLY_BYTES)
        except UpstreamError as error:
            late = isinstance(error, UpstreamTimeout)
            kind: Trouble = "deadline" if late else "unanswered"
            return Reply("", f"the gateway: {error}", kind, priced=not error.sent)
        text, trouble = _said(body) if status == 200 else ("", _complaint(status, body))
        refused = status in {200, 400}  # an answer, and no text in it; or none to this
        kind = "refused" if refused else STATUS.get(status, "unanswered")
        kind = kind if trouble else ""
        # An answer for nothing and one whose price nobody knows look alike from here.
        known = told.cost > 0 or not text
        return Reply(
            text, trouble, kind, told.provider, told.model, told.attempts, told.cost, known
        )

    async def picture(self, ask: PictureAsk) -> Picture:
        """See `Client`; the budget is that of our virtual key there."""
        body = picture_body(ask)
        try:
            status, body, told = await self._call(PICTURES, body, ask, MAX_PICTURE_BYTES)
        except UpstreamError as error:
            late = isinstance(error, UpstreamTimeout)
            kind: PictureTrouble = "deadline" if late else "unanswered"
            return Picture(b"", 0, f"the gateway: {error}", kind, priced=not error.sent)
        data, seed, trouble = b"", 0, _complaint(status, body)
        if status == 200:
            data, seed, trouble = picture_in(body)
        kind = "refused" if status == 400 else STATUS.get(status, "unanswered")
        by, known = (told.provider, told.model), told.cost > 0 or not data
        kind = kind if trouble else ""
        return Picture(data, seed, trouble, kind, *by, told.attempts, told.cost, known)

    async def _call(
        self, path: str, body: bytes, ask: Ask | PictureAsk, limit: int
    ) -> tuple[int, bytes, _Told]:
        if self._pool is None:
            self._pool = Pool(self._origin, PoolLimits(connections=32))
        lines = "".join(f"{name}: {value}\r\n" for name, value in _headers(ask).items())
        call = Call(
            self._row.target(path, ""),
            self._lines + lines.encode("ascii"),
            body,
            ask.deadline + SLACK_S,
            Timeouts(),
        )
        reply = await self._pool.send(call)
        answer = await reply.read(limit)
        of = {name: reply.headers.get(b"x-packshot-" + name, b"") for name in HEADERS}
        attempts = int(of[b"attempts"]) if of[b"attempts"].isdigit() else 0
        provider, model = (of[name].decode("latin-1") for name in (b"provider", b"model"))
        return reply.status, answer, _Told(provider, model, attempts, _nanos(of[b"cost-eur"]))

    async def close(self) -> None:
        """See `Client`."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None


def check_route(plan: Plan, route: str) -> None:
    """Raise `InvalidRequest` for what is neither a route's id nor "provider/model".

    Callers of the gateway may name a bare model; in a configuration it would be a misspelt route.
    """
    if route in plan.routes:
        return
    if "/" in route:
        plan.target(route)
        return
    if not plan.routes:
        raise InvalidRequest(f"there is no route {route!r}: write one under routes:")
    raise unknown_name("route", route, plan.routes)


class Executor(ThreadPoolExecutor):
    """The threads of an event loop that does not wait for them for long, when it ends."""

    def __init__(self) -> None:
        super().__init__(4, "packshot-client")
        self._given: list[Future[Any]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread."""
        future = super().submit(fn, *args, **kwargs)
        self._given.append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as inherited
        """Wait a little for what is under way: a hold that is being made is voided then."""
        del cancel_futures
        if wait:
            wait_for(self._given, PATIENCE_S)
        super().shutdown(wait=False, cancel_futures=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run calls of a client to their end, from code that is not asynchronous.

    A name server that does not answer holds nobody up beyond the calls' own deadlines. Ctrl-C
    cancels what is under way, which settles itself, and `KeyboardInterrupt` comes out.
    """

    async def begun() -> T:
        asyncio.get_running_loop().set_default_executor(Executor())
        return await work

    return asyncio.run(begun())


KINDS: dict[FailureKind, PictureTrouble] = {
    "timeout": "deadline",
    "refusal": "refused",
    "bad_request": "refused",
}
"""What a failure means to who asked; of all the others it is that nobody answered."""

STATUS: dict[int, Trouble] = {402: "budget", 504: "deadline"}
"""What a gateway's refusals mean; of all the others it is that nobody answered."""

HEADERS = (b"cost-eur", b"attempts", b"provider", b"model")


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Error(msgspec.Struct):
    message: str = ""


class _Problem(msgspec.Struct):
    error: _Error


def _body(ask: Ask) -> bytes:
    return msgspec.json.encode(
        {
            "model": ask.route,
            "messages": [{"role": role, "content": text} for role, text in ask.messages],
            "max_tokens": ask.max_tokens,
            "response_format": {"type": "json_object"},
        }
    )


def _headers(ask: Ask | PictureAsk) -> dict[str, str]:
    """Return what both kinds of gateway read in the headers of a call."""
    left_ms = max(1, int((ask.deadline - monotonic()) * 1000))
    told = {f"x-packshot-{name}": value for name, value in ask.booked_on.items() if value}
    for name, value in told.items():
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest(f"{name} must be printable ASCII, got {value!r}")
    return {"x-packshot-timeout-ms": str(left_ms), **told}


def _said(body: bytes) -> tuple[str, str]:
    """Return the text of a chat completion, and why there is none."""
    try:
        choice = msgspec.json.decode(body, type=_Completion).choices[0]
    except (msgspec.MsgspecError, IndexError):
        return "", "the answer is no chat completion"
    if choice.message.refusal or not choice.message.content:
        return "", "the model refused" if choice.message.refusal else "the model said nothing"
    return choice.message.content, ""


def _complaint(status: int, body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=_Problem).error.message
    except msgspec.MsgspecError:
        said = "no reason that could be read"
    return f"the gateway answered {status}: {said}"


def _nanos(eur: bytes) -> Nanos:
    try:
        amount = Decimal(eur.decode("ascii"))
    except (InvalidOperation, UnicodeDecodeError):
        return 0
    return nanos_of(amount) if amount.is_finite() and 0 <= amount < 10**6 else 0
