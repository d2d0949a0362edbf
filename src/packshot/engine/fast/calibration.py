"""The scales of fp8: how large what is not bounded by its making gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from packshot.engine.fast.unet import FastUNet, Kernels

__all__ = ["MARGIN", "calibrate", "to_fp8", "to_int8"]

MARGIN = 4.0
"""How much larger than all that was seen a value may get before it saturates.

e4m3 is floating-point: a factor of four costs two of the fifteen binades, the smallest ones.
"""


class _Watching:
    """Kernels that note the largest output of every gated unit, in the order of the blocks."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.largest: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the kernels have)
        return getattr(self._kernels, name)

    def geglu(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 (as it is called)
        return self._noted(self._kernels.geglu(*args, **kwargs))

    def gate(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 (where geglu does not run)
        return self._noted(self._kernels.gate(*args, **kwargs))

    def _noted(self, out: Tensor) -> Tensor:
        self.largest.append(out.abs().amax().float())
        return out


def calibrate(unet: FastUNet, step: Callable[[], object], steps: int) -> list[float]:
    """Return each block's largest output of its gated unit, over ``steps`` calls of ``step``.

    ``unet`` must not be in fp8 yet, and ``step`` must run it once, ungraphed.
    """
    kernels = unet.kernels
    watching: Any = _Watching(kernels)
    unet.kernels = watching
    try:
        for _ in range(steps):
            step()
    finally:
        unet.kernels = kernels
    count = len(watching.largest) // steps
    return [max(float(seen) for seen in watching.largest[block::count]) for block in range(count)]


def to_fp8(unet: FastUNet, largest: list[float]) -> None:
    """Turn ``unet``'s blocks to fp8, by what `calibrate` saw, and its resnets but the last ones.

    What the last level rounds is in the prediction: of all drift it made half, for a quarter of
    what the convolutions save (benchmarks/LOG.md).
    """
    for block, top in zip(unet.blocks(), largest, strict=True):
        block.in_fp8(MARGIN * top)
    for level in unet.levels()[:-1]:
        for resnet in level.resnets:
            resnet.in_fp8()


def to_int8(unet: FastUNet) -> None:
    """Turn ``unet``'s blocks to int8, whose scales follow each input."""
    for block in unet.blocks():
        block.in_int8(unet.kernels)
