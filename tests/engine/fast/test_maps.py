"""Feature maps: resnets in fp8 beside the plain ones, and which convolutions are our own."""

from __future__ import annotations

import pytest
import torch

from packshot.engine.fast import reference
from packshot.engine.fast.maps import Map, Resnet
from packshot.engine.networks.blocks import ResnetBlock


def block_of(before: int, after: int) -> ResnetBlock:
    torch.manual_seed(0)
    block = ResnetBlock(before, after, groups=32, eps=1e-5).to(memory_format=torch.channels_last)
    return block.eval().requires_grad_(False)


def run(resnet: Resnet, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resnet(reference, Map(size, x.clone()), None).settle(reference)


@pytest.mark.parametrize("own", [False, True])
def test_a_resnet_computes_what_the_plain_one_does(own):
    block, x = block_of(64, 128), torch.randn(2, 5 * 6, 64)
    want = block(x.transpose(1, 2).unflatten(2, (5, 6))).flatten(2).transpose(1, 2)
    assert torch.allclose(run(Resnet(block, own=own), x, (5, 6)), want, atol=1e-4)


def test_a_resnet_in_fp8_stays_near_and_rounds_what_it_reads(monkeypatch):
    block, x = block_of(64, 128), torch.randn(2, 5 * 6, 64)
    want = run(Resnet(block), x, (5, 6))
    rounded = Resnet(block, own=True)
    rounded.in_fp8()
    seen: list[torch.dtype] = []
    plain = reference.convolve

    def convolve(x, *args, **kwargs):
        seen.append(x.dtype)
        return plain(x, *args, **kwargs)

    monkeypatch.setattr(reference, "convolve", convolve)
    got = run(rounded, x, (5, 6))
    assert seen == [reference.FP8, reference.FP8]
    assert 1e-4 < (got - want).norm() / want.norm() < 0.05


def test_where_our_kernel_does_not_pay_or_does_not_run_nothing_is_rounded(monkeypatch):
    block, x = block_of(64, 128), torch.randn(2, 5 * 6, 64)
    want = run(Resnet(block), x, (5, 6))
    older = Resnet(block)
    older.in_fp8()
    assert torch.equal(run(older, x, (5, 6)), want)
    small = Resnet(block, own=True)
    small.in_fp8()
    monkeypatch.setattr(reference, "convolve_pays", lambda pixels, channels, *, fp8: False)
    assert torch.equal(run(small, x, (5, 6)), want)
    odd = Resnet(block_of(96, 96), own=True)
    odd.in_fp8()
    assert all(conv.fp8 is None for conv in odd.convs)
