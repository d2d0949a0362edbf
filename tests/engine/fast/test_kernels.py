"""Each Triton kernel against what `reference` says it computes, in Triton's interpreter on a CPU.

Shapes do not fit the tiles on purpose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("kernel_cases.py")
NAMES = (
    "join", "group_norm", "group_norm_of_few_pixels", "group_norm_of_many_strips",
    "group_norm_to_fp8", "group_norm_of_few_to_fp8", "convolve", "convolve_in_fp8", "layer_norm",
    "layer_norm_adds", "geglu", "gate", "int8", "attend", "attend_to_many", "attend_to_fp8", "ask",
    "interleave", "softmax", "to_uint8", "advance",
)  # fmt: skip

LOOSE = {name: 0.12 for name in NAMES if name.endswith("_to_fp8")}
"""The interpreter cuts to fp8, where a GPU rounds: up to an eighth."""


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """The relative error of each kernel, all run in one process.

    It is another one, for whether Triton interprets is decided when it is imported.
    """
    done = subprocess.run(
        [sys.executable, str(CASES), *NAMES],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this machine")
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_computes_what_its_reference_does(errors, name):
    assert errors[name] < LOOSE.get(name, 1e-5)
