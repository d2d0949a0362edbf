"""The admin API: virtual keys, what they spent, what is well, and a reload; on a port of its own.

Every path stands in `ROUTES` with the role that it needs, and is built from there; whatever is not
in it is refused before anybody looks whether it exists. It speaks JSON only, to programs only: a
request that a browser sent for a page (it has an ``Origin``) is refused, so there is nothing to
forge. Serve it on loopback, or behind TLS.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from packshot.core.clock import wall_us
from packshot.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    LedgerUnavailable,
    PackshotError,
    RateLimited,
    Unauthorized,
    UnknownVirtualKey,
)
from packshot.core.money import show_eur
from packshot.gateway.access import FAILURES, neighbourhood
from packshot.gateway.cache.entry import Purge
from packshot.gateway.keystore import (
    AuditRow,
    KeyRow,
    KeyStore,
    entry_of,
    settings_of,
    with_defaults,
)
from packshot.gateway.snapshots import CONTENT_TYPE
from packshot.gateway.virtual_key import DefaultsEntry, VirtualKeyEntry, micros_of
from packshot.gateway.waits import LONGEST_S
from packshot.ledger.periods import label_of
from packshot.state.limits import Ask, MemoryLimits

if TYPE_CHECKING:
    from packshot.ledger.stores.table_store import TableStore

__all__ = [
    "ROUTES",
    "AdminDesk",
    "AdminRoute",
    "Role",
    "admin_app",
    "no_purge",
    "spending_of",
]

Role: TypeAlias = Literal["anybody", "local", "admin"]
""""local": anybody on this machine without a secret, others with it."""
Answer: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

MAX_BODY = 64 << 10
"""Bytes of a request: the largest key, with 256 patterns in each list, has about as many."""

MAX_AUDIT = 1000
"""Entries of the trail in one answer."""

MOST_MODELS = 100
"""Models in a key's spending, the dearest first; the sums have all."""

ADDRESSES = 1024
LOOPBACK = frozenset({"127.0.0.1", "::1"})
HOST = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
NO_BODY: Mapping[str, Any] = {}

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "content-type": "application/json",
    "x-content-type-options": "nosniff",
}

STATUS: dict[type[PackshotError], int] = {
    BodyTooLarge: 413,
    UnknownVirtualKey: 404,
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    RateLimited: 429,
    LedgerUnavailable: 503,
}

decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
"""Amounts of money never pass through a float."""


def no_spending(_: str) -> Answer:
    """Say that nobody knows what a key spent: no ledger was given."""
    return {}


def nothing_known() -> Answer:
    """Say nothing about health beyond that this answers."""
    return {}


def no_metrics() -> str:
    """Return an empty page."""
    return ""


async def no_reload() -> Sequence[str]:
    """Refuse a reload where none was given."""
    raise InvalidRequest("this gateway cannot reload")


async def no_purge(_: Purge) -> int:
    """Refuse to purge a cache that there is not."""
    raise InvalidRequest("this gateway has no response cache: semantic_cache.enabled is false")


@dataclass(frozen=True, slots=True)
class AdminDesk:
    """What the API works with.

    ``configured`` returns the keys of the file, ``spending`` what a key spent (in a thread),
    ``health`` breakers and counters, and ``reload`` reads the configuration again and returns what
    is to be said of it. ``metrics`` returns the page for Prometheus (in a thread), ``defaults``
    what a key gets that is issued without a budget or limits.
    """

    store: KeyStore
    secret: bytes = field(repr=False)
    configured: Callable[[], Sequence[VirtualKeyEntry]] = tuple
    spending: Callable[[str], Answer] = no_spending
    health: Callable[[], Answer] = nothing_known
    reload: Callable[[], Awaitable[Sequence[str]]] = no_reload
    metrics: Callable[[], str] = no_metrics
    defaults: Callable[[], DefaultsEntry] = DefaultsEntry
    purge: Callable[[Purge], Awaitable[int]] = no_purge


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that was let in: path and query, the JSON of its body, and who asks."""

    parameters: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]
    actor: str


Handler: TypeAlias = Callable[[AdminDesk, Visit], Awaitable[tuple[int, Answer | str]]]


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """A path with its method, the role that it needs, and what it does."""

    method: Literal["GET", "POST"]
    path: str
    role: Role
    handler: Handler


# ---------------------------------------------------------------- what each path does
async def alive(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Tell that the API answers, and nothing else."""
    del desk, ask
    return 200, {"status": "ok"}


async def list_keys(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """List the keys, of the file and issued; with ``?revoked=true`` also those that ended."""
    rows = await _thread(partial(desk.store.rows, revoked=ask.query.get("revoked") == "true"))
    return 200, {
        "configured": [settings_of(entry) for entry in desk.configured()],
        "issued": [shown(row) for row in rows],
    }


async def create_key(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Issue a key: the one answer that has its secret, and says what came of the defaults."""
    entry, given = with_defaults(ask.body, desk.defaults())
    if any(entry.id == each.id for each in desk.configured()):
        entry, given = entry_of(ask.body), ()  # what it may do stands in the file
    secret = await _thread(partial(desk.store.create, entry, ask.actor))
    key = shown(await _row(desk, entry.id))
    return 201, {"key": key, "secret": secret, "defaulted": list(given)}


async def get_key(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Show an issued key."""
    return 200, {"key": shown(await _row(desk, ask.parameters["id"]))}


async def rotate_key(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Give a key a new secret; the old one ends now, or after ``grace_s`` seconds."""
    grace = ask.body.get("grace_s", 0)
    if set(ask.body) - {"grace_s"} or isinstance(grace, bool) or not isinstance(grace, int):
        raise InvalidRequest("expected nothing, or grace_s, a whole number of seconds")
    row = await _row(desk, ask.parameters["id"])
    secret = await _thread(partial(desk.store.rotate, row.id, ask.actor, grace))
    return 200, {"key": shown(await _row(desk, row.id)), "secret": secret}


async def revoke_key(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """End a key for ever."""
    row = await _row(desk, ask.parameters["id"])
    await _thread(partial(desk.store.revoke, row.id, ask.actor))
    return 200, {"key": shown(await _row(desk, row.id))}


async def spending(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Tell what a key spent, of the file or issued."""
    wanted = ask.parameters["id"]
    if wanted not in {entry.id for entry in desk.configured()}:
        await _row(desk, wanted)
    return 200, {"id": wanted, **await _thread(partial(desk.spending, wanted))}


async def audit(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Show the last entries of the trail, of ``?key=`` or all, at most ``?limit=``."""
    limit = ask.query.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_AUDIT):
        raise InvalidRequest(f"limit is 1 to {MAX_AUDIT}")
    rows = await _thread(partial(desk.store.audit, ask.query.get("key", ""), int(limit)))
    broken = await _thread(desk.store.check_audit)
    return 200, {"entries": [entry_shown(row) for row in rows], "broken_at": broken}


async def health(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Show breakers, keys that cool down, and counters."""
    del ask
    return 200, desk.health()


async def metrics(desk: AdminDesk, ask: Visit) -> tuple[int, str]:
    """Show the metrics of all workers in Prometheus' text format."""
    del ask
    return 200, await _thread(desk.metrics)


async def reload(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Read the configuration again; a bad file changes nothing and is told here."""
    del ask
    return 200, {"notes": list(await desk.reload())}


async def purge(desk: AdminDesk, ask: Visit) -> tuple[int, Answer]:
    """Throw cached answers away: ``{"by": "scope", "value": "key:ID"}``; see `Purge`."""
    try:
        what = msgspec.convert(ask.body, Purge)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"{error}; expected by: all, key, tag, route or scope, and its value"
        ) from error
    return 200, {"purged": await desk.purge(what)}


ROUTES: tuple[AdminRoute, ...] = (
    AdminRoute("GET", "/healthz", "anybody", alive),
    AdminRoute("GET", "/metrics", "local", metrics),
    AdminRoute("GET", "/admin/keys", "admin", list_keys),
    AdminRoute("POST", "/admin/keys", "admin", create_key),
    AdminRoute("GET", "/admin/keys/{id}", "admin", get_key),
    AdminRoute("POST", "/admin/keys/{id}/rotate", "admin", rotate_key),
    AdminRoute("POST", "/admin/keys/{id}/revoke", "admin", revoke_key),
    AdminRoute("GET", "/admin/keys/{id}/spending", "admin", spending),
    AdminRoute("GET", "/admin/audit", "admin", audit),
    AdminRoute("GET", "/admin/health", "admin", health),
    AdminRoute("POST", "/admin/reload", "admin", reload),
    AdminRoute("POST", "/admin/cache/purge", "admin", purge),
)
"""All there is. No path takes a command, a file's name, a template, or a URL."""


# ---------------------------------------------------------------- the application
def admin_app(desk: AdminDesk) -> ASGIApp:
    """Return the API as an ASGI application. `Guard.inner` of it is the Starlette application."""
    routes = [
        Route(each.path, partial(_serve, desk, each), methods=[each.method]) for each in ROUTES
    ]
    inner = Starlette(
        routes=routes, exception_handlers={HTTPException: _not_here, Exception: _ours}
    )
    return Guard(inner, desk.secret)


async def _not_here(request: Request, error: Exception) -> Response:
    """Say that a path, or a method of it, is not there: to those who may know."""
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = "there is nothing here" if status == 404 else "this method is not for this path"
    return _json(status, {"error": {"type": "not_found", "message": said}})


async def _ours(request: Request, error: Exception) -> Response:
    """Say that something is wrong with us, and nothing of what: the server's log has it."""
    del request, error
    return _failed(PackshotError())


class Guard:
    """Lets in whoever has the admin secret, and anybody to what is for anybody; nobody else."""

    def __init__(self, inner: Starlette, secret: bytes) -> None:
        self.inner = inner
        self._digest = sha256(secret).digest()
        self._open = {(each.method, each.path) for each in ROUTES if each.role == "anybody"}
        self._local = {(each.method, each.path) for each in ROUTES if each.role == "local"}
        self._failures = MemoryLimits(max_keys=ADDRESSES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            if (scope["method"], scope["path"]) not in self._open and not self._near(scope):
                self._check(scope)
        except PackshotError as error:
            await _failed(error)(scope, receive, send)
            return
        await self.inner(scope, receive, send)

    def _near(self, scope: Scope) -> bool:
        """Tell whether it is for anybody on this machine, and comes from there.

        A page of the web whose name was made to point here sends that name as ``Host``; a proxy
        says whom it speaks for.
        """
        if (scope["method"], scope["path"]) not in self._local:
            return False
        headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope.get("client")
        return (
            client is not None
            and client[0] in LOOPBACK
            and HOST.fullmatch(headers.get(b"host", b"")) is not None
            and not any(name in headers for name in (b"origin", b"forwarded", b"x-forwarded-for"))
        )

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if b"origin" in headers:
            raise Forbidden("the admin API is not for web pages")
        given = headers.get(b"authorization", b"")
        # Digests of one length: nothing is told about the secret's, nor by the time it takes.
        digest = sha256(given[7:]).digest()
        if given[:7].lower() == b"bearer " and hmac.compare_digest(digest, self._digest):
            return
        client = scope.get("client")
        address = neighbourhood(client[0] if client else "")
        if self._failures.take_now([Ask(address, FAILURES)]) is not None:
            raise RateLimited("too many calls without the admin secret", 60.0)
        raise Unauthorized(
            "send the admin secret as Authorization: Bearer …; unless access.admin_secret sets it, "
            "it is in the file admin-secret of the gateway's state folder"
        )


async def _serve(desk: AdminDesk, route: AdminRoute, request: Request) -> Response:
    """Answer one request; every error becomes JSON, and none shows what is inside."""
    try:
        body = await _body(request) if route.method == "POST" else NO_BODY
        client = request.client.host if request.client else "local"
        ask = Visit(request.path_params, request.query_params, body, f"admin@{client}")
        status, answer = await route.handler(desk, ask)
    except PackshotError as error:
        return _failed(error)
    if isinstance(answer, str):
        return Response(answer, status, {**HEADERS, "content-type": CONTENT_TYPE})
    return _json(status, answer)


async def _body(request: Request) -> Mapping[str, Any]:
    """Return the JSON object of a request's body; an empty one is an empty object."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise BodyTooLarge(f"the body is longer than {MAX_BODY} bytes")
        parts.append(part)
    if not size:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest("content-type must be application/json")
    try:
        return decode(b"".join(parts))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ArithmeticError) as error:
        raise InvalidRequest("the body is not a JSON object") from error


async def _row(desk: AdminDesk, key_id: str) -> KeyRow:
    return await _thread(partial(desk.store.row, key_id))


async def _thread(work: Callable[[], T]) -> T:
    """Run what waits for a database in a thread of the pool: 40 at the most, says anyio.

    Raises:
        LedgerUnavailable: it did not end in time; the thread goes on.
    """
    try:
        async with asyncio.timeout(LONGEST_S):
            return await run_sync(work, abandon_on_cancel=True)
    except TimeoutError:
        raise LedgerUnavailable(f"no answer of the store within {LONGEST_S:g} s") from None


def _failed(error: PackshotError) -> Response:
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    said = str(error) if status < 500 else "the store is away" if status == 503 else "it failed"
    answer = {"error": {"type": type(error).__name__, "message": said}}
    retry = {"retry-after": "60"} if status == 429 else {}
    return _json(status, answer, retry)


def _json(status: int, answer: Answer, more: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(answer), status, {**HEADERS, **(more or {})})


def shown(row: KeyRow) -> dict[str, Any]:
    """Return a key as it is shown: its settings and times (microseconds since 1970; 0: never)."""
    times = {
        "created_at": row.created_at,
        "rotated_at": row.rotated_at,
        "revoked_at": row.revoked_at,
    }
    return {**settings_of(row.entry), **times}


def entry_shown(row: AuditRow) -> dict[str, Any]:
    """Return an entry of the trail as it is shown."""
    before, after = (msgspec.Raw(each.encode() or b"null") for each in (row.before, row.after))
    head = {"seq": row.seq, "at": row.at, "actor": row.actor, "action": row.action}
    return {**head, "key": row.key_id, "before": before, "after": after}


def spending_of(store: TableStore, key_id: str) -> Answer:
    """Return what the ledger's store has booked for a virtual key, this month (UTC) and ever.

    It lags behind the calls by what is in the journals still.
    """
    since = micros_of(f"{label_of('month', wall_us())}-01")
    sql = (
        "SELECT provider, model, sum(attempts), sum(amount), sum(unpriced),"
        " sum(CASE WHEN hour >= ? THEN amount ELSE 0 END) FROM rollups"
        " WHERE virtual_key = ? GROUP BY provider, model ORDER BY sum(amount) DESC"
    )
    rows = store.query(sql, (since, key_id))
    return {
        "eur": show_eur(sum(row[3] for row in rows), 9),
        "eur_this_month": show_eur(sum(row[5] for row in rows), 9),
        "attempts": sum(row[2] for row in rows),
        "unpriced": sum(row[4] for row in rows),
        "models": [
            {
                "provider": row[0],
                "model": row[1],
                "attempts": row[2],
                "eur": show_eur(row[3], 9),
                "eur_this_month": show_eur(row[5], 9),
                "unpriced": row[4],
            }
            for row in rows[:MOST_MODELS]
        ],
    }
