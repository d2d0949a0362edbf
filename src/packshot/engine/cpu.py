"""What a CPU does sooner than the networks as written: the same sums in another order.

oneDNN reorders the weights of a convolution before every call, which takes as long as the call
itself where pictures are small; here it is done once. And nearest-neighbour doubling before a 3x3
convolution makes it add up equal pixels; here their weights are added up instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from packshot.engine.networks.blocks import Upsample, phased

__all__ = ["PackedConv2d", "PhasedUpsample", "prepare"]


def prepare(network: nn.Module) -> None:
    """Replace the convolutions and upsamplings inside ``network``, which is on the CPU, in place.

    Its outputs stay the same but for rounding; its state dict does not, so load weights before.
    """
    for name, child in list(network.named_children()):
        if isinstance(child, Upsample):
            setattr(network, name, PhasedUpsample(child))
        elif isinstance(child, nn.Conv2d) and packing_pays(child.weight.dtype):
            setattr(network, name, PackedConv2d(child))
        else:
            prepare(child)


def packing_pays(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN's own layout of weights is the faster one here, and can be had.

    With AVX-512 it saves a twentieth; without, the kernels that it leads to take 3.4 times as long
    (an AMD EPYC with AVX2, benchmarks/LOG.md), and 16-bit weights are refused.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
        return False
    if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():  # noqa: SLF001
        return False
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class PackedConv2d(nn.Module):
    """A convolution whose weights lie as oneDNN wants them.

    By the two calls that torch's own compiler makes for it; they have no public name.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not isinstance(conv.padding, tuple) or conv.padding_mode != "zeros":
            raise TypeError(f"only zeros, a fixed number of them, can be padded with: {conv}")
        self.padding = conv.padding
        self.bias = conv.bias
        self._geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        reorder = torch.ops.mkldnn._reorder_convolution_weight  # noqa: SLF001 (see above)
        self._weight: Tensor = reorder(conv.weight.detach(), *self._geometry, None)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,c_in,h,w] to what the convolution maps it to, in NHWC memory."""
        convolve = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001 (see above)
        return convolve(x, self._weight, self.bias, *self._geometry, "none", [], "")


class PhasedUpsample(nn.Module):
    """Doubling and a 3x3 convolution as one 2x2 convolution for each of the four output phases.

    See `networks.blocks.phased`.
    """

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        conv = upsample.conv
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        weight = phased(conv.weight.detach())
        self.channels = conv.out_channels
        all_four = nn.Conv2d(conv.in_channels, len(weight), 2, padding=1, device="meta")
        all_four.weight = nn.Parameter(weight, requires_grad=False)
        all_four.bias = nn.Parameter(bias.repeat(4), requires_grad=False)
        self.phased = nn.Sequential(all_four)
        self.plain = upsample
        prepare(self.phased)
        prepare(self.plain)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map [B,C,h,w] to [B,C,height,width]; where that is no doubling, as written."""
        b, _, h, w = x.shape
        if (height, width) != (2 * h, 2 * w):
            return self.plain(x, height, width)
        phases = self.phased(x).unflatten(1, (2, 2, self.channels))
        shape, nhwc = (b, self.channels, height, width), torch.channels_last
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=nhwc)
        for i in (0, 1):
            for j in (0, 1):
                out[:, :, i::2, j::2] = phases[:, j, i, :, i : i + h, j : j + w]
        return out
