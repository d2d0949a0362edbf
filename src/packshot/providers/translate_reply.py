"""Anthropic's answers and streams as those of an OpenAI chat.

Thinking comes out as ``reasoning_content`` (the name that most servers of OpenAI's API use), and in
full, with its signature, as ``thinking_blocks``: who sends these back with the assistant's message
lets the model go on thinking between tool calls.
"""

from __future__ import annotations

from time import time
from typing import Any, TypeAlias, cast

import msgspec

from packshot.core.errors import UpstreamBroken
from packshot.core.sse import Splitter
from packshot.core.types import Usage
from packshot.ledger.prices.usage import merged
from packshot.providers.anthropic import messages_usage
from packshot.providers.base import Failure
from packshot.providers.failures import failure_of_event
from packshot.providers.framing import broken, data_of, events_of
from packshot.providers.translate_request import ANSWER_TOOL

__all__ = ["ChatRelay", "chat_completion"]

Json: TypeAlias = dict[str, Any]

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""What OpenAI calls the reason of the end; one that is not here yet is a stop."""

TIERS = {"standard": "default", "priority": "priority"}
NOTHING = msgspec.Raw(b"")
DONE = b"data: [DONE]\n\n"
ENCODER = msgspec.json.Encoder()


class _Block(msgspec.Struct):
    """A block of content, of any type; ``input`` stays as it came, since its text is the answer."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")
    thinking: str = ""
    signature: str = ""
    data: str = ""


class _Message(msgspec.Struct):
    id: str
    content: list[_Block]
    stop_reason: str | None = None
    usage: Json | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: msgspec.Raw = NOTHING
    partial_json: msgspec.Raw = NOTHING
    thinking: str = ""
    signature: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    message: _Message | None = None
    index: int = 0
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: Json | None = None


MESSAGE = msgspec.json.Decoder(_Message)
EVENT = msgspec.json.Decoder(_Event)


def chat_completion(body: bytes, model: str) -> tuple[bytes, Usage | None]:
    """Return the chat completion that a message is, and what was used.

    Raises:
        UpstreamBroken: it is no message, or has no stop reason.
    """
    try:
        message = MESSAGE.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise broken("an answer that is no message") from error
    if message.stop_reason is None:
        raise broken("a message without a stop reason")
    said, used = _said(message.content)
    usage = message.usage or {}
    choice: Json = {
        "index": 0,
        "message": said,
        "logprobs": None,
        "finish_reason": _finish(message.stop_reason, answered=used),
    }
    out: Json = {
        "id": message.id,
        "object": "chat.completion",
        "created": int(time()),
        "model": model,
        "choices": [choice],
        "usage": counts(usage),
    }
    if usage.get("service_tier") in TIERS:
        out["service_tier"] = TIERS[usage["service_tier"]]
    return ENCODER.encode(out), messages_usage([message.usage])


def _said(blocks: list[_Block]) -> tuple[Json, bool]:
    """Return the assistant's message, and whether its content is the input of the answer's tool."""
    texts: list[str] = []
    calls: list[Json] = []
    thinking: list[Json] = []
    answered = False
    for block in blocks:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "tool_use" and block.name == ANSWER_TOOL:
            texts, answered = [bytes(block.input).decode()], True
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": bytes(block.input).decode()}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.type in {"thinking", "redacted_thinking"}:
            thinking.append(_thought(block))
    out: Json = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if calls:
        out["tool_calls"] = calls
    if thinking:
        out["reasoning_content"] = "".join(block.get("thinking", "") for block in thinking)
        out["thinking_blocks"] = thinking
    return out, answered


def _thought(block: _Block) -> Json:
    if block.type == "redacted_thinking":
        return {"type": block.type, "data": block.data}
    return {"type": block.type, "thinking": block.thinking, "signature": block.signature}


def _finish(reason: str, *, answered: bool) -> str:
    """The call of the answer's tool is an end as any other."""
    if answered and reason == "tool_use":
        return "stop"
    return FINISH_REASONS.get(reason, "stop")


def counts(said: Json) -> Json:
    """Return OpenAI's usage: the prompt's tokens include those of the cache, unlike Anthropic's."""
    read = _count(said, "cache_read_input_tokens")
    written = _count(said, "cache_creation_input_tokens")
    prompt = _count(said, "input_tokens") + read + written
    output = _count(said, "output_tokens")
    details = said.get("output_tokens_details")
    inner = cast("Json", details) if isinstance(details, dict) else {}
    thought = _count(inner, "thinking_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def _count(said: Json, name: str) -> int:
    found = said.get(name)
    return found if isinstance(found, int) and found > 0 else 0


class ChatRelay:
    """Turns a stream of Anthropic's events into one of chat completion chunks.

    A stream ends with ``[DONE]`` only if it came to its ``message_stop``; see
    `openai.OpenAIRelay` for errors. Chunks say ``"usage": null`` where the caller asked for usage,
    as OpenAI's do.
    """

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        self.usage: Usage | None = None
        self.done = False
        self.failure: Failure | None = None
        self.include_usage = include_usage
        self._model = model
        self._splitter = Splitter()
        self._said: Json = {}
        self._head = b""
        self._first = b""
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._open: _Block | None = None
        self._thought: list[str] = []
        self._arguments = False
        self._calls = -1
        self._answered = False
        self._finished = False

    def feed(self, data: bytes, /) -> bytes:
        """Take bytes of Anthropic's stream, return whole chunks of OpenAI's; see `Relay.feed`."""
        out: list[bytes] = []
        for event in events_of(self._splitter.feed(data)):
            if self.done or self.failure is not None:
                break
            found = data_of(event)
            if found is None:
                continue
            try:
                out.append(self._event(found, event))
            except UpstreamBroken as error:
                self.failure = Failure("garbage", 502, str(error))
        return b"".join(out)

    def _event(self, data: bytes, event: bytes) -> bytes:
        try:
            found = EVENT.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            if event.startswith(b"event: error"):
                self.failure = failure_of_event(data, named=True)
                return b""
            raise broken("an event that is not of its API") from error
        if found.type == "error":
            self.failure = failure_of_event(data, named=True)
            return b""
        if found.type == "message_start" and found.message is not None:
            self._start(found.message)
            return b""
        if not self._head and found.type != "ping":
            raise broken(f"a stream that begins with {found.type[:32]}")
        out = self._read(found)
        if out:
            # The role waits for what follows it: until then another target can still take over.
            out, self._first = self._first + out, b""
        return out

    def _read(self, event: _Event) -> bytes:
        """Read an event after the first; one of a type that is new is passed over, as asked for."""
        match event.type:
            case "content_block_delta":
                return self._block_delta(event)
            case "content_block_start":
                return self._block_start(event)
            case "content_block_stop":
                return self._block_stop()
            case "message_delta":
                return self._message_delta(event)
            case "message_stop":
                return self._message_stop()
            case _:
                return b""

    def _start(self, message: _Message) -> None:
        self._head = (
            b'data: {"id":'
            + ENCODER.encode(message.id)
            + b',"object":"chat.completion.chunk","created":%d,"model":' % int(time())
            + ENCODER.encode(self._model)
            + b',"choices":['
        )
        self._used(message.usage)
        self._first = self._chunk(b'{"role":"assistant","content":"","refusal":null}')

    def _block_start(self, event: _Event) -> bytes:
        block = event.content_block
        if block is None:
            raise broken("a content_block_start without its block")
        self._open = block
        self._thought = [block.thinking]
        self._arguments = False
        if block.type == "text" and block.text:
            return self._chunk(b'{"content":%b}' % ENCODER.encode(block.text))
        if block.type == "thinking" and block.thinking:
            return self._chunk(b'{"reasoning_content":%b}' % ENCODER.encode(block.thinking))
        if block.type == "redacted_thinking":
            return self._chunk(ENCODER.encode({"thinking_blocks": [_thought(block)]}))
        if block.type != "tool_use":
            return b""
        if block.name == ANSWER_TOOL:
            self._answered = True
            return b""
        self._calls += 1
        call = {
            "index": self._calls,
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": ""},
        }
        return self._chunk(ENCODER.encode({"tool_calls": [call]}))

    def _block_delta(self, event: _Event) -> bytes:
        delta = event.delta
        if delta is None or self._open is None:
            raise broken("a content_block_delta without its block")
        if delta.type == "text_delta":
            return self._chunk(b'{"content":%b}' % _string(delta.text))
        if delta.type == "input_json_delta":
            part = _string(delta.partial_json)
            return self._argument(self._open, part) if part != b'""' else b""
        if delta.type == "thinking_delta":
            self._thought.append(delta.thinking)
            return self._chunk(b'{"reasoning_content":%b}' % ENCODER.encode(delta.thinking))
        if delta.type == "signature_delta":
            self._open.signature += delta.signature
        return b""

    def _argument(self, block: _Block, text: bytes) -> bytes:
        """Return the chunk for a piece of a tool's input, a JSON string."""
        self._arguments = True
        if block.name == ANSWER_TOOL:
            return self._chunk(b'{"content":%b}' % text)
        call = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}'
        return self._chunk(call % (self._calls, text))

    def _block_stop(self) -> bytes:
        block, self._open = self._open, None
        out = b""
        if block is not None and block.type == "thinking":
            block.thinking = "".join(self._thought)
            out = self._chunk(ENCODER.encode({"thinking_blocks": [_thought(block)]}))
        elif block is not None and block.type == "tool_use" and not self._arguments:
            # A tool without arguments sends no piece of them; OpenAI's clients read "{}".
            out = self._argument(block, ENCODER.encode(bytes(block.input).decode()))
        return out

    def _message_delta(self, event: _Event) -> bytes:
        self._used(event.usage)
        if event.delta is None or event.delta.stop_reason is None or self._finished:
            return b""
        self._finished = True
        return self._chunk(b"{}", _finish(event.delta.stop_reason, answered=self._answered))

    def _message_stop(self) -> bytes:
        if not self._finished:
            raise broken("a stream that ended without a stop reason")
        self.done = True
        if not self.include_usage:
            return DONE
        usage = ENCODER.encode(counts(self._said))
        return b"%b],%b%b}\n\n%b" % (self._head, b'"usage":', usage, DONE)

    def _used(self, usage: Json | None) -> None:
        self._said = merged([self._said, usage])
        self.usage = messages_usage([self._said])

    def _chunk(self, delta: bytes, finish: str = "") -> bytes:
        reason = b'"%b"' % finish.encode() if finish else b"null"
        return b'%b{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b' % (
            self._head,
            delta,
            reason,
            self._tail,
        )


def _string(raw: msgspec.Raw) -> bytes:
    """Return a JSON string as it came, to be put into a chunk without a look inside."""
    text = bytes(raw)
    if not text.startswith(b'"'):
        raise broken("a delta that is no text")
    return text
