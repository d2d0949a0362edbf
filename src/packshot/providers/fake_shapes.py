"""The fake provider's answers as OpenAI and Anthropic write them: bodies, events and errors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from packshot.core.sse import encode as event
from packshot.core.types import Usage
from packshot.providers.fake_answers import Answer, Asked
from packshot.providers.fake_script import Fault

__all__ = [
    "Events",
    "anthropic_body",
    "anthropic_events",
    "anthropic_usage",
    "error_body",
    "error_headers",
    "error_in_stream",
    "models_body",
    "openai_body",
    "openai_embedding_usage",
    "openai_events",
    "openai_usage",
]

Json: TypeAlias = dict[str, Any]
Events: TypeAlias = tuple[list[bytes], list[int]]
"""The events of a stream, and how many tokens came out when each was sent."""

encode = msgspec.json.encode

OPENAI_FINISH = {"stop": "stop", "length": "length", "tool": "tool_calls"}
ANTHROPIC_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OPENAI_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "billing_not_active"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable", None),
}
CODES = {
    "quota": "insufficient_quota",
    "context": "context_length_exceeded",
    "filter": "content_filter",
    "auth": "invalid_api_key",
    "not_found": "model_not_found",
}
MESSAGES = {
    "quota": "You exceeded your current quota, please check your plan and billing details.",
    "context": "This model's maximum context length is 200000 tokens.",
    "filter": "The response was filtered due to the prompt triggering content management policy.",
    "auth": "Incorrect API key provided.",
    "not_found": "The model does not exist or you do not have access to it.",
}
ANTHROPIC_MESSAGES = {
    "quota": "Your credit balance is too low to access the Anthropic API.",
    "context": "prompt is too long: 200001 tokens > 200000 maximum",
    "filter": "Output blocked by content filtering policy",
}


def openai_usage(usage: Usage, says: str = "true", reasoning: int = 0) -> Json | None:
    """Return a usage of ``/chat/completions``; ``says`` is how it lies, see `Fault.usage`."""
    if says == "absent":
        return None
    into, out, cached = _told(usage, says)
    return {
        "prompt_tokens": into,
        "completion_tokens": out,
        "total_tokens": into + out,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": min(reasoning, max(out, 0)),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def openai_embedding_usage(usage: Usage, says: str = "true") -> Json | None:
    """Return a usage of ``/embeddings``."""
    if says == "absent":
        return None
    into = _told(usage, says)[0]
    return {"prompt_tokens": into, "total_tokens": into}


def anthropic_usage(usage: Usage, says: str = "true") -> Json | None:
    """Return a usage of ``/v1/messages``: what the cache gave and took stands beside the input."""
    if says == "absent":
        return None
    into, out, cached = _told(usage, says)
    written = min(usage.written_tokens, max(into, 0))
    long = min(usage.detail.written_long_tokens if usage.detail else 0, written)
    rest = into - written - cached
    return {
        # What is impossible in OpenAI's counting can be said here only as a negative number.
        "input_tokens": rest,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written - long,
            "ephemeral_1h_input_tokens": long,
        },
        "output_tokens": out,
        "service_tier": "standard",
    }


def _told(usage: Usage, says: str) -> tuple[int, int, int]:
    into, out, cached = usage.input_tokens, usage.output_tokens, usage.cached_tokens
    if says == "double":
        return 2 * into, 2 * out, cached
    if says == "zero":
        return 0, 0, 0
    if says == "negative":
        return into, -out - 1, cached
    if says == "impossible":
        return into, out, into + 1
    return into, out, cached


def openai_body(answer: Answer, fault: Fault) -> bytes:
    """Return the answer of ``/chat/completions`` in one piece."""
    text = "".join(answer.pieces)
    message: Json = {"role": "assistant", "content": text, "refusal": None}
    if answer.tool:
        function = {"name": answer.tool, "arguments": text}
        call = {"id": f"call_{answer.id}", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    finish = OPENAI_FINISH[answer.finish]
    body = _openai_frame(answer, "chat.completion")
    body["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]
    if (usage := openai_usage(answer.usage, fault.usage, answer.reasoning)) is not None:
        body["usage"] = usage
    return encode(body)


def _openai_frame(answer: Answer, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{answer.id}",
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
    }


def openai_events(asked: Asked, answer: Answer, fault: Fault) -> Events:
    """Return the events of ``/chat/completions``, the last of which is [DONE]."""
    counted = asked.stream_options is not None and asked.stream_options.include_usage
    frame = _openai_frame(answer, "chat.completion.chunk")
    if counted:
        frame["usage"] = None

    def chunk(delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(encode({**frame, "choices": [choice]}))

    first: Json = {"role": "assistant", "content": "", "refusal": None}
    if answer.tool:
        function = {"name": answer.tool, "arguments": ""}
        call = {"index": 0, "id": f"call_{answer.id}", "type": "function", "function": function}
        first = {"role": "assistant", "content": None, "tool_calls": [call]}
    events, tokens = [chunk(first)], [answer.reasoning]
    for at, piece in enumerate(answer.pieces):
        delta: Json = {"content": piece}
        if answer.tool:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        events.append(chunk(delta))
        tokens.append(answer.reasoning + at + 1)
    tail = [chunk({}, OPENAI_FINISH[answer.finish])]
    usage = openai_usage(answer.usage, fault.usage, answer.reasoning)
    if counted and usage is not None:
        tail.append(event(encode({**frame, "choices": [], "usage": usage})))
    tail.append(event(b"[DONE]"))
    return events + tail, tokens + [answer.usage.output_tokens] * len(tail)


def anthropic_body(answer: Answer, fault: Fault) -> bytes:
    """Return the answer of ``/v1/messages`` in one piece."""
    text = "".join(answer.pieces)
    block: Json = {"type": "text", "text": text}
    if answer.tool:
        # Arguments that the limit cut off are no JSON: what the real one sends then is not known.
        given: Any = msgspec.json.decode(text) if answer.finish == "tool" else {}
        block = {
            "type": "tool_use",
            "id": f"toolu_{answer.id}",
            "name": answer.tool,
            "input": given,
        }
    message = _anthropic_frame(answer)
    message["content"] = [block]
    message["stop_reason"] = ANTHROPIC_FINISH[answer.finish]
    if (usage := anthropic_usage(answer.usage, fault.usage)) is not None:
        message["usage"] = usage
    return encode(message)


def _anthropic_frame(answer: Answer) -> Json:
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def anthropic_events(answer: Answer, fault: Fault) -> Events:
    """Return the events of ``/v1/messages``, from message_start to message_stop."""
    usage = anthropic_usage(answer.usage, fault.usage)
    message = _anthropic_frame(answer)
    block: Json = {"type": "text", "text": ""}
    if answer.tool:
        block = {"type": "tool_use", "id": f"toolu_{answer.id}", "name": answer.tool, "input": {}}
    if usage is not None:
        message["usage"] = {**usage, "output_tokens": min(1, usage["output_tokens"])}

    def named(name: str, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON value
        return event(encode({"type": name, **fields}), name)

    events = [
        named("message_start", message=message),
        named("content_block_start", index=0, content_block=block),
        named("ping"),
    ]
    tokens = [answer.reasoning] * 3
    for at, piece in enumerate(answer.pieces):
        delta: Json = {"type": "text_delta", "text": piece}
        if answer.tool:
            delta = {"type": "input_json_delta", "partial_json": piece}
        events.append(named("content_block_delta", index=0, delta=delta))
        tokens.append(answer.reasoning + at + 1)
    end: Json = {"delta": {"stop_reason": ANTHROPIC_FINISH[answer.finish], "stop_sequence": None}}
    if usage is not None:
        end["usage"] = {"output_tokens": usage["output_tokens"]}
    tail = [
        named("content_block_stop", index=0),
        named("message_delta", **end),
        named("message_stop"),
    ]
    return events + tail, tokens + [answer.usage.output_tokens] * len(tail)


def error_body(fault: Fault, message: str, param: str | None, *, anthropic: bool) -> bytes:
    """Return the body of an error: Anthropic's, OpenAI's, Gemini's or Replicate's shape."""
    status = fault.status
    if fault.delay == "replicate":
        sentence = f"Request was throttled. Your rate limit resets in ~{fault.delay_s:g}s."
        return encode({"detail": sentence})
    if fault.delay == "gemini":
        info = {
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": f"{fault.delay_s:g}s",
        }
        error: Json = {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}
        return encode({"error": {**error, "details": [info]}})
    return encode(_error(status, fault.code, message, param, anthropic=anthropic))


def _error(status: int, code: str, message: str, param: str | None, *, anthropic: bool) -> Json:
    if anthropic:
        kind = ANTHROPIC_TYPES.get(status, "api_error")
        said = ANTHROPIC_MESSAGES.get(code) or message or MESSAGES.get(code) or f"fake {status}"
        inner = {"type": kind, "message": said}
        return {"type": "error", "error": inner, "request_id": "req_fake"}
    usual = "server_error" if status >= 500 else "invalid_request_error"
    kind, named = OPENAI_TYPES.get(status, (usual, None))
    if code == "quota":
        kind = "insufficient_quota"
    said = message or MESSAGES.get(code) or f"fake {status}"
    named = CODES.get(code, named)
    return {"error": {"message": said, "type": kind, "param": param, "code": named}}


def error_headers(fault: Fault) -> str:
    """Return the header lines of an error that say when to come back, and whether."""
    lines = ""
    if fault.should_retry:
        lines += f"x-should-retry: {fault.should_retry}\r\n"
    if fault.delay == "seconds":
        lines += f"retry-after: {fault.delay_s:g}\r\n"
    elif fault.delay == "ms":
        lines += f"retry-after-ms: {fault.delay_s * 1000:g}\r\n"
    elif fault.delay == "absurd":
        lines += "retry-after: 1000000000\r\n"
    elif fault.delay == "date":
        # A date has whole seconds: the next one, so that it is never less than what was asked.
        date = datetime.now(UTC) + timedelta(seconds=fault.delay_s + 1)
        lines += f"retry-after: {date:%a, %d %b %Y %H:%M:%S} GMT\r\n"
    return lines


def error_in_stream(code: str, *, anthropic: bool) -> bytes:
    """Return the event with which a provider that is overloaded ends its stream."""
    status = 529 if anthropic else 503
    data = encode(_error(status, code, "Overloaded", None, anthropic=anthropic))
    return event(data, "error" if anthropic else "")


def models_body(models: tuple[str, ...], *, anthropic: bool) -> bytes:
    """Return the list of models."""
    names = models or ("fake-model",)
    if anthropic:
        made = "2025-01-01T00:00:00Z"
        data: list[Json] = [
            {"type": "model", "id": name, "display_name": name, "created_at": made}
            for name in names
        ]
        ends = {"first_id": names[0], "last_id": names[-1]}
        return encode({"data": data, "has_more": False, **ends})
    data = [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}
        for name in names
    ]
    return encode({"object": "list", "data": data})
