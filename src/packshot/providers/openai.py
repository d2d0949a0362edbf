"""OpenAI's API to a target that speaks it too: bytes pass, and only what costs money is read.

A request is decoded one level deep and written again: the target's model name goes in, a limit
where there is none, and for a stream the wish for usage. Answers pass as they came, the model's
name in them included: it is the one that answered, which a caller of a route wants to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from packshot.core.errors import InvalidRequest, UpstreamBroken
from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.ledger.prices.usage import FORMATS, PlainUsage, merged, openai_plain
from packshot.providers.base import Api, Failure, Fields, Surface
from packshot.providers.failures import failure_of_event
from packshot.providers.framing import EventRelay, broken, data_of, for_model, is_json
from packshot.providers.rows import ROWS, Need, Row

__all__ = ["OpenAIChat", "OpenAIEmbeddings", "OpenAIRelay", "asked_usage", "needs_of_chat"]

TRUE = msgspec.Raw(b"true")
NULL = b"null"
LF, CR = b"\n\r"
LIMITS = ("max_tokens", "max_completion_tokens")
OTHER: dict[str, str] = dict(zip(LIMITS, reversed(LIMITS), strict=True))


class _Head(msgspec.Struct):
    """What is read of an answer or a chunk; the rest is only held to be JSON."""

    choices: msgspec.Raw = msgspec.Raw(b"")
    data: msgspec.Raw = msgspec.Raw(b"")
    object: str = ""
    service_tier: str | None = None
    x_groq: dict[str, Any] | None = None
    error: Any = None


class _Usual(_Head):
    usage: PlainUsage | None = None


class _Unusual(_Head):
    usage: dict[str, Any] | None = None


class _Part(msgspec.Struct):
    type: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(NULL)
    prefix: bool | None = None


class _Options(msgspec.Struct):
    include_usage: bool | None = False


USUAL = msgspec.json.Decoder(_Usual)
UNUSUAL = msgspec.json.Decoder(_Unusual)
MESSAGES = msgspec.json.Decoder(list[_Message])
PARTS = msgspec.json.Decoder(list[_Part])
OPTIONS = msgspec.json.Decoder(_Options)
MEMBERS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
RAWS = msgspec.json.Decoder(dict[str, msgspec.Raw])
ENCODER = msgspec.json.Encoder()

STANDARD_TIERS = frozenset({None, "default", "auto", "on_demand", "standard"})
PARTS_NEED: dict[str, Need] = {"image_url": "vision", "input_audio": "audio", "file": "files"}


class OpenAIChat:
    """Chat completions to a provider that speaks OpenAI's API, as its row says."""

    surface: Surface = "chat"
    api: Api = "openai"
    path: str = "/chat/completions"

    def __init__(self, row: Row = ROWS["openai"]) -> None:
        self.row = row

    def request(self, fields: Fields, model: str, output_limit: int | None, /) -> bytes:
        """Return the body for the target; see `Exchange.request`.

        A limit under OpenAI's other name goes over under the name that the provider obeys, and what
        this gateway added to an earlier answer of Anthropic's stays behind.
        """
        out = fields.copy()
        out["model"] = msgspec.Raw(ENCODER.encode(model))
        if bytes(out.get("messages", NULL)).find(b'"thinking_blocks"') >= 0:
            out["messages"] = _without_thinking(out["messages"])
        self._limit(out, model, output_limit)
        if "stream" in out and is_json(out["stream"], b"true"):
            if not self.row.stream_usage:
                out.pop("stream_options", None)
            elif not asked_usage(out):
                out["stream_options"] = _with_usage(out.get("stream_options"))
        return ENCODER.encode(out)

    def _limit(self, out: Fields, model: str, output_limit: int | None) -> None:
        wanted = self.row.limit_field(model)
        if wanted in out and OTHER[wanted] not in out and bytes(out[wanted]) != NULL:
            return  # as nearly always: nothing is to be done
        given = [name for name in LIMITS if not is_json(out.get(name), NULL)]
        if len(given) == 2:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens mean the same: send one of them"
            )
        if given and given[0] == wanted:
            return
        if given and not (wanted == "max_tokens" and self.row.output_limit_field == "by_model"):
            out[wanted] = out.pop(given[0])
        elif not given and output_limit is not None:
            for name in LIMITS:
                out.pop(name, None)
            out[wanted] = msgspec.Raw(b"%d" % output_limit)

    def reply(self, body: bytes, _model: str, /) -> tuple[bytes, Usage | None]:
        """Return the body as it came, and its usage; see `Exchange.reply`.

        Usage that is missing, or that cannot be right, is None: the answer is the caller's all the
        same, and the ledger books the upper bound. An error under status 200 is an UpstreamBroken,
        and `failure` says which.
        """
        answer = _read(body, self.row.usage)
        if not bytes(answer.choices) or answer.error:
            raise broken("a chat completion without choices")
        return body, usage_of(answer, self.row.usage)

    def relay(self, fields: Fields, _model: str, /) -> OpenAIRelay:
        """Return a relay that takes out the usage chunk again where the caller did not ask."""
        strip = self.row.stream_usage and not asked_usage(fields)
        return OpenAIRelay(self.row.usage, strip_usage=strip)

    def needs(self, fields: Fields, /) -> Sequence[Need]:
        """Return what the request needs of a target; see `needs_of_chat`."""
        return needs_of_chat(fields)


class OpenAIEmbeddings:
    """Embeddings to a provider that speaks OpenAI's API, floats and base64 alike."""

    surface: Surface = "embeddings"
    api: Api = "openai"
    path: str = "/embeddings"

    def __init__(self, row: Row = ROWS["openai"]) -> None:
        self.row = row

    def request(self, fields: Fields, model: str, _output_limit: int | None, /) -> bytes:
        """Return the body for the target; embeddings have no output to limit."""
        return ENCODER.encode(for_model(fields, model))

    def reply(self, body: bytes, _model: str, /) -> tuple[bytes, Usage | None]:
        """Return the body as it came, and its usage; see `OpenAIChat.reply`."""
        answer = _read(body, "openai-embeddings")
        if not bytes(answer.data) or answer.error:
            raise broken("embeddings without data")
        return body, usage_of(answer, "openai-embeddings")

    def relay(self, _fields: Fields, _model: str, /) -> OpenAIRelay:
        """Refuse: there is no stream of embeddings."""
        raise InvalidRequest("embeddings are not streamed: leave stream out")

    def needs(self, _fields: Fields, /) -> Sequence[Need]:
        """Embeddings need nothing that a target may lack."""
        return ()


class OpenAIRelay(EventRelay):
    """Passes a stream on in whole events, as they came, and reads three things on the way.

    Usage, the end, and an error. Every chunk is held to be JSON, which costs less than to look for
    words in it. From an error on nothing is handed on, the error included: whoever relays says it
    in the caller's own shape (`failures.error_event`), or goes to another target if no byte went
    out yet. What is no JSON is a failure of kind "garbage".
    """

    __slots__ = ("format", "strip_usage")

    def __init__(self, usage_format: str = "openai-chat", *, strip_usage: bool = False) -> None:
        super().__init__()
        self.format = usage_format
        self.strip_usage = strip_usage

    def feed(self, data: bytes, /) -> bytes:
        """Take bytes, return whole events; see `Relay.feed`."""
        one = data.startswith(b"data: {") and data.find(b"\n") == len(data) - 2
        if one and data[-1] == LF and CR not in data and not self.splitter.rest:
            # As nearly always: one chunk on one line, whole.
            if self.done or self.failure is not None:
                return b""
            return data if self._chunk(data[6:-2]) else b""
        return super().feed(data)

    def _pass(self, event: bytes) -> bool:
        data = data_of(event)
        if data is None:
            return True
        if data.strip() == b"[DONE]":
            self.done = True
            return True
        if not event.startswith(b"data: ") and parse(event)[0].name == "error":
            self.failure = failure_of_event(data, named=True)
            return False
        return self._chunk(data)

    def _chunk(self, data: bytes) -> bool:
        """Read one chunk, and tell whether it goes to the caller."""
        try:
            chunk = _read(data, self.format)
        except UpstreamBroken as error:
            self.failure = Failure("garbage", 502, str(error))
            return False
        if chunk.error or chunk.object == "error":
            self.failure = failure_of_event(data)
            return False
        if chunk.usage is None and chunk.x_groq is None:
            return True
        usage = usage_of(chunk, self.format)
        if usage is None:
            return True
        self.usage: Usage | None = usage
        return not (self.strip_usage and bytes(chunk.choices).strip() == b"[]")


def _read(data: bytes, usage_format: str) -> _Usual | _Unusual:
    """Decode an answer or a chunk as far as it matters, the usual usage at once."""
    if usage_format not in PLAIN_FORMATS:
        return _read_unusual(data)
    try:
        return USUAL.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return _read_unusual(data)  # which tells an unusual usage from what is no JSON at all


def _read_unusual(data: bytes) -> _Unusual:
    try:
        return UNUSUAL.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise broken("an answer that is not the JSON of its API") from error


def usage_of(answer: _Usual | _Unusual, usage_format: str) -> Usage | None:
    """Return the usage in an answer or chunk, None where there is none or it cannot be right."""
    raw = answer.usage
    if isinstance(raw, PlainUsage):
        if answer.service_tier in STANDARD_TIERS and (usage := openai_plain(raw)) is not None:
            return usage
        raw = msgspec.to_builtins(raw)
    fields: dict[str, Any] = dict(raw or {})
    if not fields and answer.x_groq and answer.x_groq.get("usage"):
        fields = {"x_groq": answer.x_groq}
    if not fields:
        return None
    try:
        return FORMATS[usage_format](merged(({"service_tier": answer.service_tier}, fields)))
    except InvalidRequest:
        return None  # the caller gets the answer, and the ledger books the bound that it held


PLAIN_FORMATS = frozenset({"openai-chat", "mistral", "openrouter", "groq"})
"""The formats that are nothing else than OpenAI's."""


def needs_of_chat(fields: Fields) -> list[Need]:
    """Return what a chat completion needs of a target.

    A message that is not as the API has it needs nothing: the target will say what is wrong.
    """
    found: list[Need] = []
    if not all(is_json(fields.get(name), NULL, b"[]") for name in ("tools", "functions")):
        found.append("tools")
    form = fields.get("response_format")
    if form is not None and b'"json' in bytes(form):
        found.append("json")
    if not is_json(fields.get("audio"), NULL):
        found.append("audio")
    try:
        messages = MESSAGES.decode(fields.get("messages", b"[]"))
        if messages and messages[-1].role == "assistant":
            found.append("prefill")
        kinds = {
            part.type
            for message in messages
            if bytes(message.content).startswith(b"[")
            for part in PARTS.decode(message.content)
        }
    except msgspec.DecodeError:
        return found
    for kind, need in PARTS_NEED.items():
        if kind in kinds and need not in found:
            found.append(need)
    return found


def _without_thinking(messages: msgspec.Raw) -> msgspec.Raw:
    """Leave out what another API's model thought, which OpenAI's refuses as an unknown field."""
    try:
        turns = MEMBERS.decode(messages)
    except msgspec.DecodeError:
        return messages  # the target will say what is wrong
    for turn in turns:
        if turn.pop("thinking_blocks", None) is not None:
            turn.pop("reasoning_content", None)
    return msgspec.Raw(ENCODER.encode(turns))


def asked_usage(fields: Fields) -> bool:
    """Tell whether the caller of a stream asked for the usage chunk."""
    options = fields.get("stream_options")
    if options is None:
        return False
    try:
        return OPTIONS.decode(options).include_usage is True
    except msgspec.DecodeError:
        return False


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    """Return stream options that ask for usage, with whatever else the caller put there."""
    if options is None or is_json(options, NULL):
        return msgspec.Raw(b'{"include_usage":true}')
    try:
        out = RAWS.decode(options)
    except msgspec.DecodeError as error:
        raise InvalidRequest("stream_options must be an object") from error
    out["include_usage"] = TRUE
    return msgspec.Raw(ENCODER.encode(out))
