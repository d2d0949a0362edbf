"""Every kernel that a chip would launch compiles for it and fits it, though none is here.

What an older chip runs in place of a Hopper's kernels, too; and those, which no interpreter can
tell to be too large. At SDXL's true shapes, eight pictures at a time included, and packshot-mini's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

COMPILED = Path(__file__).with_name("compiled.py")

ROOM = {"80": 163 * 1024, "89": 99 * 1024, "90": 227 * 1024}
"""Shared memory that one block may have, by compute capability (8.6 has as much as 8.9).

CUDA C++ programming guide, "Technical specifications per compute capability".
"""

HOPPERS = {"_convolve", "_geglu", "_ask", "_attend_many"}
"""What is left aside on older chips."""


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this machine")
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["80 bf16 int8", "89 fp8 int8", "90 bf16 fp8"])
def test_what_a_chip_launches_compiles_and_fits(tmp_path, chip):
    done = subprocess.run(
        [sys.executable, str(COMPILED), *chip.split()],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shared, unrolled = json.loads(done.stdout)
    assert {
        "_attend",
        "_layer_norm",
        "_advance",
        "_sums",
        "_group_norm",
        "_softmax",
    } <= shared.keys()
    assert HOPPERS & shared.keys() == (HOPPERS if chip.startswith("90") else set())
    assert ("_to_int8" in shared) is ("int8" in chip)
    assert max(shared.values()) <= ROOM[chip.split()[0]], shared
    assert not unrolled, "ptxas 12.8 compiles a product without a loop wrongly: `launch.block_k`"


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this machine")
@given(
    st.sampled_from([1, 2, 4]).flatmap(
        lambda n: st.tuples(st.integers(32 // n + 1, 4096), st.just(n))
    )
)
def test_a_product_takes_more_than_one_block(shape):
    from packshot.engine.fast.kernels.launch import block_k

    inputs, size = shape
    taken = block_k(inputs, size)
    assert taken & (taken - 1) == 0, "a power of two"
    assert taken < inputs
    assert 32 <= taken * size <= 128, "what is multiplied at once, what memory is swizzled by"


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this machine")
@pytest.mark.parametrize(("inputs", "size"), [(0, 1), (1, 2), (32, 1), (16, 2)])
def test_a_product_of_one_multiplication_is_refused(inputs, size):
    from packshot.engine.fast.kernels.launch import block_k

    with pytest.raises(ValueError, match=f"{inputs} inputs"):
        block_k(inputs, size)
