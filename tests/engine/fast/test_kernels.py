"""Each Triton kernel against what `reference` says it computes, in Triton's interpreter on a CPU.

Shapes do not fit the tiles on purpose. `benchmarks/gpu/kernels.py` does the same on a GPU, on those
of SDXL.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("kernel_cases.py")
NAMES = (
    "join", "group_norm", "group_norm_of_many_strips", "affine", "layer_norm", "layer_norm_adds",
    "geglu", "gate", "int8", "attend_text", "interleave", "softmax", "to_uint8", "advance",
)  # fmt: skip


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_computes_what_its_reference_does(name):
    env = os.environ | {"TRITON_INTERPRET": "1"}  # read when Triton is imported: another process
    done = subprocess.run(
        [sys.executable, str(CASES), name], env=env, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-4
