"""What a request may ask for, and the one clear line that it gets otherwise."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest
from packshot.core.types import RenderRequest
from packshot.engine.folder import ModelFolder
from packshot.engine.limits import (
    MAX_GUIDANCE,
    MAX_PICTURES,
    MAX_PROMPT,
    MAX_SEED,
    default_size,
    validate,
)

GOOD = RenderRequest("a mug", (0,), 256, 256, 20, 5.0)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"width": 64, "height": 64},
        {"width": 2048, "height": 2048},
        {"width": 4096, "height": 1024},
        {"steps": 1},
        {"steps": 1000},
        {"guidance": 1.0},
        {"guidance": MAX_GUIDANCE},
        {"seeds": (MAX_SEED,) * MAX_PICTURES},
        {"prompt": "x" * MAX_PROMPT},
        {"sampler": "euler-ancestral", "schedule": "karras", "spacing": "leading"},
    ],
)
def test_what_is_allowed(change):
    validate(replace(GOOD, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "prompt has 10001 characters; at most 10000"),
        ({"negative_prompt": "x" * 20_000}, "negative prompt has 20000 characters"),
        ({"width": 250}, "width is 250.*multiple of 8.*248 and 256"),
        ({"height": 1}, "height is 1, expected 64 to 4096"),
        ({"height": 8192}, "height is 8192, expected 64 to 4096"),
        ({"width": -256}, "width is -256"),
        ({"width": 4096, "height": 2048}, "4096x2048 is 8388608 pixels; at most 4194304"),
        ({"steps": 0}, "steps is 0, expected 1 to 1000"),
        ({"steps": 1001}, "steps is 1001"),
        ({"guidance": 0.5}, "guidance is 0.5, expected 1 to 50"),
        ({"guidance": 51.0}, "guidance is 51"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"seeds": ()}, "0 pictures"),
        ({"seeds": (1,) * 65}, "65 pictures.*expected 1 to 64"),
        ({"seeds": (3, -1)}, "seed is -1"),
        ({"seeds": (2**63,)}, "seed is 9223372036854775808"),
        ({"sampler": "eular"}, "unknown sampler 'eular'. Did you mean 'euler'.*dpmpp-2m"),
        ({"schedule": "kerras"}, "unknown schedule.*Did you mean 'karras'"),
        ({"spacing": "tail"}, "unknown spacing.*leading, linspace, trailing"),
    ],
)
def test_what_is_refused_and_how(change, said):
    with pytest.raises(InvalidRequest, match=said):
        validate(replace(GOOD, **change))


def test_the_default_size_is_the_one_that_the_model_was_trained_at(tiny_sdxl: Path):
    assert default_size(ModelFolder.open(tiny_sdxl)) == (64, 64)


def test_checking_a_request_does_not_import_torch():
    code = (
        "import sys, packshot.engine.limits, packshot.engine.results;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
