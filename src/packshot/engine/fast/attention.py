"""Which kernel computes an attention: chosen by measuring, never the one that needs no GPU.

`F.scaled_dot_product_attention` picks by itself, and where a layout or a width does not suit its
fast kernels it falls into plain arithmetic without a word: five milliseconds of a step, once. Here
a kernel is named, and one that cannot run is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from packshot.core.errors import RenderFailed
from packshot.engine.fast.graphs import beside

__all__ = ["BACKENDS", "Attention"]

BACKENDS: dict[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

Shape = tuple[int, ...]


class Attention:
    """An `unet.Attend` that measures the backends for each new shape, and keeps the fastest.

    Args:
        names: the backends to choose from, by name.
        chosen: what was measured before, by the shapes of queries and keys; it is added to.
    """

    def __init__(
        self, names: Sequence[str] = tuple(BACKENDS), chosen: dict[Shape, str] | None = None
    ) -> None:
        self.names = tuple(names)
        self.chosen: dict[Shape, str] = {} if chosen is None else chosen

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention [B,heads,N,D]; `RenderFailed` where no backend takes the shape."""
        if not q.is_cuda:
            return F.scaled_dot_product_attention(q, k, v)
        key = (*q.shape, k.shape[2])
        name = self.chosen.get(key)
        if name is None:
            name = self.chosen[key] = self._fastest(q, k, v)
        with sdpa_kernel(BACKENDS[name]):
            return F.scaled_dot_product_attention(q, k, v)

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        times: dict[str, float] = {}
        refused: list[str] = []
        for name in self.names:
            try:
                times[name] = _seconds(BACKENDS[name], q, k, v)
            except RuntimeError as error:
                refused.append(f"{name}: {str(error).splitlines()[0]}")
        if not times:
            raise RenderFailed(
                f"no attention kernel takes queries {list(q.shape)} and keys {list(k.shape)} of "
                f"{q.dtype}: {'; '.join(refused)}."
            )
        return min(times, key=times.__getitem__)


def _seconds(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Return the best of three replays of eight, in seconds: of the device, not of its host."""
    with sdpa_kernel(backend):
        with beside(q.device):
            F.scaled_dot_product_attention(q, k, v)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(8):
                F.scaled_dot_product_attention(q, k, v)
    best = float("inf")
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 8e3)
    return best
