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


EACH = 3
"""What is seen of a block: its attention to itself, that to the text, and its gated unit."""

WATCHED = frozenset(("attend", "ask", "geglu", "gate"))
"""The kernels that compute the latter two."""


class _Watching:
    """Kernels, of whose outputs ``seen`` gets the largest in the order in which they come."""

    def __init__(self, kernels: Kernels, seen: list[Tensor]) -> None:
        self._kernels, self._seen = kernels, seen

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the kernels have)
        found = getattr(self._kernels, name)
        return _noted(found, self._seen) if name in WATCHED else found


def _noted(act: Callable[..., Tensor], seen: list[Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 (as it is called)
        out = act(*args, **kwargs)
        seen.append(out.abs().amax().float())
        return out

    return run


def calibrate(unet: FastUNet, step: Callable[[], object], steps: int) -> list[float]:
    """Return the largest that left each block's two attentions, and then its gated unit.

    `EACH` for a block, one block after the other, over ``steps`` calls of ``step``. ``unet`` must
    not be in fp8 yet, and ``step`` must run it once, ungraphed.
    """
    kernels, attend = unet.kernels, unet.attend
    seen: list[Tensor] = []
    watching: Any = _Watching(kernels, seen)
    unet.kernels, unet.attend = watching, _noted(attend, seen)
    try:
        for _ in range(steps):
            step()
    finally:
        unet.kernels, unet.attend = kernels, attend
    count = len(seen) // steps
    return [max(float(each) for each in seen[place::count]) for place in range(count)]


def to_fp8(unet: FastUNet, largest: list[float]) -> None:
    """Turn ``unet``'s blocks to fp8, by what `calibrate` saw, and its resnets but the last ones.

    What the last level rounds is in the prediction: of all drift it made half, for a quarter of
    what the convolutions save (benchmarks/LOG.md).
    """
    seen = zip(*(largest[place::EACH] for place in range(EACH)), strict=True)
    for block, tops in zip(unet.blocks(), seen, strict=True):
        block.in_fp8(*(MARGIN * top for top in tops))
    for level in unet.levels()[:-1]:
        for resnet in level.resnets:
            resnet.in_fp8()


def to_int8(unet: FastUNet) -> None:
    """Turn ``unet``'s blocks to int8, whose scales follow each input."""
    for block in unet.blocks():
        block.in_int8(unet.kernels)
