"""Kernels, run and compared: prints the relative error of each. See test_kernels.

They may touch only what they are given: a load or a store beyond is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from packshot.engine.fast import kernels, reference
from packshot.engine.fast.kernels import maps
from packshot.engine.fast.reference import GroupNorm

B, P, C = 2, 100, 96


def _patch_index() -> None:
    """Let the interpreter count a loop whose bound is a number of one: newer NumPys refuse it."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, *rest: object) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _fence() -> None:
    """Let a kernel load and store only in the storages of its arguments."""
    given: list[tuple[int, int]] = []
    prepare = interpreter.GridExecutor._init_args_hst

    def prepared(self: Any, args: Any, options: Any) -> Any:
        made = prepare(self, args, options)
        tensors = (getattr(x, "base", x) if not isinstance(x, Tensor) else x for x in made[0])
        storages = [x.untyped_storage() for x in tensors if isinstance(x, Tensor)]
        given[:] = [(x.data_ptr(), x.data_ptr() + x.nbytes()) for x in storages]
        return made

    def fenced(touch: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def run(self: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
            mask = np.asarray(rest[mask_at].data, dtype=bool)
            first = np.asarray(pointers.data)[mask].astype(np.int64)
            last = first + max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            inside = [(first >= low) & (last <= high) for low, high in given]
            if not np.any(inside, axis=0).all():
                raise IndexError(f"{touch.__name__} beyond what the kernel was given")
            return touch(self, pointers, *rest, **options)

        return run

    builder = interpreter.InterpreterBuilder
    interpreter.GridExecutor._init_args_hst = prepared
    builder.create_masked_load = fenced(builder.create_masked_load, 0)
    builder.create_masked_store = fenced(builder.create_masked_store, 1)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape)


def far_from_zero() -> Tensor:
    return drawn(B, P, C) + 50 * drawn(C)


def norm_of(channels: int, groups: int = 8) -> GroupNorm:
    return GroupNorm(drawn(channels), drawn(channels), groups, 1e-5)


def join(ops) -> list[Tensor]:
    return [
        ops.join(x := drawn(B, P, C), drawn(B, P, C), drawn(C), drawn(B, P, 32)),
        ops.join(x, None, None, drawn(B, P, 32)),
        ops.join(x, drawn(B, P, C), None),
    ]


def group_norm_of_few_pixels(ops) -> list[Tensor]:
    shifts = drawn(B, 3 * C)
    plain = ops.group_norm(far_from_zero(), norm_of(C), silu=False, shift=shifts[:, C : 2 * C])
    joined = ops.group_norm(  # groups of 20: one lies half in x, half in the skip
        drawn(B, P, C), norm_of(C + 64), silu=True, add=drawn(B, P, C), bias=drawn(C),
        skip=drawn(B, P, 64), shift=drawn(C + 64).expand(B, -1),
    )  # fmt: skip
    return [*plain, *joined]


def in_strips(case: Callable[..., list[Tensor]], ops) -> list[Tensor]:
    """Run a case as if no group were small enough for one program."""
    before, maps.WHOLE = maps.WHOLE, 0
    try:
        return case(ops)
    finally:
        maps.WHOLE = before


def group_norm(ops) -> list[Tensor]:
    return in_strips(group_norm_of_few_pixels, ops)


def group_norm_of_many_strips(ops) -> list[Tensor]:
    before, maps.SPLITS = maps.SPLITS, 8
    made = ops.group_norm(drawn(1, 10000, C) + 100, norm_of(C), silu=True)
    maps.SPLITS = before
    return list(made)


def group_norm_of_few_to_fp8(ops) -> list[Tensor]:
    return [ops.group_norm(drawn(B, P, C), norm_of(C), silu=True, quant=torch.tensor(40.0))[1]]


def group_norm_to_fp8(ops) -> list[Tensor]:
    return in_strips(group_norm_of_few_to_fp8, ops)


def convolve(ops) -> list[Tensor]:
    x = drawn(B, 9 * 20, 64)
    narrow = ops.convolve(x, drawn(96, 3, 3, 64), (9, 20), torch.float32)
    wide = ops.convolve(x, drawn(320, 3, 3, 64), (20, 9), torch.float32, scale=drawn(320))
    return [narrow, wide]


def convolve_in_fp8(ops) -> list[Tensor]:
    x, weight = (
        reference.to_fp8(drawn(*s), torch.tensor(16.0)) for s in ((1, 40, 128), (64, 3, 3, 128))
    )
    return [ops.convolve(x, weight, (8, 5), torch.float32, scale=drawn(64))]


def layer_norm(ops) -> list[Tensor]:
    return [ops.layer_norm(drawn(50, C), drawn(C), drawn(C), 1e-5, shift=drawn(C))]


def layer_norm_adds(ops) -> list[Tensor]:
    x = drawn(51, C)
    return [ops.layer_norm(x, drawn(C), drawn(C), 1e-5, add=drawn(51, C)), x]


def geglu(ops) -> list[Tensor]:
    return [
        ops.geglu(drawn(100, 160), drawn(448, 160), drawn(448)),
        ops.geglu(drawn(20, 64), drawn(256, 64), drawn(256), scale=torch.tensor(0.25)),
        ops.geglu(drawn(100, 672), drawn(640, 672), drawn(640)),
    ]


def gate(ops) -> list[Tensor]:
    return [ops.gate(drawn(50, 448), drawn(448))]


def int8(ops) -> list[Tensor]:
    rounded, scale = ops.to_int8(drawn(33, 160))
    sums = torch.randint(-(2**20), 2**20, (33, 140), dtype=torch.int32)
    return [rounded, scale, ops.from_int32(sums, scale, drawn(140).abs(), torch.float32)]


def attend(ops) -> list[Tensor]:
    q, kv = drawn(B, 300, 4, 32), drawn(B, 77, 500)
    text = (kv[..., first : first + 128].unflatten(-1, (4, 32)) for first in (10, 200))
    crossed = ops.attend(*(x.transpose(1, 2) for x in (q, *text)))
    own = drawn(B, 100, 3, 4, 32).unbind(2)
    return [crossed, ops.attend(*(x.transpose(1, 2) for x in own))]


def attend_to_many(ops) -> list[Tensor]:
    apart = [x.unbind(2) for x in (drawn(B, 300, 3, 4, 32), drawn(1, 512, 3, 2, 32))]
    return [ops.attend(*(x.transpose(1, 2) for x in each)) for each in apart]


def ask(ops) -> list[Tensor]:
    x, weight, kv = drawn(B * 150, 96), drawn(128, 96), drawn(B, 77, 500)
    k, v = (kv[..., at : at + 128].unflatten(-1, (4, 32)).transpose(1, 2) for at in (10, 200))
    return [ops.ask(x, weight, k, v), ops.ask(x, weight, k, v, scale=torch.tensor(0.2))]


def attend_to_fp8(ops) -> list[Tensor]:
    x, weight, kv = drawn(B * 70, 96), drawn(128, 96), drawn(2, B, 77, 4, 32).transpose(2, 3)
    q, quant = drawn(B, 70, 4, 32).transpose(1, 2), torch.tensor(20.0)
    found = ops.attend(q, *kv, quant=quant), ops.ask(x, weight, *kv, quant=quant)
    return [each.float() for each in found]


def interleave(ops) -> list[Tensor]:
    return [ops.interleave(drawn(B, 5 * 7, 4 * C), (4, 6), drawn(C))]


def softmax(ops) -> list[Tensor]:
    return [ops.softmax(5 * drawn(4, 5000), torch.float32)]


def to_uint8(ops) -> list[Tensor]:
    halves = torch.arange(-300, 300) / 255 + 1 / 510
    return [ops.to_uint8(torch.cat([drawn(3000), halves]))]


def advance(ops) -> list[Tensor]:
    latents, clean = drawn(B, P, 4), drawn(B, P, 4)
    network_in, table = torch.zeros(2 * B, P, 4), drawn(5, 9)
    index, guidance = torch.tensor([3], dtype=torch.int32), torch.tensor([5.0, 7.0])
    ops.advance(
        latents, clean, drawn(2 * B, P, 4), network_in, drawn(B, P, 4), table, index, guidance
    )
    return [latents, clean, network_in]


def error(case: Callable[..., list[Tensor]]) -> float:
    """Return the largest relative error of a case's outputs, from the same draws."""
    results: list[list[Tensor]] = []
    for ops in (kernels, reference):
        torch.manual_seed(0)
        results.append(case(ops))
    got, want = results
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(got, want, strict=True)
    )


if __name__ == "__main__":
    _patch_index()
    _fence()
    json.dump({name: error(globals()[name]) for name in sys.argv[1:]}, sys.stdout)
