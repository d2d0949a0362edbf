"""Between an answer that is whole and one that is streamed, for OpenAI's and Anthropic's chats.

One entry serves both kinds of caller. ``whole_of`` puts the events of a stream together to the body
that the provider would have sent at once, and gives up (None) at anything that it does not know:
such an answer is not kept. ``events_of`` tells a body as a stream. ``is_good`` says whether an
answer is one that may be kept: it came to a proper end, and says something.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from packshot.core.sse import encode, parse
from packshot.core.types import Usage
from packshot.providers.base import Surface

__all__ = ["events_of", "is_good", "text_of", "whole_of"]

Json = dict[str, Any]
READ = msgspec.json.Decoder(Json).decode
WRITE = msgspec.json.Encoder().encode

GOOD_ENDS = frozenset({"stop", "length", "tool_calls", "function_call"})
GOOD_STOPS = frozenset({"end_turn", "max_tokens", "stop_sequence", "tool_use"})
"""Not refusals, filters and pauses."""

JOINED = frozenset({"content", "reasoning_content", "reasoning", "refusal"})
"""Texts of a delta that follow one another."""


def is_good(surface: Surface, body: bytes) -> bool:
    """Tell whether the body of a 200 is an answer to keep, which can be told as a stream, too."""
    try:
        answer = READ(body)
        if surface == "embeddings":
            return bool(answer.get("data"))
        if surface == "messages":
            good = answer.get("stop_reason") in GOOD_STOPS and bool(answer.get("content"))
        else:
            choices: list[Json] = answer.get("choices") or []
            good = bool(choices) and all(_is_good_choice(each) for each in choices)
        return good and bool(events_of(surface, body, usage=True))
    except (msgspec.MsgspecError, RecursionError, AttributeError, KeyError, TypeError):
        return False


def text_of(surface: Surface, body: bytes) -> str:
    """Return the text of a whole answer; "" where it has none, or is not understood."""
    try:
        answer = READ(body)
        if surface == "messages":
            return "\n".join(each["text"] for each in answer["content"] if each["type"] == "text")
        return "\n".join(each["message"]["content"] or "" for each in answer["choices"])
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError):
        return ""


def _is_good_choice(choice: Json) -> bool:
    message: Json = choice.get("message") or {}
    says: object = (
        message.get("content") or message.get("tool_calls") or message.get("function_call")
    )
    return choice.get("finish_reason") in GOOD_ENDS and bool(says) and not message.get("refusal")


# ---------------------------------------------------------------- from a stream
def whole_of(surface: Surface, stream: bytes, usage: Usage | None) -> bytes | None:
    """Return the whole answer that a stream's events tell; None where they tell of what is not
    known here. ``usage`` stands in for a usage that the caller's stream does not have.
    """
    try:
        events = [READ(each.data) for each in parse(stream) if each.data.strip() != b"[DONE]"]
        answer = _chat_of(events, usage) if surface == "chat" else _message_of(events)
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return None if answer is None else WRITE(answer)


def _chat_of(chunks: list[Json], usage: Usage | None) -> Json | None:
    if not chunks:
        return None
    head = {name: value for name, value in chunks[0].items() if name not in {"choices", "usage"}}
    choices: dict[int, Json] = {}
    said: Json | None = None
    for chunk in chunks:
        said = chunk.get("usage") or said
        told: list[Json] = chunk.get("choices") or []
        for each in told:
            choice = choices.setdefault(
                each["index"],
                {
                    "index": each["index"],
                    "message": {"role": "assistant", "content": None},
                    "logprobs": None,
                    "finish_reason": None,
                },
            )
            if not _add_delta(choice, each):
                return None
    if said is None and usage is not None:
        said = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
    rows = [choices[at] for at in sorted(choices)]
    whole: Json = {**head, "object": "chat.completion", "choices": rows}
    return whole if said is None else {**whole, "usage": said}


def _add_delta(choice: Json, each: Json) -> bool:
    """Add what one chunk says of a choice; false for what is not known here."""
    message: Json = choice["message"]
    delta: Json = each.get("delta") or {}
    for name, value in delta.items():
        if value is None or name == "role":
            continue
        if name in JOINED:
            message[name] = (message.get(name) or "") + value
        elif name == "tool_calls":
            calls: list[Json] = message.setdefault("tool_calls", [])
            parts: list[Json] = value
            for part in parts:
                _add_call(calls, part)
        else:
            return False
    probabilities = each.get("logprobs")
    if probabilities:
        kept: Json = choice["logprobs"] or {}
        for name, rows in probabilities.items():
            kept[name] = (kept.get(name) or []) + (rows or [])
        choice["logprobs"] = kept
    choice["finish_reason"] = each.get("finish_reason") or choice["finish_reason"]
    return True


def _add_call(calls: list[Json], part: Json) -> None:
    at: int = part["index"]
    if at == len(calls):
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[at]
    said: Json = part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    call["type"] = part.get("type") or call["type"]
    call["function"]["name"] = said.get("name") or call["function"]["name"]
    call["function"]["arguments"] += said.get("arguments") or ""


def _message_of(events: list[Json]) -> Json | None:
    message: Json | None = None
    inputs: dict[int, str] = {}
    for event in events:
        if event["type"] == "message_start":
            message = {**event["message"], "content": []}
        elif event["type"] not in {"ping", "message_stop"} and (
            message is None or not _add_event(message, event, inputs)
        ):
            return None
    return message


def _add_event(message: Json, event: Json, inputs: dict[int, str]) -> bool:
    """Add what an event says to a message; false for what is not known here."""
    match event["type"]:
        case "content_block_start":
            message["content"].append({**event["content_block"]})
        case "content_block_delta":
            return _add_to_block(message["content"][event["index"]], event, inputs)
        case "content_block_stop":
            if text := inputs.get(event["index"]):
                message["content"][event["index"]]["input"] = READ(text.encode())
        case "message_delta":
            message |= event["delta"]
            message["usage"] = {**(message.get("usage") or {}), **(event.get("usage") or {})}
        case _:
            return False
    return True


def _add_to_block(block: Json, event: Json, inputs: dict[int, str]) -> bool:
    delta: Json = event["delta"]
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "signature_delta":
            block["signature"] = (block.get("signature") or "") + delta["signature"]
        case "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        case "input_json_delta":
            inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
        case _:
            return False
    return True


# ---------------------------------------------------------------- to a stream
def events_of(surface: Surface, body: bytes, *, usage: bool) -> bytes:
    """Tell a whole answer as a stream; ``usage`` with OpenAI's last chunk, that has it."""
    answer = READ(body)
    if surface == "messages":
        return b"".join(encode(WRITE(each), each["type"]) for each in _message_events(answer))
    chunks = _chunks(answer, usage=usage)
    return b"".join(encode(WRITE(each)) for each in chunks) + encode(b"[DONE]")


def _chunks(answer: Json, *, usage: bool) -> list[Json]:
    head = {name: value for name, value in answer.items() if name not in {"choices", "usage"}}
    head["object"] = "chat.completion.chunk"
    more: Json = {"usage": None} if usage else {}
    made: list[Json] = []
    for choice in answer["choices"]:
        message: Json = {**choice["message"]}
        calls = cast("list[Json] | None", message.pop("tool_calls", None))
        first = {"role": message.pop("role", "assistant"), "content": message.pop("content", None)}
        deltas: list[Json] = [{**first, **{name: each for name, each in message.items() if each}}]
        deltas += [{"tool_calls": [{"index": at, **call}]} for at, call in enumerate(calls or [])]
        for at, delta in enumerate(deltas):
            told: Json = {"index": choice["index"], "delta": delta, "finish_reason": None}
            told["logprobs"] = None if at else choice.get("logprobs")
            made.append({**head, "choices": [told], **more})
        end: Json = {"index": choice["index"], "delta": {}, "logprobs": None}
        end["finish_reason"] = choice["finish_reason"]
        made.append({**head, "choices": [end], **more})
    if usage and answer.get("usage"):
        made.append({**head, "choices": [], "usage": answer["usage"]})
    return made


def _message_events(message: Json) -> list[Json]:
    usage: Json = message.get("usage") or {}
    open_: Json = {"content": [], "stop_reason": None, "stop_sequence": None}
    begun: Json = {**message, **open_, "usage": {**usage, "output_tokens": 0}}
    made: list[Json] = [{"type": "message_start", "message": begun}]
    for at, block in enumerate(message["content"]):
        start, deltas = _block_events(block)
        made.append({"type": "content_block_start", "index": at, "content_block": start})
        made += [{"type": "content_block_delta", "index": at, "delta": each} for each in deltas]
        made.append({"type": "content_block_stop", "index": at})
    ended = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    made.append({"type": "message_delta", "delta": ended, "usage": usage})
    return [*made, {"type": "message_stop"}]


def _block_events(block: Json) -> tuple[Json, list[Json]]:
    """Return a block as it begins, and the deltas that fill it."""
    match block.get("type"):
        case "text":
            notes: list[Json] = block.get("citations") or []
            cited = [{"type": "citations_delta", "citation": note} for note in notes]
            said: Json = {"type": "text_delta", "text": block["text"]}
            start: Json = {**block, "text": ""}
            return ({**start, "citations": []} if cited else start), [said, *cited]
        case "thinking":
            deltas: list[Json] = [{"type": "thinking_delta", "thinking": block["thinking"]}]
            if block.get("signature"):
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {**block, "thinking": "", "signature": ""}, deltas
        case "tool_use":
            filled = WRITE(block["input"]).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": filled}]
        case _:
            return block, []
