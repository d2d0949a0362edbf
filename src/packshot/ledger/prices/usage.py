"""What providers say that a call used, as one `Usage`: a function for each format on the wire.

Providers count differently. OpenAI's and Gemini's input tokens include those read from the cache,
Anthropic's do not; Gemini's output tokens exclude its thoughts, OpenAI's include them. Here
``input_tokens`` is always all that went in, and ``output_tokens`` all that came out.

Nobody is believed blindly: a count that is negative, no whole number, or more than what it is a
part of, is an error and never made to fit. The caller adds what no provider counts (pictures,
seconds) with `msgspec.structs.replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeAlias, cast

import msgspec
from msgspec.structs import fields

from packshot.core.errors import InvalidRequest, LedgerCorrupt, unknown_name
from packshot.core.types import Stage, Usage, UsageDetail
from packshot.ledger.records import Settled

__all__ = [
    "FORMATS",
    "Normaliser",
    "PlainUsage",
    "kept_of",
    "merged",
    "openai_plain",
    "usage_from",
    "usage_of",
]

Raw: TypeAlias = Mapping[str, Any]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Normaliser: TypeAlias = Callable[[Raw], Usage]

STAGE: Stage = "caption"
"""The stage of a usage of tokens. Prices do not depend on it, and an entry has its own."""

KEPT = "used: "
"""How the ``price`` of an unpriced entry begins, where more was used than its columns hold."""

SAME_AS_STANDARD = frozenset({"", "auto", "default", "on_demand", "standard"})
"""What providers call the service that nobody asked to be another."""


def openai_chat(raw: Raw) -> Usage:
    """Return the usage of ``/chat/completions``, of OpenAI and all that speak as it does.

    OpenAI says ``service_tier`` beside its usage, not in it: hand it in under that name.
    """
    into, out = _of(raw, "prompt_tokens_details"), _of(raw, "completion_tokens_details")
    output = _count(raw, "completion_tokens", needed=True)
    _part(out, "reasoning_tokens", "completion_tokens", output)
    return _openai(raw, (_count(raw, "prompt_tokens", needed=True), output), into, out)


class PlainInput(msgspec.Struct, gc=False):
    cached_tokens: Count | None = 0
    cache_write_tokens: Count | None = 0
    audio_tokens: Count | None = 0


class PlainOutput(msgspec.Struct, gc=False):
    reasoning_tokens: Count | None = 0
    audio_tokens: Count | None = 0


class PlainUsage(msgspec.Struct, gc=False):
    """OpenAI's usage as nearly every answer has it, for who decodes answers by the thousand."""

    prompt_tokens: Count
    completion_tokens: Count
    prompt_tokens_details: PlainInput | None = None
    completion_tokens_details: PlainOutput | None = None


def openai_plain(raw: PlainUsage) -> Usage | None:
    """Return what `openai_chat` does for the standard tier, in a tenth of its time.

    None for what is rare, for `openai_chat` to look at: tokens of sound, and parts that are more
    than their whole.
    """
    cached = written = 0
    into, out = raw.prompt_tokens_details, raw.completion_tokens_details
    if into is not None:
        cached, written = into.cached_tokens or 0, into.cache_write_tokens or 0
        if into.audio_tokens or cached + written > raw.prompt_tokens:
            return None
    if out is not None and (
        out.audio_tokens or (out.reasoning_tokens or 0) > raw.completion_tokens
    ):
        return None
    return Usage(
        STAGE,
        input_tokens=raw.prompt_tokens,
        cached_tokens=cached,
        written_tokens=written,
        output_tokens=raw.completion_tokens,
    )


def openai_responses(raw: Raw) -> Usage:
    """Return the usage of ``/responses``; ``service_tier`` is handed in, as with `openai_chat`."""
    into, out = _of(raw, "input_tokens_details"), _of(raw, "output_tokens_details")
    output = _count(raw, "output_tokens", needed=True)
    _part(out, "reasoning_tokens", "output_tokens", output)
    return _openai(raw, (_count(raw, "input_tokens", needed=True), output), into, out)


def openai_embeddings(raw: Raw) -> Usage:
    """Return the usage of ``/embeddings``: tokens go in, and none come out."""
    return _openai(raw, (_count(raw, "prompt_tokens", needed=True), 0), {}, {})


def openai_images(raw: Raw) -> Usage:
    """Return the usage of ``/images``: tokens of text and of pictures, told apart.

    What came out is pictures unless it is said to be something else. Where cached tokens are
    counted, nobody knows of which kind they are, and all count as the dearer.
    """
    into, out = _of(raw, "input_tokens_details"), _of(raw, "output_tokens_details")
    whole = _count(raw, "input_tokens", needed=True)
    output = _count(raw, "output_tokens", needed=True)
    cached = _part(into, "cached_tokens", "input_tokens", whole)
    detail = None
    if into and not cached:
        text, image = _count(into, "text_tokens"), _count(into, "image_tokens")
        if text + image != whole:
            raise InvalidRequest(
                f"text_tokens {text} and image_tokens {image} must make input_tokens {whole}"
            )
        drawn = _part(out, "image_tokens", "output_tokens", output) if out else output
        detail = UsageDetail(input_image_tokens=image, output_image_tokens=drawn)
    return Usage(
        STAGE,
        input_tokens=whole,
        cached_tokens=cached,
        output_tokens=output,
        tier=_tier(raw.get("service_tier")),
        detail=detail,
    )


def anthropic(raw: Raw) -> Usage:
    """Return the usage of ``/v1/messages``: tokens of the cache stand beside the input tokens."""
    written = _count(raw, "cache_creation_input_tokens")
    read = _count(raw, "cache_read_input_tokens")
    kept = _of(raw, "cache_creation")
    long = _count(kept, "ephemeral_1h_input_tokens")
    if kept and long + _count(kept, "ephemeral_5m_input_tokens") != written:
        raise InvalidRequest(
            f"cache_creation {dict(kept)} must make cache_creation_input_tokens {written}"
        )
    searches = _count(_of(raw, "server_tool_use"), "web_search_requests")
    fast = raw.get("speed") == "fast"
    return Usage(
        STAGE,
        input_tokens=_count(raw, "input_tokens", needed=True) + written + read,
        cached_tokens=read,
        written_tokens=written,
        output_tokens=_count(raw, "output_tokens", needed=True),
        tier="fast" if fast else _tier(raw.get("service_tier")),
        detail=_detail(written_long_tokens=long, searches=searches),
    )


def gemini(raw: Raw) -> Usage:
    """Return the usage of ``usageMetadata``: thoughts come out too, and results of tools go in.

    Where tokens are told apart that went in, but not those that came out, the latter count as those
    of pictures: the dearer, where a model makes both.
    """
    prompt = _count(raw, "promptTokenCount", needed=True)
    cached = _count(raw, "cachedContentTokenCount")
    if cached > prompt:
        raise InvalidRequest(f"cachedContentTokenCount {cached} exceeds promptTokenCount {prompt}")
    answer = _count(raw, "candidatesTokenCount")
    detail = None
    if raw.get("promptTokensDetails"):
        into, kept = _kinds(raw, "promptTokensDetails"), _kinds(raw, "cacheTokensDetails")
        out = _kinds(raw, "candidatesTokensDetails")
        detail = (
            _detail(
                input_image_tokens=into.get("IMAGE", 0),
                cached_image_tokens=kept.get("IMAGE", 0),
                output_image_tokens=out.get("IMAGE", 0) if out else answer,
                input_audio_tokens=into.get("AUDIO", 0),
                cached_audio_tokens=kept.get("AUDIO", 0),
                output_audio_tokens=out.get("AUDIO", 0),
            )
            or UsageDetail()
        )
    traffic = str(raw.get("trafficType") or "").lower().removeprefix("on_demand_")
    return Usage(
        STAGE,
        input_tokens=prompt + _count(raw, "toolUsePromptTokenCount"),
        cached_tokens=cached,
        output_tokens=answer + _count(raw, "thoughtsTokenCount"),
        tier=_tier(raw.get("serviceTier") or traffic),
        detail=detail,
    )


def deepseek(raw: Raw) -> Usage:
    """Return DeepSeek's usage: hits and misses of its cache make the prompt."""
    prompt = _count(raw, "prompt_tokens", needed=True)
    hit = _count(raw, "prompt_cache_hit_tokens")
    missed = raw.get("prompt_cache_miss_tokens")
    if missed is not None and hit + _count(raw, "prompt_cache_miss_tokens") != prompt:
        raise InvalidRequest(
            f"prompt_cache_hit_tokens {hit} and prompt_cache_miss_tokens {missed} must make "
            f"prompt_tokens {prompt}"
        )
    return openai_chat({**raw, "prompt_tokens_details": {"cached_tokens": hit}})


def groq(raw: Raw) -> Usage:
    """Return Groq's usage; the last chunk of a stream has it in ``x_groq``."""
    return openai_chat(_of(_of(raw, "x_groq"), "usage") or raw)


FORMATS: dict[str, Normaliser] = {
    "openai-chat": openai_chat,
    "openai-responses": openai_responses,
    "openai-embeddings": openai_embeddings,
    "openai-images": openai_images,
    "anthropic": anthropic,
    "gemini": gemini,
    "mistral": openai_chat,
    "deepseek": deepseek,
    "groq": groq,
    "openrouter": openai_chat,
}
"""The formats by name. Each function raises `InvalidRequest` where the counts cannot be."""


def usage_from(name: str, raw: Raw) -> Usage:
    """Return a usage that is written in the format ``name``.

    Raises:
        InvalidRequest: there is no such format, or the counts cannot be.
    """
    if name not in FORMATS:
        raise unknown_name("format of a usage", name, FORMATS)
    return FORMATS[name](raw)


def merged(usages: Iterable[Raw | None]) -> dict[str, Any]:
    """Return the one raw usage that the usages in a stream's events make, in their order.

    Every format counts from the beginning, so that of each field the last word is the whole.
    Anthropic says some fields at the start only, others at the end; null says nothing.
    """
    whole: dict[str, Any] = {}
    for usage in usages:
        whole.update((name, value) for name, value in (usage or {}).items() if value is not None)
    return whole


def kept_of(usage: Usage) -> str:
    """Return, as text, what a usage holds that the columns of an entry do not; "" for nothing.

    An unpriced entry keeps it as its ``price``, so that it can be priced later.
    """
    # A tier is a provider's word: spaces would part it.
    words = [f"tier={'_'.join(usage.tier.split())}"] if usage.tier not in SAME_AS_STANDARD else []
    if usage.detail is not None:
        counts = [(each.name, getattr(usage.detail, each.name)) for each in fields(UsageDetail)]
        words += [f"{name}={count}" for name, count in counts if count] or ["detail"]
    return KEPT + " ".join(words) if words else ""


def usage_of(entry: Settled) -> Usage:
    """Return the usage of an unpriced entry, as it was when the entry was made.

    Raises:
        LedgerCorrupt: what its ``price`` keeps cannot be read.
    """
    tier, detail = "standard", None
    if entry.price.startswith(KEPT):
        words: dict[str, str] = {}
        for word in entry.price[len(KEPT) :].split(" "):
            name, _, value = word.partition("=")
            words[name] = value
        tier = words.pop("tier", tier)
        try:
            counts = {name: int(count) for name, count in words.items() if name != "detail"}
            detail = UsageDetail(**counts) if words else None
        except (TypeError, ValueError) as error:
            raise LedgerCorrupt(
                f"attempt {entry.attempt} keeps a usage that this packshot cannot read: "
                f"{entry.price!r}"
            ) from error
    return Usage(
        cast("Stage", entry.dimensions.stage),
        seconds=entry.seconds_us / 1_000_000,
        device=entry.dimensions.device,
        input_tokens=entry.input_tokens,
        cached_tokens=entry.cached_tokens,
        written_tokens=entry.written_tokens,
        output_tokens=entry.output_tokens,
        images=entry.images,
        image_size=entry.image_size,
        image_quality=entry.image_quality,
        stored_bytes=entry.stored_bytes,
        requests=entry.requests,
        tier=tier,
        detail=detail,
    )


def _openai(raw: Raw, sums: tuple[int, int], into: Raw, out: Raw) -> Usage:
    prompt, output = sums
    cached = _part(into, "cached_tokens", "the input tokens", prompt)
    written = _part(into, "cache_write_tokens", "the input tokens", prompt - cached)
    return Usage(
        STAGE,
        input_tokens=prompt,
        cached_tokens=cached,
        written_tokens=written,
        output_tokens=output,
        tier=_tier(raw.get("service_tier")),
        detail=_detail(
            input_audio_tokens=_part(into, "audio_tokens", "the input tokens", prompt),
            output_audio_tokens=_part(out, "audio_tokens", "the output tokens", output),
        ),
    )


def _of(raw: Raw, name: str) -> Raw:
    found = raw.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise InvalidRequest(f"{name} of a usage must be an object, got {found!r}")
    return cast("Raw", found)


def _count(raw: Raw, name: str, *, needed: bool = False) -> int:
    found = raw.get(name)
    if found is None and not needed:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        got = "nothing" if found is None else repr(found)
        raise InvalidRequest(f"{name} of a usage must be a whole number, 0 or more, got {got}")
    return found


def _part(raw: Raw, name: str, of: str, whole: int) -> int:
    count = _count(raw, name)
    if count > whole:
        raise InvalidRequest(f"{name} {count} of a usage must be part of {of}, which are {whole}")
    return count


def _kinds(raw: Raw, name: str) -> dict[str, int]:
    """Return Gemini's tokens by kind; a kind may stand there twice."""
    found: dict[str, int] = {}
    for each in raw.get(name) or ():
        kind = str(each.get("modality"))
        found[kind] = found.get(kind, 0) + _count(each, "tokenCount")
    return found


def _tier(said: object) -> str:
    word = str(said or "").lower()
    return "standard" if word in SAME_AS_STANDARD else word


def _detail(**counts: int) -> UsageDetail | None:
    return UsageDetail(**counts) if any(counts.values()) else None
