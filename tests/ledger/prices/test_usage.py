"""Every format that providers count in, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, LedgerCorrupt
from packshot.core.types import Usage, UsageDetail
from packshot.ledger.prices.book import PriceBook
from packshot.ledger.prices.usage import FORMATS, kept_of, merged, usage_from, usage_of
from tests.ledger.world import NOW, World

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "openai-chat",
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 5},
            "service_tier": "flex",
        },
        {
            "input_tokens": 100,
            "cached_tokens": 40,
            "output_tokens": 30,
            "tier": "flex",
            "detail": UsageDetail(input_audio_tokens=10, output_audio_tokens=5),
        },
    ),
    (
        "openai-responses",
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 40},
            "output_tokens": 30,
            "output_tokens_details": {"reasoning_tokens": 30},
            "service_tier": "default",
        },
        {"input_tokens": 100, "cached_tokens": 40, "output_tokens": 30},
    ),
    ("openai-embeddings", {"prompt_tokens": 8, "total_tokens": 8}, {"input_tokens": 8}),
    (
        "openai-images",
        {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 4160,
        },
        {
            "input_tokens": 50,
            "output_tokens": 4160,
            "detail": UsageDetail(input_image_tokens=40, output_image_tokens=4160),
        },
    ),
    (
        "anthropic",
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 2000,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
            "output_tokens": 7,
            "server_tool_use": {"web_search_requests": 2},
            "service_tier": "batch",
        },
        {
            "input_tokens": 2310,
            "cached_tokens": 2000,
            "written_tokens": 300,
            "output_tokens": 7,
            "tier": "batch",
            "detail": UsageDetail(written_long_tokens=200, searches=2),
        },
    ),
    (
        "gemini",
        {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 60,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 30,
            "toolUsePromptTokenCount": 5,
            "totalTokenCount": 155,
            "trafficType": "ON_DEMAND",
        },
        {"input_tokens": 105, "cached_tokens": 60, "output_tokens": 50},
    ),
    (
        "gemini",
        {
            "promptTokenCount": 100,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 70},
                {"modality": "AUDIO", "tokenCount": 30},
            ],
            "candidatesTokenCount": 20,
            "serviceTier": "PRIORITY",
        },
        {
            "input_tokens": 100,
            "output_tokens": 20,
            "tier": "priority",
            "detail": UsageDetail(input_audio_tokens=30, output_image_tokens=20),
        },
    ),
    (
        "deepseek",
        {
            "prompt_tokens": 100,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
            "completion_tokens": 1,
        },
        {"input_tokens": 100, "cached_tokens": 64, "output_tokens": 1},
    ),
    (
        "groq",
        {"x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}},
        {"input_tokens": 3, "output_tokens": 4},
    ),
    (
        "mistral",
        {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        {"input_tokens": 3, "output_tokens": 4},
    ),
    (
        "openrouter",
        {
            "prompt_tokens": 30,
            "completion_tokens": 4,
            "cost": 0.01,
            "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 8},
        },
        {"input_tokens": 30, "cached_tokens": 9, "written_tokens": 8, "output_tokens": 4},
    ),
]


@pytest.mark.parametrize(("name", "raw", "expected"), CASES)
def test_a_format(name: str, raw: dict[str, Any], expected: dict[str, Any]) -> None:
    assert usage_from(name, raw) == Usage("caption", **expected)


def test_every_format_is_among_the_cases() -> None:
    assert {name for name, _, _ in CASES} == set(FORMATS)


ANTHROPIC = {"input_tokens": 1, "output_tokens": 1}
CHAT = {"prompt_tokens": 9, "completion_tokens": 9}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("openai-chat", {}),
        ("openai-chat", {"prompt_tokens": 9}),
        ("openai-chat", {**CHAT, "prompt_tokens": -1}),
        ("openai-chat", {**CHAT, "prompt_tokens": 9.0}),
        ("openai-chat", {**CHAT, "prompt_tokens": True}),
        ("openai-chat", {**CHAT, "prompt_tokens_details": {"cached_tokens": 10}}),
        ("openai-chat", {**CHAT, "prompt_tokens_details": [1]}),
        ("openai-chat", {**CHAT, "completion_tokens_details": {"reasoning_tokens": 10}}),
        ("openai-responses", {"input_tokens": 9, "output_tokens": None}),
        ("openai-images", {"input_tokens": 9, "output_tokens": 1,
                           "input_tokens_details": {"text_tokens": 8, "image_tokens": 2}}),
        ("anthropic", {**ANTHROPIC, "cache_read_input_tokens": -1}),
        ("anthropic", {**ANTHROPIC, "cache_creation_input_tokens": 5,
                       "cache_creation": {"ephemeral_1h_input_tokens": 6}}),
        ("gemini", {"promptTokenCount": 5, "cachedContentTokenCount": 6}),
        ("deepseek", {**CHAT, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 4}),
        ("deepseek", {**CHAT, "prompt_cache_hit_tokens": 10}),
        ("openai", CHAT),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error(name: str, raw: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        usage_from(name, raw)


def test_the_events_of_a_stream_make_one_usage() -> None:
    start = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
    events = [start, None, {"output_tokens": 40}, {"output_tokens": 90, "input_tokens": None}]
    usage = usage_from("anthropic", merged(events))
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens) == (15, 5, 90)
    assert merged([]) == {}


BOOK = PriceBook.load()
COUNTS = st.integers(0, 10**6)


@given(
    parts=st.tuples(*[COUNTS] * 8),
    tier=st.sampled_from(["standard", "batch", "flex", "what is this"]),
    has=st.booleans(),
)
def test_what_an_unpriced_entry_keeps_is_the_usage(
    parts: tuple[int, ...], tier: str, has: bool
) -> None:
    long, image, kept, drawn, sound, heard, said, searches = parts
    detail = UsageDetail(long, image + kept, kept, drawn, sound + heard, heard, said, searches)
    usage = Usage(
        "caption",
        seconds=1.5,
        input_tokens=10**8,
        cached_tokens=10**7,
        written_tokens=10**7,
        output_tokens=10**7,
        images=1,
        image_size="1x1",
        image_quality="low",
        tier=tier,
        detail=detail if has else None,
    )
    charge = BOOK.charge(usage, "nobody", "m", NOW)
    assert not charge.priced
    assert charge.price == kept_of(usage)
    entry = World.settled(
        _Counter(),
        0,
        stage="caption",
        seconds_us=1_500_000,
        input_tokens=10**8,
        cached_tokens=10**7,
        written_tokens=10**7,
        output_tokens=10**7,
        images=1,
        image_size="1x1",
        image_quality="low",
        price=charge.price,
    )
    back = usage_of(entry)
    assert (back.detail, back.tier) == (usage.detail, tier.replace(" ", "_"))
    assert back.input_tokens == usage.input_tokens
    assert back.seconds == usage.seconds


class _Counter(World):
    """Makes entries without a store."""

    def __init__(self) -> None:
        self.seq, self.now = 0, NOW


def test_a_usage_that_was_kept_by_a_later_packshot_is_an_error() -> None:
    entry = World.settled(_Counter(), 0, price="used: thoughts=5")
    with pytest.raises(LedgerCorrupt, match="cannot read"):
        usage_of(entry)


@pytest.mark.parametrize(
    "detail",
    [
        UsageDetail(written_long_tokens=1),
        UsageDetail(input_image_tokens=11),
        UsageDetail(cached_audio_tokens=1),
        UsageDetail(output_audio_tokens=1),
        UsageDetail(searches=-1),
    ],
)
@pytest.mark.parametrize("provider", ["openai", "nobody"])
def test_a_detail_that_exceeds_its_whole_is_refused(detail: UsageDetail, provider: str) -> None:
    with pytest.raises(InvalidRequest, match="parts of a usage"):
        BOOK.charge(Usage("caption", input_tokens=10, detail=detail), provider, "gpt-5-mini", NOW)
