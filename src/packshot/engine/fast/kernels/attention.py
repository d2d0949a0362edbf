# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""Attention: to few keys, such as a text's, in one tile; to many by tiles (arXiv:2205.14135)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from packshot.engine.fast.kernels.launch import EARLY, await_inputs, block_k, launch
from packshot.engine.fast.reference import FP8, FP8_MAX

__all__ = ["ask", "ask_pays", "attend", "attends"]

FEW = 128
"""Keys that are taken in one tile: more would be kept in registers that are not there."""


@triton.jit
def _attended(queries, k, v, at, there, quant, SCALE, TO_FP8: tl.constexpr, LIMIT: tl.constexpr):
    """Return the attention of ``queries`` [rows,HEAD] to the keys and values ``at`` a place."""
    scores = tl.dot(queries, tl.load(k + at, mask=there[:, None], other=0.0).T) * SCALE
    scores = tl.where(there[None, :], scores, -float("inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    values = tl.load(v + at, mask=there[:, None], other=0.0)
    y = tl.dot(weights.to(values.dtype), values) / tl.sum(weights, 1)[:, None]
    if TO_FP8:
        y = tl.clamp(y * tl.load(quant), -LIMIT, LIMIT)
    return y


@triton.jit
def _attend(q, k, v, out, quant, N, T, C, Q_ROW, Q_PICTURE, K_ROW, K_PICTURE, SCALE,
            TO_FP8: tl.constexpr, LIMIT: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr,
            WIDTH: tl.constexpr):  # fmt: skip
    """A block of queries of one head to all keys."""
    await_inputs()
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    cols = head * HEAD + tl.arange(0, HEAD)
    keys = tl.arange(0, WIDTH)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (rows < N)[:, None]
    at = b * K_PICTURE + keys[:, None] * K_ROW + cols[None, :]
    queries = tl.load(q + b * Q_PICTURE + rows[:, None] * Q_ROW + cols[None, :], mask=inside)
    y = _attended(queries, k, v, at, keys < T, quant, SCALE, TO_FP8, LIMIT)
    into = (b * N + rows[:, None]) * C + cols[None, :]
    tl.store(out + into, y.to(out.dtype.element_ty), mask=inside)


def attends(keys: int) -> bool:
    """Tell whether `attend` takes so many keys on this chip."""
    return keys <= FEW or EARLY


def attend(q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor:
    """As `reference.attend`, of rows in which the heads lie side by side; see `attends`."""
    b, heads, n, head = q.shape
    dtype = q.dtype if quant is None else FP8
    out = torch.empty((b, n, heads * head), dtype=dtype, device=q.device)
    by = _to_few if k.shape[2] <= FEW else _to_many
    by(q, k, v, out, quant)
    return out.view(b, n, heads, head).transpose(1, 2)


def _to_few(q: Tensor, k: Tensor, v: Tensor, out: Tensor, quant: Tensor | None) -> None:
    """`attend` in one tile of keys."""
    (b, heads, n, head), keys, rows = q.shape, k.shape[2], 64
    launch(
        _attend, (triton.cdiv(n, rows), heads, b),
        q, k, v, out, q if quant is None else quant, n, keys, heads * head, q.stride(2),
        q.stride(0), k.stride(2), k.stride(0), _scale(head), quant is not None, FP8_MAX, head, rows,
        _width(keys), num_warps=4,
    )  # fmt: skip


@triton.jit
def _attend_many(q, k, v, out, quant, T, SCALE, WHOLE: tl.constexpr, TO_FP8: tl.constexpr,
                 LIMIT: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr,
                 KEYS: tl.constexpr):  # fmt: skip
    """A block of queries of one head to all keys; all tensors are descriptors [B,N,C]."""
    await_inputs()
    first, head, b = tl.program_id(0) * ROWS, tl.program_id(1) * HEAD, tl.program_id(2)
    queries = tl.reshape(q.load([b, first, head]), [ROWS, HEAD])
    sums, total = tl.zeros([ROWS, HEAD], tl.float32), tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    for at in range(0, T, KEYS):
        scores = tl.dot(queries, tl.reshape(k.load([b, at, head]), [KEYS, HEAD]).T)
        if not WHOLE:
            scores = tl.where((at + tl.arange(0, KEYS) < T)[None, :], scores, -float("inf"))
        highest = tl.maximum(top, tl.max(scores, 1) * SCALE)
        weights = tl.exp2(scores * SCALE - highest[:, None])
        less = tl.exp2(top - highest)  # what came before is worth so much now
        total = total * less + tl.sum(weights, 1)
        values = tl.reshape(v.load([b, at, head]), [KEYS, HEAD])
        sums = tl.dot(weights.to(values.dtype), values, sums * less[:, None])
        top = highest
    y = sums / total[:, None]
    if TO_FP8:
        y = tl.clamp(y * tl.load(quant), -LIMIT, LIMIT)
    out.store([b, first, head], tl.reshape(y.to(out.dtype), [1, ROWS, HEAD]))


def _to_many(q: Tensor, k: Tensor, v: Tensor, out: Tensor, quant: Tensor | None) -> None:
    """`attend` by tiles of keys."""
    (b, heads, n, head), keys = q.shape, k.shape[2]
    rows, width = 64, 128

    def tiles(x: Tensor, height: int) -> TensorDescriptor:
        shape, strides = [b, x.shape[2], heads * head], [x.stride(0), x.stride(2), 1]
        return TensorDescriptor(x, shape, strides, [1, height, head])

    launch(
        _attend_many, (triton.cdiv(n, rows), heads, b),
        tiles(q, rows), tiles(k, width), tiles(v, width),
        TensorDescriptor.from_tensor(out, [1, rows, head]), q if quant is None else quant, keys,
        _scale(head), keys % width == 0, quant is not None, FP8_MAX, head, rows, width,
        num_warps=4, num_stages=2 if keys <= 2048 else 3,
    )  # fmt: skip


@triton.jit
def _ask(x, weight, k, v, out, scale, quant, T, C: tl.constexpr, K_ROW, K_PICTURE, SCALE,
         HAS_SCALE: tl.constexpr, TO_FP8: tl.constexpr, LIMIT: tl.constexpr, HEAD: tl.constexpr,
         ROWS: tl.constexpr, BK: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """The same, of queries that are made here; ``x`` [B,N,C] and ``out`` are descriptors."""
    await_inputs()
    head, first, b = tl.program_id(0), tl.program_id(1) * ROWS, tl.program_id(2)
    sums = tl.zeros([ROWS, HEAD], tl.float32)
    for step in range(0, C, BK):
        rows = tl.reshape(x.load([b, first, step]), [ROWS, BK])
        sums = tl.dot(rows, weight.load([head * HEAD, step]).T, sums)
    if HAS_SCALE:
        sums *= tl.load(scale)
    keys = tl.arange(0, WIDTH)
    cols = head * HEAD + tl.arange(0, HEAD)
    at = b.to(tl.int64) * K_PICTURE + keys[:, None] * K_ROW + cols[None, :]
    queries = sums.to(k.dtype.element_ty)
    y = _attended(queries, k, v, at, keys < T, quant, SCALE, TO_FP8, LIMIT)
    out.store([b, first, head * HEAD], tl.reshape(y.to(out.dtype), [1, ROWS, HEAD]))


def ask_pays(rows: int, channels: int, *, fp8: bool) -> bool:
    """Tell whether this was faster than a product and `attend` on an H100; benchmarks/LOG.md.

    It was not timed with fewer than 512 rows.
    """
    return fp8 or channels <= 640 or rows <= 512


Tiles = tuple[int, int]
"""Rows, stages."""


def _tiles(rows: int) -> Tiles:
    """Return what was fastest there."""
    if rows >= 8192:
        return 128, 4
    return (64, 6) if rows <= 512 else (64, 4)


def ask(
    x: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: Tensor | None = None,
    quant: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """As `reference.ask`, for few keys, and rows of ``x`` of multiples of 16 bytes."""
    (m, c), (b, heads, keys, head) = x.shape, k.shape
    out = torch.empty((m, heads * head), dtype=k.dtype if quant is None else FP8, device=x.device)
    rows, stages = tiles or _tiles(m)
    n, bk = m // b, block_k(c, x.element_size())
    tile = TensorDescriptor.from_tensor
    launch(
        _ask, (heads, triton.cdiv(n, rows), b),
        tile(x.view(b, n, c), [1, rows, bk]), tile(weight, [head, bk]), k, v,
        tile(out.view(b, n, -1), [1, rows, head]), x if scale is None else scale,
        x if quant is None else quant, keys, c, k.stride(2), k.stride(0), _scale(head),
        scale is not None, quant is not None, FP8_MAX, head, rows, bk, _width(keys), num_warps=4,
        num_stages=stages,
    )  # fmt: skip
    return out


def _scale(head: int) -> float:
    """Return what queries are multiplied by, for powers of two in place of e's."""
    return head**-0.5 * math.log2(math.e)


def _width(keys: int) -> int:
    return max(16, triton.next_power_of_2(keys))
