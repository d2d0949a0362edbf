"""The networks as prepared for a CPU against the networks as written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from packshot.engine import cpu
from packshot.engine.cpu import PackedConv2d, PhasedUpsample, prepare
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.blocks import Upsample
from packshot.engine.networks.tiny_vae import TinyVAE
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE
from packshot.engine.weights import load

pytestmark = pytest.mark.usefixtures("_inference")


@pytest.fixture
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 4, 9, 13), (3, 4, 40, 5)])
def test_a_packed_convolution_is_the_convolution(kernel, stride, padding, bias, shape):
    conv = nn.Conv2d(4, 24, kernel, stride, padding, bias=bias)
    packed = PackedConv2d(conv)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    y = packed(x)
    assert relative(y, conv(x)) < 1e-6
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(packed(x.contiguous()), conv(x)) < 1e-6


def test_a_convolution_that_pads_with_something_else_is_refused():
    with pytest.raises(TypeError, match="padded"):
        PackedConv2d(nn.Conv2d(4, 4, 3, padding="same"))
    with pytest.raises(TypeError, match="padded"):
        PackedConv2d(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (16, 9)])
def test_phased_doubling_is_doubling_and_convolving(monkeypatch, size, dtype):
    if dtype == torch.float64:  # which oneDNN does not know: the algebra alone, exactly
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    upsample = Upsample(6).to(dtype)
    h, w = size
    x = torch.randn(2, 6, h, w, dtype=dtype).to(memory_format=torch.channels_last)
    plain = upsample(x, 2 * h, 2 * w)
    assert relative(PhasedUpsample(upsample)(x, 2 * h, 2 * w), plain) < (
        1e-6 if dtype == torch.float32 else 1e-14
    )


def test_an_upsampling_to_an_odd_size_is_as_written():
    upsample = Upsample(6)
    x = torch.randn(2, 6, 4, 5)
    plain = upsample(x, 7, 9)
    assert relative(PhasedUpsample(upsample)(x, 7, 9), plain) < 1e-6


def test_what_is_made_of_it_is_in_the_arithmetic_asked_for():
    x = torch.randn(1, 6, 4, 4, dtype=torch.bfloat16)
    assert PhasedUpsample(Upsample(6).bfloat16())(x, 8, 8).dtype == torch.bfloat16


def prepared(kind, folder: ModelFolder, component: str):
    network = load(kind, folder, component, channels_last=True)
    prepare(network)
    left = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert bool(left) != cpu.packing_pays(torch.float32)
    return network


@pytest.mark.parametrize("pays", [True, False])
def test_whole_networks_are_the_same_but_for_rounding(tiny_sdxl, monkeypatch, pays):
    monkeypatch.setattr(cpu, "packing_pays", lambda dtype: pays)
    folder = ModelFolder.open(tiny_sdxl)
    latents = torch.randn(2, 4, 8, 12)
    for kind, component in ((VAE, "vae"), (TinyVAE, "tiny_vae")):
        plain, fast = load(kind, folder, component), prepared(kind, folder, component)
        assert relative(fast.decode(latents), plain.decode(latents)) < 1e-5
        pixels = torch.randn(2, 3, 64, 96).clamp(-1, 1)
        assert relative(fast.encode(pixels), plain.encode(pixels)) < 1e-5

    plain, fast = load(UNet, folder, "unet"), prepared(UNet, folder, "unet")
    told = (torch.randn(2, 77, 64), torch.randn(2, 24), torch.full((2, 6), 64.0))
    for size in ((8, 12), (9, 13)):
        noisy = torch.randn(2, 4, *size)
        ours, theirs = (net.predict(noisy, torch.tensor(401), *told) for net in (fast, plain))
        assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize(("capability", "pays"), [("AVX2", False), ("AVX512", True)])
def test_packing_is_for_processors_where_it_pays(monkeypatch, capability, pays):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu.packing_pays(torch.float32) == pays


def test_without_onednn_only_the_algebra_changes(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(Upsample(4)))
    prepare(network)
    assert isinstance(network[0], nn.Conv2d)
    assert isinstance(network[1][0], PhasedUpsample)
