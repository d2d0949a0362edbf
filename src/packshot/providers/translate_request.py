"""An OpenAI chat request as an Anthropic one: exactly, or not at all.

docs/gateway-translation.md has the whole table. Every field is in one of four groups: it has an
equivalent; it is a hint without which the answer is as good; its value is the default, and means
nothing; or it is refused by its name.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import msgspec

from packshot.core.errors import Inexpressible, InvalidRequest
from packshot.providers.base import Fields
from packshot.providers.chat_types import Format, Limit, NamedChoice, Tool
from packshot.providers.translate_messages import Turns, turns_of

__all__ = ["ANSWER_TOOL", "DEFAULT_OUTPUT_LIMIT", "messages_request"]

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")

DEFAULT_OUTPUT_LIMIT = 4096
"""``max_tokens`` where neither caller nor configuration names one: the API wants one, and every
model takes this."""

ANSWER_TOOL = "packshot_answer"
"""The tool whose input is the answer, where JSON is asked for; it never reaches the caller."""

THINKING_TOKENS = {"low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768}
"""Tokens to think by ``reasoning_effort``, at most half of what may come out."""

LEAST_THINKING = 1024
"""The API's own minimum of ``budget_tokens``."""

HINTS = frozenset(
    {
        "metadata",  # labels in OpenAI's dashboard
        "prediction",  # makes an answer faster, never another one
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "stream_options",  # the gateway counts usage itself
    }
)
NEUTRAL: dict[str, tuple[bytes, ...]] = {
    "n": (b"1",),
    "store": (b"false",),
    "logprobs": (b"false",),
    "top_logprobs": (b"0",),
    "frequency_penalty": (b"0", b"0.0"),
    "presence_penalty": (b"0", b"0.0"),
    "logit_bias": (b"{}",),
    "modalities": (b'["text"]',),
    "verbosity": (b'"medium"',),
    "functions": (b"[]",),
}
"""Fields that may have the value which OpenAI's API has for them anyway."""

READ = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "temperature",
        "top_p",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "service_tier",
        "user",
        "safety_identifier",
        "stream",
    }
)
EMPTY_SCHEMA: Json = {"type": "object", "properties": {}}


def messages_request(fields: Fields, model: str, output_limit: int | None) -> bytes:
    """Return the body of ``/v1/messages`` for the fields of a chat completion.

    Raises:
        Inexpressible: a field has no equivalent there; the message names it.
        InvalidRequest: a field is not as OpenAI's API has it.
    """
    given = {name: raw for name, raw in fields.items() if bytes(raw) != b"null"}
    for name, raw in given.items():
        _allowed(name, bytes(raw))
    turns = turns_of(given.get("messages"))
    limit = _limit(given) or output_limit or DEFAULT_OUTPUT_LIMIT
    out: Json = {"model": model, "max_tokens": limit, "messages": turns.messages}
    if turns.system:
        out["system"] = turns.system
    _sampling(given, out)
    _tools(given, out, turns)
    _format(given, out)
    _thinking(given, out, turns)
    for name in ("user", "safety_identifier"):
        if name in given:
            out.setdefault("metadata", {"user_id": _read(given, name, str)})
    if _read(given, "service_tier", str, "auto") == "default":
        out["service_tier"] = "standard_only"
    if _read(given, "stream", bool, default=False):
        out["stream"] = True
    return msgspec.json.encode(out)


def _allowed(name: str, value: bytes) -> None:
    """Refuse what cannot be said; a hint is left out."""
    if name in READ or name in HINTS or value in NEUTRAL.get(name, ()):
        if name == "service_tier" and value not in {b'"auto"', b'"default"'}:
            raise Inexpressible(
                name, f"Anthropic has no service tier {value[:32].decode('utf-8', 'replace')}"
            )
        return
    allowed = " or ".join(word.decode() for word in NEUTRAL.get(name, ()))
    raise Inexpressible(
        name[:64],
        "cannot be expressed in Anthropic's API; leave it out"
        + (f", or send {allowed}" if allowed else "")
        + ", or name a target that has it",
    )


def _read(given: Fields, name: str, kind: type[T] | Any, default: Any = None) -> Any:  # noqa: ANN401 - msgspec holds it to the type
    if name not in given:
        return default
    try:
        return msgspec.json.decode(given[name], type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{name}: {error}") from error


def _limit(given: Fields) -> int | None:
    limits = [
        _read(given, name, Limit)
        for name in ("max_tokens", "max_completion_tokens")
        if name in given
    ]
    if len(limits) == 2:
        raise InvalidRequest("max_tokens and max_completion_tokens mean the same: send one of them")
    return limits[0] if limits else None


def _sampling(given: Fields, out: Json) -> None:
    """Temperature from 0 to 1 there; 1 is the default of both, and newer models take one only."""
    for name in ("temperature", "top_p"):
        value = _read(given, name, float)
        if value is None or value == 1:
            continue
        if not 0 <= value <= 1:
            raise Inexpressible(name, f"Anthropic's goes from 0 to 1, got {value:g}")
        out[name] = value
    stop = _read(given, "stop", str | list[str])
    if stop:
        out["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if not all(each.strip() for each in out["stop_sequences"]):
            raise Inexpressible("stop", "Anthropic takes no stop sequence of white space alone")


# ---------------------------------------------------------------- tools

SIMPLE_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def _tools(given: Fields, out: Json, turns: Turns) -> None:
    tools: list[Tool] = _read(given, "tools", list[Tool], [])
    out_tools = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    choice = _choice(given)
    if not tools:
        if choice.get("type") in {"any", "tool"}:
            raise InvalidRequest("tool_choice: there are no tools to choose from")
        if not turns.called:
            return
        # The API wants the tools that a conversation used; none of them may be used again.
        out_tools = [{"name": name, "input_schema": EMPTY_SCHEMA} for name in sorted(turns.called)]
        choice = {"type": "none"}
    out["tools"] = out_tools
    if choice.get("type") == "tool" and all(t["name"] != choice["name"] for t in out_tools):
        raise InvalidRequest(f"tool_choice: there is no tool {choice['name']!r}")
    parallel = _read(given, "parallel_tool_calls", bool, default=True)
    if not parallel and choice.get("type") != "none":
        choice = {"type": "auto"} | choice | {"disable_parallel_tool_use": True}
    if choice:
        out["tool_choice"] = choice


def _tool(tool: Tool, at: str) -> Json:
    if tool.function is None:
        raise Inexpressible(at, f"Anthropic has no tools of type {tool.type!r}, only functions")
    function = tool.function
    if function.name == ANSWER_TOOL:
        raise Inexpressible(f"{at}.function.name", "this name is the gateway's own")
    schema = function.parameters or EMPTY_SCHEMA
    out: Json = {"name": function.name, "input_schema": {"type": "object"} | schema}
    if function.description:
        out["description"] = function.description
    if function.strict:
        out["strict"] = True
    if tool.cache_control:
        out["cache_control"] = tool.cache_control
    return out


def _choice(given: Fields) -> Json:
    choice = _read(given, "tool_choice", str | NamedChoice)
    if choice is None:
        return {}
    if isinstance(choice, str):
        if choice not in SIMPLE_CHOICES:
            raise InvalidRequest(f"tool_choice: {choice!r} is not auto, required, none or a tool")
        return {"type": SIMPLE_CHOICES[choice]}
    if choice.function is None:
        raise Inexpressible("tool_choice", f"Anthropic has no choice of type {choice.type!r}")
    return {"type": "tool", "name": choice.function.name}


# ---------------------------------------------------------------- JSON, thinking


def _format(given: Fields, out: Json) -> None:
    """A strict schema is Anthropic's own output format; any other JSON is the input of a tool.

    The tool must be called, so that the answer is an object; `translate_reply` makes it text again.
    """
    wanted: Format | None = _read(given, "response_format", Format)
    if wanted is None or wanted.type == "text":
        return
    schema: Json = EMPTY_SCHEMA | {"additionalProperties": True}
    text = "Give the whole answer as one JSON object."
    if wanted.type == "json_schema":
        if wanted.json_schema is None or wanted.json_schema.schema is None:
            raise InvalidRequest("response_format: json_schema needs a schema")
        schema = wanted.json_schema.schema
        if wanted.json_schema.strict:
            out["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
            return
        if schema.get("type") != "object":
            raise Inexpressible("response_format", "a schema that is not strict must be an object")
        text = wanted.json_schema.description or text
    if out.get("tools") and out.get("tool_choice") != {"type": "none"}:
        raise Inexpressible(
            "response_format", "beside tools, Anthropic's API has a strict json_schema only"
        )
    tool = {"name": ANSWER_TOOL, "description": text, "input_schema": schema}
    out["tools"] = [*out.get("tools", []), tool]
    out["tool_choice"] = {"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": True}


def _thinking(given: Fields, out: Json, turns: Turns) -> None:
    effort = _read(given, "reasoning_effort", str)
    if effort is None or effort in {"none", "minimal"}:
        return
    if effort not in THINKING_TOKENS:
        names = ", ".join(["none", "minimal", *THINKING_TOKENS])
        raise InvalidRequest(f"reasoning_effort: {effort!r} is none of {names}")
    if turns.thoughtless:
        return  # a turn that began without thinking cannot go on with it
    if out.get("tool_choice", {}).get("type") in {"any", "tool"}:
        raise Inexpressible("reasoning_effort", "Anthropic does not think where a tool is forced")
    if "temperature" in out:
        raise Inexpressible("temperature", "Anthropic's must be 1 where it thinks")
    limit: int = out["max_tokens"]
    if limit <= LEAST_THINKING:
        raise Inexpressible(
            "reasoning_effort",
            f"Anthropic thinks at least {LEAST_THINKING} tokens, and max_tokens is {limit}",
        )
    budget = max(LEAST_THINKING, min(THINKING_TOKENS[effort], limit // 2))
    out["thinking"] = {"type": "enabled", "budget_tokens": budget}
