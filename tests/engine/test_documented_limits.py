"""The engine's limits in docs/configuration.md are those of the code."""

from __future__ import annotations

from pathlib import Path

from packshot.engine import buckets, limits, memory
from packshot.engine import engine as rendering
from packshot.engine import runner as plain
from packshot.engine.fast import graphs, products, runner, tuning

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_fixed_limits_of_the_engine_are_what_the_page_says():
    _, _, section = PAGE.read_text().partition("\n## engine\n")
    section, _, _ = section.partition("\n## ")
    million = 1 << 20
    both = (buckets.BATCH_PIXELS // million, plain.BATCH_PIXELS // million)
    kept = (tuning.MAX_FILES, tuning.MAX_BYTES // million)
    for said in (
        f"| {limits.MIN_SIDE} to {limits.MAX_SIDE:,}, multiples of {limits.SIDE_MULTIPLE}; 2048x",
        f"| 1 to {limits.MAX_STEPS:,}; 1 to {limits.MAX_GUIDANCE:g}; {limits.MAX_PICTURES} |",
        f"| {limits.MAX_PROMPT:,} characters, of which the model reads {graphs.TOKENS} tokens |",
        "| {} million pixels (eight of 1024x1024) in 16 bits or less, {} million in".format(*both),
        f"| {runner.GRAPHS} of steps, {runner.GRAPHS} of decoders, one of the text encoders |",
        f"| {graphs.WINDOW} at a time |",
        "| {} files of {} MiB; ".format(*kept),
        f"; {tuning.MAX_SHAPES:,} shapes of attention and as many of products in each; ",
        f"; {products.MAX_PLANS:,} products in memory |",
        f"{buckets.MAX_BUCKETS} at most",
    ):
        assert said in section, said
    assert limits.MAX_PIXELS == rendering.FINE_PIXELS == 2048 * 2048
    assert memory.MAX_BUCKETS == runner.GRAPHS
