"""Which kernel computes an attention: chosen by measuring, never the one that needs no GPU.

`F.scaled_dot_product_attention` picks by itself, and where a layout or a width does not suit its
fast kernels it falls into plain arithmetic without a word: five milliseconds of a step, once. Here
a kernel is named, and one that cannot run is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from packshot.core.errors import RenderFailed
from packshot.engine.fast.graphs import fastest

if TYPE_CHECKING:
    from packshot.engine.fast.maps import Kernels

__all__ = ["NAMES", "Attention"]

BACKENDS: dict[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

OURS = "packshot"
"""The name of our own kernel."""

NAMES = (*BACKENDS, OURS)

Shape = tuple[int, ...]


class Attention:
    """An `unet.Attend` that measures the backends for each new shape, and keeps the fastest.

    Args:
        kernels: whose `attend` is our own kernel.
        names: what to choose from, of `NAMES`.
        chosen: what was measured before, by the shapes of queries and keys; it is added to.
    """

    def __init__(
        self,
        kernels: Kernels,
        names: Sequence[str] = NAMES,
        chosen: dict[Shape, str] | None = None,
    ) -> None:
        self._kernels = kernels
        self.names = tuple(names)
        self.chosen: dict[Shape, str] = {} if chosen is None else chosen

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor:
        """Return the attention [B,heads,N,D]; `RenderFailed` where no backend takes the shape.

        With ``quant`` the result is fp8, which none but our own kernel writes.
        """
        if quant is not None:
            return self._kernels.attend(q, k, v, quant=quant)
        if not q.is_cuda:
            return F.scaled_dot_product_attention(q, k, v)
        key = (*q.shape, k.shape[2])
        name = self.chosen.get(key)
        if name is None and self._kernels.rehearsing():
            return torch.empty_like(q)  # the run after the rehearsal measures
        if name is None:
            name = self.chosen[key] = self._fastest(q, k, v)
        return self._run(name, q, k, v)

    def _run(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if name == OURS:
            return self._kernels.attend(q, k, v)
        with sdpa_kernel(BACKENDS[name]):
            return F.scaled_dot_product_attention(q, k, v)

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        ours = self._kernels.attends(k.shape[2])
        names = [name for name in self.names if name != OURS or ours]
        chosen, why = fastest({name: partial(self._run, name, q, k, v) for name in names}, q.device)
        if chosen is None:
            raise RenderFailed(
                f"no attention kernel takes queries {list(q.shape)} and keys {list(k.shape)} of "
                f"{q.dtype}: {why}."
            )
        return chosen
