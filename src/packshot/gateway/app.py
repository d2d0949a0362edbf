"""The gateway: an ASGI callable. `Gateway.infer` is the main path, from first byte to last.

::

    authenticate → read the fields → limits → per attempt: hold → send → answer → post → reply

What waits is in `packshot.gateway.dispatch` and `packshot.gateway.relay`.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from packshot.core.errors import (
    BudgetExceeded,
    PackshotError,
    Saturated,
    Unbounded,
    Unpriced,
)
from packshot.core.ids import new_id
from packshot.gateway import dispatch
from packshot.gateway.access import Access
from packshot.gateway.addresses import caller_of, network_of
from packshot.gateway.answers import JSON, Trouble, not_again, of_error, of_failure
from packshot.gateway.dispatch import Dispatcher, Refused, Stream
from packshot.gateway.intake import (
    DOORS,
    Door,
    Gone,
    Receive,
    Room,
    Scope,
    Share,
    make_job,
    read_body,
    too_large,
)
from packshot.gateway.job import Job
from packshot.gateway.limiter import Limiter
from packshot.gateway.money import Money
from packshot.gateway.once import Once
from packshot.gateway.plan import Plan
from packshot.gateway.raw import PREFIX, RawDispatcher, ask, door_of
from packshot.gateway.relay import Drains, Send, relay
from packshot.gateway.settings import GatewaySettings
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.virtual_key import VirtualKey
from packshot.gateway.wire.cycle import Cycle
from packshot.gateway.wire.lines import lines_of, pairs_of
from packshot.providers.failures import Answer, error_body

if TYPE_CHECKING:
    from packshot.gateway.cache.cache import ResponseCache

__all__ = ["Gateway"]

ID = b"x-packshot-request-id"
OF_JSON = lines_of([JSON])
OURS = (
    b"%b: %b\r\nx-packshot-request-id: %b\r\nx-packshot-attempts: %d\r\n"
    b"x-packshot-overhead-us: %d\r\n%b%b%b"
)
"""The header lines of every answer to a call."""

COST = b"x-packshot-cost-eur: %d.%09d\r\n"

REPLAYED = b"x-packshot-replayed: true\r\n"
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
MODELS = frozenset({"/v1/models", "/openai/v1/models", "/anthropic/v1/models"})

ELSEWHERE = Door("chat", "chat")
"""Of what is no call of a model: its errors look as OpenAI's."""

EPOCH = "1970-01-01T00:00:00Z"
"""When a model was made: not known here."""

NOTHING = (
    "there is nothing here; served are /v1/chat/completions, /v1/embeddings, "
    "/v1/images/generations, /v1/messages, /v1/messages/count_tokens, /v1/models, and any other "
    "path of a provider as /raw/PROVIDER/PATH, e.g. /raw/openai/responses"
)
"""What a caller hears of a path that is none of ours."""

NO_MORE = (BudgetExceeded, Unbounded, Unpriced)
"""What the ledger says where an attempt must not be made."""

HUNG_UP = 499
"""The status that stands in metrics and logs for a caller that is gone (nginx's)."""


class Visit(msgspec.Struct, eq=False):
    """A request from its first byte on; ``job`` is there once it was understood."""

    scope: Scope
    receive: Receive
    send: Send
    door: Door
    began: float = 0.0
    cycle: Cycle | None = None
    """The short way, where our own server serves and nothing listens in between."""
    job: Job | None = None
    owner: str = ""
    """The id of its virtual key; "" until that is known."""
    refused: str = ""
    """Its id, where it did not become a job."""
    code: str = ""
    """Of the error that was sent."""
    share: Share | None = None
    """What its body takes of the room for all, where it did not come in one piece."""

    @property
    def id(self) -> str:
        """What its caller and the log call it: the job's id, where it became one."""
        if self.job is not None:
            return self.job.id
        self.refused = self.refused or new_id()
        return self.refused

    async def respond(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer; ``lines`` are its headers, each ended by CRLF."""
        if self.cycle is not None:
            self.cycle.reply(status, lines, body)
        else:
            await respond(self.send, status, lines, body)


NO_SCOPE: Scope = {}

Serve: TypeAlias = Callable[[Visit], Awaitable[int]]


class Gateway:
    """One worker's gateway. `plan` and `access` are replaced whole by a reload."""

    def __init__(
        self,
        settings: GatewaySettings,
        plan: Plan,
        access: Access,
        limiter: Limiter,
        money: Money,
        telemetry: Telemetry,
    ) -> None:
        self.settings = settings
        self._proxies = [
            network_of(each, "trusted_proxies") for each in settings.server.trusted_proxies
        ]
        self.plan = plan
        self.access = access
        self.telemetry = telemetry
        self.draining = False
        """Said to readiness probes; calls that still come are served."""
        self.in_flight = 0
        self.drains = Drains(limiter.settle)
        self.cache: ResponseCache | None = None
        """The response cache, where one is configured."""
        self._limiter = limiter
        self._money = money
        self.dispatcher = Dispatcher(money, telemetry, settings.server)
        self._raw = RawDispatcher(money, telemetry, settings.server)
        once = settings.server.idempotency
        self._once = None
        if once:
            self._once = Once(money.ledger, self.dispatcher, telemetry, money.waits)
        self._room = Room(settings.server.max_bodies_bytes)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        if scope["type"] != "http":
            return _nothing()
        path = scope["path"]
        door = DOORS.get(path)
        if door is not None and scope["method"] == "POST":
            return self._guarded(visit_of(scope, receive, send, door), self.infer)
        if path.startswith(PREFIX):
            door = door_of(path, self.plan)
            return self._guarded(visit_of(scope, receive, send, door), self.pass_through)
        return self._other(scope, receive, send)

    def serve(self, cycle: Cycle) -> Awaitable[None] | None:
        """Serve a call of a model without what ASGI says of it; None for any other request."""
        door = DOORS.get(cycle.path())
        if door is None or cycle.method != b"POST":
            return None
        visit = Visit(NO_SCOPE, cycle.receive, cycle.send, door, cycle.began, cycle)
        return self._guarded(visit, self.infer)

    async def infer(self, visit: Visit) -> int:
        """Serve one call of a model and return its status; ``visit`` is what is known of it."""
        headers, owner, body = self._let_in(visit)
        if body is None:
            body = await self._read(visit, headers)
        job = visit.job = make_job(visit.door, self.plan, owner, headers, body, visit.began)
        if (waits := self._limiter.take(job)) is not None:
            await waits
        if owner.content_log:
            self._listen(visit, job, body)
        if self._once is not None and b"idempotency-key" in headers:
            got = await self._once.answer(job, headers[b"idempotency-key"], body)
        elif self.cache is not None:
            return await self.cache.serve(job, partial(self._deliver, visit, job))
        else:
            got = await self.dispatcher.answer(job)
        return await self._deliver(visit, job, got)

    async def pass_through(self, visit: Visit) -> int:
        """Serve a raw call of a provider and return its status; see `packshot.gateway.raw`."""
        headers, owner, body = self._let_in(visit)
        if body is None:
            body = await self._read(visit, headers)
        asked = ask(visit.scope, self.plan, owner, headers, body, visit.began)
        job = visit.job = asked.job
        if (waits := self._limiter.take(job)) is not None:
            await waits
        if owner.content_log:
            self._listen(visit, job, body)
        return await self._deliver(visit, job, await self._raw.answer(asked))

    def _let_in(self, visit: Visit) -> tuple[Mapping[bytes, bytes], VirtualKey, bytes | None]:
        """Find out who calls; return headers, virtual key and the body, where it is there whole."""
        cycle, server = visit.cycle, self.settings.server
        if cycle is None:
            headers, client = dict(visit.scope["headers"]), client_of(visit.scope)
        else:
            headers, client = cycle.headers, cycle.link.client
            cycle.cancels = True
            if cycle.fired:
                raise Gone
        if self._proxies:
            client = caller_of(headers, client, self._proxies)
        if cycle is None or (head := cycle.head) is None:
            owner = self.access.authenticate(headers, client)
        else:
            if head.digest is None:
                head.digest = self.access.digest(headers)
            owner = self.access.holder(head.digest, client)
        visit.owner = owner.id
        if self.in_flight > server.max_in_flight:
            raise Saturated("as many calls are under way as there may be", 1.0)
        body = None if cycle is None else cycle.take_body()
        if body is not None and len(body) > server.max_body_bytes:
            raise too_large(server.max_body_bytes)
        return headers, owner, body

    async def _read(self, visit: Visit, headers: Mapping[bytes, bytes]) -> bytes:
        """Read a body that did not come in one piece."""
        visit.share = Share(self._room)
        return await read_body(
            visit.receive, headers, self.settings.server.max_body_bytes, visit.share
        )

    def _listen(self, visit: Visit, job: Job, body: bytes) -> None:
        """Keep what a call sends and gets."""
        visit.send, visit.cycle = self.telemetry.record(job, body, visit.send), None

    async def _deliver(self, visit: Visit, job: Job, got: dispatch.Answer | Stream) -> int:
        """Send an answer, and correct what was taken of the limits; return its status."""
        if isinstance(got, dispatch.Answer):
            status = got.status
            if self._money.ledger.durable:
                await self._money.flush()
            lines = self._lines(job, got.content)
            if got.headers:
                lines += lines_of(got.headers)
            if visit.cycle is not None:
                visit.cycle.reply(status, lines, got.body)
            else:
                await respond(visit.send, status, lines, got.body)
        else:
            lines = self._lines(job, EVENTS)
            status = await relay(got, pairs_of(lines), visit.send, self.drains, visit.cycle)
        if (waits := self._limiter.settle(job)) is not None:
            await waits
        return status

    def forget_limits(self) -> None:
        """Read the limits of the virtual keys anew."""
        self._limiter.forget()

    async def _guarded(self, visit: Visit, serve: Serve) -> None:
        """Serve a call; whatever happens, its caller hears of it and it is counted."""
        cycle, status = visit.cycle, 0
        self.in_flight += 1
        try:
            status = await serve(visit)
        except Refused as refused:
            status = await self._tell(visit, of_failure(refused.failure))
        except PackshotError as error:
            status = await self._tell(visit, _trouble(visit.job, error))
            # Who is sent away for want of room is counted; to log each would be more load.
            if status >= 500 and not isinstance(error, (Saturated, *NO_MORE)):
                self.telemetry.error(visit.job, error, visit.id)
        except CancelledError:
            status = HUNG_UP
            if cycle is None or not cycle.fired:
                raise
            await self._left(visit.job)
        except Gone:
            status = HUNG_UP
        except Exception as error:  # noqa: BLE001 - the last resort: no caller is left waiting
            self.telemetry.error(visit.job, error, visit.id)
            status = await self._tell(visit, of_error(PackshotError()))
        finally:
            self.in_flight -= 1
            if visit.share is not None:
                visit.share.give_back()
            if cycle is not None:
                cycle.cancels = False
            seconds = perf_counter() - visit.began
            surface, code, owner = visit.door.surface, visit.code, visit.owner
            self.telemetry.finished(
                visit.job, surface, status, seconds, code, owner, request=visit.refused
            )

    async def _left(self, job: Job | None) -> None:
        """Correct what a caller who hung up took of the limits, unless its stream is read on."""
        if job is None or job in self.drains:
            return
        if (waits := self._limiter.settle(job)) is not None:
            await waits

    async def _tell(self, visit: Visit, trouble: Trouble) -> int:
        """Send an error; return its status."""
        answer = trouble.answer
        visit.code = answer.code
        if visit.job is not None and visit.job.first_byte_s:
            return answer.status  # the stream had begun, and `relay` has said so in it
        if visit.job is None:
            lines = lines_of([JSON, (ID, visit.id.encode())])
        else:
            lines = self._lines(visit.job, JSON)
            if (waits := self._limiter.settle(visit.job)) is not None:
                await waits
        lines += lines_of(trouble.headers())
        await visit.respond(answer.status, lines, error_body(visit.door.surface, answer))
        return answer.status

    def _lines(self, job: Job, content: tuple[bytes, bytes]) -> bytes:
        """Return the header lines of an answer; the overhead is up to this moment, its last before
        the bytes go out. A stream's cost is not known yet, and stands in the ledger only.
        """
        cost = () if job.stream else divmod(job.cost, 1_000_000_000)
        limits, left = self._limiter.left(job)
        return (OURS + COST + limits if cost else OURS + limits) % (
            *content,
            job.id.encode(),
            job.attempts,
            (perf_counter() - job.began - job.upstream_s) * 1e6,
            b"" if job.target is None else job.target.told_of(job.key),
            REPLAYED if job.replayed else b"",
            job.cache,
            *cost,
            *left,
        )

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no call of a model: health, the list of models, mistakes."""
        path: str = scope["path"]
        if path == "/healthz":
            await respond(send, 200, OF_JSON, b'{"status":"ok"}')
        elif path == "/readyz":
            ready = not self.draining
            body = b'{"status":"ready"}' if ready else b'{"status":"draining"}'
            await respond(send, 200 if ready else 503, OF_JSON, body)
        elif (wanted := model_in(path)) is not None and scope["method"] == "GET":
            await self._models(wanted, scope, receive, send)
        else:
            known = path in DOORS or wanted is not None
            answer = Answer(
                405 if known else 404,
                "invalid_request_error",
                f"{scope['method']} is not for this path" if known else NOTHING,
                "method_not_allowed" if known else "unknown_path",
            )
            await self._turn_away(Trouble(answer), Visit(scope, receive, send, ELSEWHERE))

    async def _models(self, wanted: str, scope: Scope, receive: Receive, send: Send) -> None:
        """List the routes and models that the caller's key may use, or tell of the one wanted."""
        visit = Visit(scope, receive, send, ELSEWHERE)
        try:
            headers = dict(scope["headers"])
            client = caller_of(headers, client_of(scope), self._proxies)
            owner = self.access.authenticate(headers, client)
        except PackshotError as error:
            await self._turn_away(of_error(error), visit)
            return
        names = [name for name in self.plan.names() if owner.may_see(name)]
        anthropic = scope["path"].startswith("/anthropic")
        if wanted and wanted not in names:
            said = f"no model {wanted[:200]!r} for this key; GET /v1/models lists those there are"
            answer = Answer(404, "invalid_request_error", said, "model_not_found")
            await self._turn_away(Trouble(answer), visit)
            return
        body = (
            msgspec.json.encode(model_of(wanted, anthropic=anthropic))
            if wanted
            else models_body(names, anthropic=anthropic)
        )
        lines = lines_of([JSON, (ID, new_id().encode())])
        await respond(send, 200, lines, body)

    async def _turn_away(self, trouble: Trouble, visit: Visit) -> None:
        """Answer a request that is wrong, and no call of a model."""
        visit.began = visit.scope.get("packshot.began") or perf_counter()
        status = await self._tell(visit, trouble)
        seconds = perf_counter() - visit.began
        self.telemetry.finished(None, "other", status, seconds, visit.code, request=visit.id)


def visit_of(scope: Scope, receive: Receive, send: Send, door: Door) -> Visit:
    """Return the visit that an ASGI server tells of."""
    began = scope.get("packshot.began") or perf_counter()
    return Visit(scope, receive, send, door, began, scope.get("packshot.gone"))


def client_of(scope: Scope) -> str:
    """Return the address of a client; "" for a local socket's."""
    client = scope.get("client")
    return client[0] if client else ""


def _trouble(job: Job | None, error: PackshotError) -> Trouble:
    """Return what the caller is told of an error: of the provider's first, where there was one."""
    if job is None:
        return of_error(error)
    if job.failure is not None and isinstance(error, NO_MORE):
        return not_again(job.failure, error)
    return of_error(error, tried=job.attempts > 0)


async def respond(send: Send, status: int, lines: bytes, body: bytes) -> None:
    """Send a whole answer as ASGI has it."""
    headers = [*pairs_of(lines), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _nothing() -> None:
    """Answer what is no request."""


def model_in(path: str) -> str | None:
    """Return the model that a path asks about, "" for all of them; None where it asks for none."""
    for root in MODELS:
        if path == root or path.startswith(f"{root}/"):
            return path[len(root) + 1 :]
    return None


def model_of(name: str, *, anthropic: bool) -> dict[str, object]:
    """Return a model as OpenAI's or Anthropic's SDK reads it."""
    if anthropic:
        return {"type": "model", "id": name, "display_name": name, "created_at": EPOCH}
    return {"id": name, "object": "model", "created": 0, "owned_by": name.partition("/")[0]}


def models_body(names: list[str], *, anthropic: bool) -> bytes:
    """Return a list of models as OpenAI's or Anthropic's SDK reads it."""
    rows = [model_of(name, anthropic=anthropic) for name in names]
    if anthropic:
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return msgspec.json.encode({"data": rows, "has_more": False, **ends})
    return msgspec.json.encode({"object": "list", "data": rows})
