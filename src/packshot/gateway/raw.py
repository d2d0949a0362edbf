"""Raw pass-through: ``/raw/{provider}/{path}`` is that path of a configured provider.

For what the gateway has no door of its own for: a new endpoint, a field that nobody knows yet. The
caller's JSON goes over as it came, with our credential; the answer comes back as it came. It is
limited, held and settled like every other call. No route, fallback or retry applies, only the next
key where one is limited or refused. Where the bytes are not ours to write, no limit of output
tokens can be put in: under a budget, a call that names none is refused, and so is one of an
endpoint whose cost has no bound here. A GET, and a count of tokens, costs nothing.

A provider's account is shared: whoever may call it raw may read what lies there (files, batches).
So a virtual key that is bound to models or routes needs the pattern "provider/*" for it.
"""

from __future__ import annotations

import json
import re
from asyncio import CancelledError
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from packshot.core.errors import Forbidden, InvalidRequest, UpstreamError
from packshot.core.ids import new_id
from packshot.core.types import Usage
from packshot.gateway.access import VirtualKey
from packshot.gateway.answers import of_failure
from packshot.gateway.attempt import LATE, Attempt, hold_for
from packshot.gateway.dispatch import (
    Answer,
    Refused,
    Stream,
    Tries,
    failure_from,
    header_lines,
    read_answer,
    read_refusal,
)
from packshot.gateway.intake import Door, Scope, annotate, text_of, time_limit_s
from packshot.gateway.job import (
    MAX_CHOICES,
    Job,
    input_bound,
    is_open_ended,
    note_limits,
    open_fields,
    whole_number,
)
from packshot.gateway.keys import Key
from packshot.gateway.money import Money
from packshot.gateway.plan import Plan, Provider, Route, Target
from packshot.gateway.settings import ModelEntry, ServerEntry
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.wire.upstream import Call, Reply
from packshot.ledger.prices.usage import FORMATS, merged
from packshot.providers.base import Failure, Fields, Surface
from packshot.providers.failures import failure_of_event
from packshot.providers.framing import EventRelay, data_of

__all__ = ["PREFIX", "Asked", "RawDispatcher", "Whole", "ask", "door_of"]

PREFIX = "/raw/"
JSON_TYPE = "application/json"

PATH = re.compile(rb"/raw/([!-~]{1,100}?)/((?:[A-Za-z0-9._~:@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}|/)+)")
"""RFC 3986's characters of a path, no others; what escapes stand for is looked at besides."""

QUERY = re.compile(rb"[!-~]{0,4096}")
PLAIN = re.compile(rb"[ -~]{1,200}")
LONGEST_PATH = 2048
DEPLOYMENT = re.compile(r"openai/deployments/([^/]+)/(.+)")

OPERATIONS: dict[str, Surface] = {
    "chat/completions": "chat",
    "messages": "messages",
    "embeddings": "embeddings",
    "messages/count_tokens": "count_tokens",
}
"""The paths whose cost has an upper bound here, and how it is found."""

PICTURES = frozenset({"images/generations", "images/edits"})

FORMATS_OF = {
    "embeddings": "openai-embeddings",
    "responses": "openai-responses",
    "images/generations": "openai-images",
    "images/edits": "openai-images",
}
"""The formats of usage of paths that have one of their own."""

ENDS = frozenset(
    {
        "message_stop",
        "response.completed",
        "response.incomplete",
        "image_generation.completed",
        "image_edit.completed",
        "speech.audio.done",
        "transcript.text.done",
    }
)
"""Events that end a stream, where ``[DONE]`` does not."""

OTHER_KEY = frozenset({"rate_limit", "quota", "auth"})
"""What is the key's trouble and not the request's: the next one is tried."""

OURS = frozenset({"quota", "auth"})
"""What concerns the operator's account, and no caller: it is said in our own words."""


class _Inner(msgspec.Struct):
    usage: dict[str, Any] | None = None
    service_tier: str | None = None


class _Said(_Inner):
    """What is read of an answer or an event, whatever its API."""

    type: str = ""
    message: _Inner | str | None = None
    response: _Inner | None = None
    x_groq: dict[str, Any] | None = None
    error: Any = None


SAID = msgspec.json.Decoder(_Said)


@dataclass(frozen=True, slots=True)
class Asked:
    """A raw call: ``target`` is path and query; ``usage`` the format of the usage in its answer,
    "" for none that is known.
    """

    job: Job
    method: bytes
    target: bytes
    body: bytes
    usage: str

    @property
    def free(self) -> bool:
        """Whether the call costs nothing."""
        return self.method == b"GET" or self.job.surface == "count_tokens"


class Whole(Answer, frozen=True, eq=False):
    """An answer that goes over as it came; ``failure`` is what it says where it is a refusal."""

    failure: Failure | None = None


def door_of(path: str, plan: Plan) -> Door:
    """Return a door for errors before the call is understood: they look as the provider's do."""
    found = plan.providers.get(path[len(PREFIX) :].partition("/")[0])
    return Door("messages" if found is not None and found.row.api == "anthropic" else "chat", "raw")


def ask(
    scope: Scope,
    plan: Plan,
    owner: VirtualKey,
    headers: Mapping[bytes, bytes],
    body: bytes,
    began: float,
) -> Asked:
    """Read a raw call; nothing in it can name another host than the configuration does.

    Raises:
        InvalidRequest: the path, query, method or body is none that goes over.
        Forbidden: the virtual key may not call this provider raw.
    """
    if b"idempotency-key" in headers:
        raise InvalidRequest("a raw call takes no idempotency key: its answer is not kept")
    if scope["method"] not in {"GET", "POST"}:
        raise InvalidRequest("a raw call is GET or POST")
    name, rest = _parts(scope["raw_path"])
    provider = plan.providers.get(name)
    if provider is None:
        raise InvalidRequest(f"no provider {name[:100]!r} is configured")
    if not owner.permits_raw(name):
        raise Forbidden(
            f"the virtual key {owner.id!r} may not call {name} raw: that takes {name}/* among its"
            " models, and one of its keys"
        )
    operation, model = _operation(provider, rest)
    fields = _fields(scope["method"], body)
    model = model or _model(fields)  # a deployment answers, whatever the body says
    if fields and provider.row.content_type != JSON_TYPE:
        raise InvalidRequest(
            f"{name} takes forms, and a raw call sends JSON: ask for pictures at "
            "/v1/images/generations"
        )
    surface = OPERATIONS.get(operation, door_of(scope["path"], plan).surface)
    target = Target(provider, model, provider.entry.models.get(model, ModelEntry()))
    route = Route("", (target,))
    job = Job(
        new_id(),
        surface,
        owner,
        route,
        fields,
        model,
        False,
        began,
        monotonic() + time_limit_s(headers, provider.entry.network.timeouts.total_s),
        "raw",
        input_bound=input_bound(fields, len(body)),
        open_ended=is_open_ended(fields),
    )
    _bound(job, operation)
    annotate(job, headers)
    usage = FORMATS_OF.get(operation, provider.row.usage if operation in OPERATIONS else "")
    query = _query(provider, scope["query_string"])
    path = f"{provider.row.address.path}/{rest}".encode("ascii") + query
    return Asked(job, scope["method"].encode(), path, body, usage)


def _parts(raw_path: bytes) -> tuple[str, str]:
    """Return provider and path; a path that anybody could read as another one is refused."""
    found = PATH.fullmatch(raw_path) if len(raw_path) <= LONGEST_PATH else None
    if found is None:
        raise InvalidRequest("a raw path is /raw/PROVIDER/PATH, of the characters of a URL's path")
    for segment in found[2].split(b"/"):
        plain = unquote_to_bytes(segment)
        if plain in {b"", b".", b".."} or b"%" in plain or re.search(rb"[/\\\x00-\x20\x7f]", plain):
            raise InvalidRequest(
                "a raw path has no empty or dot segment, and no escaped slash or control character"
            )
    return found[1].decode("ascii"), found[2].decode("ascii")


def _operation(provider: Provider, rest: str) -> tuple[str, str]:
    """Return what is asked for, without version and deployment, and the model of the latter."""
    if provider.row.deployments:
        found = DEPLOYMENT.fullmatch(rest)
        return (found[2], found[1]) if found is not None else (rest, "")
    return rest, ""


def _query(provider: Provider, given: bytes) -> bytes:
    if not QUERY.fullmatch(given) or b"#" in given:
        raise InvalidRequest("a raw query is at most 4096 printable ASCII characters, without #")
    own = provider.row.query.encode("ascii")
    if own and not re.search(rb"(?:^|&)api-version=", given):
        given = given + b"&" + own if given else own
    return b"?" + given if given else b""


def _fields(method: str, body: bytes) -> Fields:
    """Return the members of the body, which may be none at all.

    A name that stands there twice is refused: the body goes over as it came, and a provider that
    takes the other ``max_tokens`` would spend what was not held.
    """
    if not body:
        return {}
    if method == "GET":
        raise InvalidRequest("a GET has no body")
    fields = open_fields(body)
    try:
        json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not plain JSON: {error}"[:300]) from error
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in one object twice")
    return found


def _model(fields: Fields) -> str:
    model = text_of(fields, "model") if "model" in fields else ""
    if len(model) > 200 or not model.isprintable():
        raise InvalidRequest("model is at most 200 printable characters")
    return model


def _bound(job: Job, operation: str) -> None:
    """Note what bounds the cost of a call, or that nothing does."""
    if operation in PICTURES:
        job.images = whole_number(job.fields, "n", MAX_CHOICES) or 1
    elif operation not in OPERATIONS:
        job.open_ended = True
    elif job.surface in {"chat", "messages"}:
        note_limits(job)


class RawDispatcher:
    """Makes raw calls."""

    def __init__(self, money: Money, telemetry: Telemetry, server: ServerEntry) -> None:
        self._money = money
        self._telemetry = telemetry
        self._server = server

    async def answer(self, asked: Asked) -> Whole | Stream:
        """Return what the provider answers, to the last key that may be tried.

        Raises:
            Refused: no key may be used, or the provider could not be reached.
            BudgetExceeded, Unbounded, Unpriced, LedgerUnavailable: the ledger refused a hold.
        """
        job = asked.job
        tries = Tries(job, job.route.targets[0], last=True)
        last: Whole | None = None
        while job.attempts < self._server.max_attempts:
            key = tries.key(monotonic())
            if key is None:
                break
            got = await self._attempt(asked, tries.target, key)
            if isinstance(got, Stream) or got.failure is None or got.failure.kind not in OTHER_KEY:
                return got
            last, tries.failure = got, got.failure
            tries.tried.append(key)
        if last is None or last.failure is None:
            raise Refused(tries.no_key(tries.ready_in()))
        if last.failure.kind in OURS:
            raise Refused(last.failure)
        return last

    async def _attempt(self, asked: Asked, target: Target, key: Key) -> Whole | Stream:
        """Make the call with one key; the attempt is ended on return, unless a stream began."""
        job, provider = asked.job, target.provider
        lines = header_lines(key, job)
        call = Call(asked.target, lines, asked.body, job.deadline, provider.timeouts, asked.method)
        hold = None
        if not asked.free:
            limit = None if job.output_limit is None else job.output_limit * job.choices
            hold = await hold_for(self._money, job, target, key, limit)
            if hold is None:
                raise Refused(Failure("timeout", 0, LATE, code="deadline"))
        attempt = Attempt(job, target, key, hold, self._money, self._telemetry)
        sent = perf_counter()
        begun = False
        try:
            reply = await provider.connections.send(call)
            if reply.status < 300 and _is_events(reply):
                stream = await self._begin(asked, attempt, reply)
                begun = True
                return stream
            return await self._whole(asked, attempt, reply)
        except UpstreamError as error:
            failure = failure_from(error, provider.name)
            attempt.fail(failure, sent=error.sent, began=error.began)
            raise Refused(failure) from error
        except CancelledError:
            attempt.abandon("the caller hung up", sent=True)
            raise
        finally:
            job.upstream_s += perf_counter() - sent
            if not begun:
                attempt.abandon("an error of the gateway's own", sent=True)

    async def _whole(self, asked: Asked, attempt: Attempt, reply: Reply) -> Whole:
        """Read the whole answer, good or bad."""
        if reply.status >= 300:
            failure, body = await read_refusal(reply)
            attempt.fail(failure, sent=True)
            if reply.status < 400:
                raise Refused(Failure("garbage", 502, "the provider sent the call elsewhere"))
            headers = of_failure(failure).headers()
        else:
            failure, headers = None, []
            body = await read_answer(reply, self._server.max_reply_bytes)
            attempt.succeed(_usage_in(body, asked.usage))
        body = _without_key(body, attempt.key, attempt.target.provider)
        headers.append((b"x-content-type-options", b"nosniff"))
        return Whole(body, reply.status, _content(reply), headers, failure)

    async def _begin(self, asked: Asked, attempt: Attempt, reply: Reply) -> Stream:
        """Wait for the first whole event."""
        relay = Meter(asked.usage)
        asked.job.stream = True
        first = b""
        try:
            while not first and relay.failure is None and (data := await reply.chunk()):
                first = relay.feed(data)
        except BaseException:
            reply.abort()
            raise
        if not first:
            reply.abort()
            failure = relay.failure or Failure("garbage", 200, "the stream had no event")
            attempt.fail(failure, sent=True)
            raise Refused(failure)
        return Stream(attempt, reply, relay, first)


class Meter(EventRelay):
    """Hands on whole events as they came, and reads what was used, and the end."""

    __slots__ = ("_format", "_said")

    def __init__(self, usage_format: str) -> None:
        super().__init__()
        self._format = usage_format
        self._said: dict[str, Any] = {}

    def _pass(self, event: bytes) -> bool:
        self._read(data_of(event))
        return self.failure is None

    def _read(self, data: bytes | None) -> None:
        if data is None:
            return
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            said = SAID.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            return  # not our business: the bytes are the caller's
        if said.error or said.type in {"error", "response.failed"}:
            self.failure = failure_of_event(data, named=True)
            return
        if found := _usages(said):
            self._said = merged([self._said, *found])  # some say it in every event
            self.usage = _usage_of([self._said], self._format)
        self.done = said.type in ENDS


def _usages(said: _Said) -> list[dict[str, Any] | None]:
    """Return the raw usages in an answer or an event, wherever its API puts them."""
    found: list[dict[str, Any] | None] = [
        {"service_tier": each.service_tier, **each.usage}
        for each in (said, said.message, said.response)
        if isinstance(each, _Inner) and each.usage
    ]
    if said.x_groq and said.x_groq.get("usage"):
        found.append({"x_groq": said.x_groq})
    return found


def _usage_of(said: list[dict[str, Any] | None], usage_format: str) -> Usage | None:
    if not usage_format or not any(said):
        return None
    try:
        return FORMATS[usage_format](merged(said))
    except InvalidRequest:
        return None  # the caller gets the answer, and the ledger books the bound that it held


def _usage_in(body: bytes, usage_format: str) -> Usage | None:
    try:
        return _usage_of(_usages(SAID.decode(body)), usage_format)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def _is_events(reply: Reply) -> bool:
    return reply.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")


def _content(reply: Reply) -> tuple[bytes, bytes]:
    said = reply.headers.get(b"content-type", b"")
    return (b"content-type", said if PLAIN.fullmatch(said) else b"application/octet-stream")


def _without_key(body: bytes, key: Key, provider: Provider) -> bytes:
    """Return an answer without our credential: a provider's error may repeat it."""
    row = provider.row
    for line in key.header.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name.decode("ascii").lower() == row.auth_header:
            secret = value.removeprefix(row.auth_prefix.encode("ascii"))
            return body.replace(secret, b"[removed]") if secret else body
    return body
