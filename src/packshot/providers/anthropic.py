"""Anthropic's API to Anthropic: bytes pass, and only what costs money is read.

As with OpenAI's (`openai`), a request is decoded one level deep and written again with the target's
model, and answers pass as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.ledger.prices.usage import FORMATS, merged
from packshot.providers.base import Api, Failure, Fields, Surface
from packshot.providers.failures import failure_of_event
from packshot.providers.framing import EventRelay, broken, data_of, for_model, is_json
from packshot.providers.rows import ROWS, Need, Row

__all__ = ["AnthropicCountTokens", "AnthropicMessages", "AnthropicRelay", "messages_usage"]

ENCODER = msgspec.json.Encoder()


class _Message(msgspec.Struct):
    """What is read of a message; the rest is only held to be JSON."""

    content: msgspec.Raw = msgspec.Raw(b"")
    usage: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    usage: dict[str, Any] | None = None


class _Block(msgspec.Struct):
    type: str = ""


class _Turn(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b"")


class _OutputConfig(msgspec.Struct):
    format: dict[str, Any] | None = None


class _Counted(msgspec.Struct):
    input_tokens: int


MESSAGE = msgspec.json.Decoder(_Message)
EVENT = msgspec.json.Decoder(_Event)
TURNS = msgspec.json.Decoder(list[_Turn])
BLOCKS = msgspec.json.Decoder(list[_Block])
OUTPUT_CONFIG = msgspec.json.Decoder(_OutputConfig)
COUNTED = msgspec.json.Decoder(_Counted)

BLOCKS_NEED: dict[str, Need] = {"image": "vision", "document": "files"}


class AnthropicMessages:
    """Messages to Anthropic, or to who speaks as it does."""

    surface: Surface = "messages"
    api: Api = "anthropic"
    path: str = "/messages"

    def __init__(self, row: Row = ROWS["anthropic"]) -> None:
        self.row = row

    def request(self, fields: Fields, model: str, output_limit: int | None, /) -> bytes:
        """Return the body for the target: the API wants ``max_tokens``, a limit is put in."""
        out = for_model(fields, model)
        if output_limit is not None and is_json(out.get("max_tokens"), b"null"):
            out["max_tokens"] = msgspec.Raw(b"%d" % output_limit)
        return ENCODER.encode(out)

    def reply(self, body: bytes, _model: str, /) -> tuple[bytes, Usage | None]:
        """Return the body as it came, and its usage, None where that cannot be right."""
        try:
            message = MESSAGE.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise broken("an answer that is not the JSON of its API") from error
        if not bytes(message.content):
            raise broken("a message without content")
        return body, messages_usage([message.usage])

    def relay(self, _fields: Fields, _model: str, /) -> AnthropicRelay:
        """Return a relay that hands on every event as it came."""
        return AnthropicRelay()

    def needs(self, fields: Fields, /) -> Sequence[Need]:
        """Return what the request needs of a target; what is malformed needs nothing."""
        return _needs(fields)


class AnthropicCountTokens:
    """The count of a message's tokens, which is free of charge."""

    surface: Surface = "count_tokens"
    api: Api = "anthropic"
    path: str = "/messages/count_tokens"

    def __init__(self, row: Row = ROWS["anthropic"]) -> None:
        self.row = row

    def request(self, fields: Fields, model: str, _output_limit: int | None, /) -> bytes:
        """Return the body for the target; nothing comes out that could be limited."""
        return ENCODER.encode(for_model(fields, model))

    def reply(self, body: bytes, _model: str, /) -> tuple[bytes, Usage | None]:
        """Return the body as it came; nothing was used."""
        try:
            COUNTED.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise broken("a count without input_tokens") from error
        return body, Usage("caption")

    def relay(self, _fields: Fields, _model: str, /) -> AnthropicRelay:
        """Refuse: there is no stream of a count."""
        raise InvalidRequest("a count of tokens is not streamed: leave stream out")

    def needs(self, fields: Fields, /) -> Sequence[Need]:
        """Return what the request needs of a target."""
        return _needs(fields)


class AnthropicRelay(EventRelay):
    """Passes a stream of messages on in whole events, as they came.

    What the provider used is known in part from its first event on, and finally once `done`. An
    event that is no JSON is a failure of kind "garbage".
    """

    __slots__ = ("said",)

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, Any] = {}

    def _pass(self, event: bytes) -> bool:
        """Read one event, and tell whether it goes to the caller."""
        data = data_of(event)
        if data is None:
            return True
        try:
            found = EVENT.decode(data)
        except (msgspec.DecodeError, RecursionError):
            named = any(each.name == "error" for each in parse(event))
            self.failure = (
                failure_of_event(data, named=True)
                if named
                else Failure("garbage", 502, "the provider sent an event that is not of its API")
            )
            return False
        if found.type == "error":
            self.failure = failure_of_event(data)
            return False
        if found.type == "message_start" and found.message is not None:
            self._used(found.message.usage)
        elif found.type == "message_delta":
            self._used(found.usage)
        elif found.type == "message_stop":
            self.done = True
        return True

    def _used(self, usage: dict[str, Any] | None) -> None:
        self.said = merged([self.said, usage])
        self.usage = messages_usage([self.said])


def messages_usage(said: Sequence[dict[str, Any] | None]) -> Usage | None:
    """Return the usage that a message or a stream's events make; None where it cannot be right."""
    whole = merged(said)
    try:
        return FORMATS["anthropic"](whole) if whole else None
    except InvalidRequest:
        return None  # the caller gets the answer, and the ledger books the bound that it held


def _needs(fields: Fields) -> list[Need]:
    found: list[Need] = []
    if not is_json(fields.get("tools"), b"null", b"[]"):
        found.append("tools")
    try:
        if "output_config" in fields and OUTPUT_CONFIG.decode(fields["output_config"]).format:
            found.append("json")
        turns = TURNS.decode(fields.get("messages", b"[]"))
        kinds = {
            block.type
            for turn in turns
            if bytes(turn.content).startswith(b"[")
            for block in BLOCKS.decode(turn.content)
        }
    except msgspec.DecodeError:
        return found
    if turns and turns[-1].role == "assistant":
        found.append("prefill")
    found.extend(need for kind, need in BLOCKS_NEED.items() if kind in kinds)
    return found
