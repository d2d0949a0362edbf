"""Which device and which arithmetic are chosen, and what is said of those that do not exist."""

from __future__ import annotations

import time

import pytest
import torch

from packshot.core.errors import InvalidRequest
from packshot.engine.devices import (
    Meter,
    capability,
    device_kind,
    has_fp8,
    pick_device,
    pick_precision,
    pick_vae_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        (0, "auto", "cpu"),
        (1, "auto", "cuda"),
        (1, "cpu", "cpu"),
        (1, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_the_device_is_the_one_asked_for(monkeypatch, gpus, name, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("cuda:x", "unknown device"),
        ("", "unknown device"),
        ("cuda", "torch sees 1 GPUs"),
        ("cuda:3", "torch sees 1 GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if name == "cuda":
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        said = "torch sees 0 GPUs"
    with pytest.raises(InvalidRequest, match=said):
        pick_device(name)


def test_auto_precision_is_fp32_on_a_cpu_and_bf16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert pick_precision("auto", CPU) == "fp32"
    assert pick_precision("auto", CUDA) == "bf16"
    assert pick_precision("fp16", CUDA) == "fp16"
    with pytest.raises(InvalidRequest, match=r"unknown precision 'fp4'.*bf16"):
        pick_precision("fp4", CPU)
    with pytest.raises(InvalidRequest, match=r"fp8 was asked for, and cpu does not.*Use bf16"):
        pick_precision("fp8", CPU)


@pytest.mark.parametrize(
    ("own", "said", "expected", "fp8"),
    [
        ((9, 0), None, (9, 0), True),
        ((9, 0), "", (9, 0), True),
        ((9, 0), "8.9", (8, 9), True),
        ((9, 0), "8.6", (8, 6), False),
        ((8, 0), "9.0", (8, 0), False),
        ((10, 0), "9.0", (9, 0), True),
    ],
)
def test_a_newer_gpu_can_be_taken_for_an_older_one_never_for_a_newer(
    monkeypatch, own, said, expected, fp8
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: own)
    monkeypatch.delenv("PACKSHOT_COMPUTE_CAPABILITY", raising=False)
    if said is not None:
        monkeypatch.setenv("PACKSHOT_COMPUTE_CAPABILITY", said)
    assert capability(CUDA) == expected
    assert has_fp8(CUDA) is fp8
    assert capability(CPU) == (0, 0)
    assert not has_fp8(CPU)


def test_a_gpu_before_ampere_runs_in_fp32_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert pick_precision("auto", CUDA) == "fp32"
    assert pick_precision("fp32", CUDA) == "fp32"
    for name in ("bf16", "int8"):
        with pytest.raises(InvalidRequest, match=rf"{name} was asked for, and t4 is older.*fp32"):
            pick_precision(name, CUDA)


@pytest.mark.parametrize("said", ["8", "abc", "8.x", "-8.0", "8.0.1"])
def test_what_is_no_compute_capability_is_refused(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("PACKSHOT_COMPUTE_CAPABILITY", said)
    with pytest.raises(InvalidRequest, match=rf"is '{said}'; expected two numbers, such as 8\.0"):
        capability(CUDA)


def test_an_older_gpu_refuses_fp8_and_takes_int8(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("PACKSHOT_COMPUTE_CAPABILITY", "8.6")
    with pytest.raises(InvalidRequest, match=r"h100 does not multiply in it.*Use bf16"):
        pick_precision("fp8", CUDA)
    assert pick_precision("int8", CUDA) == "int8"


@pytest.mark.parametrize(
    ("asked", "model", "force_upcast", "expected"),
    [
        ("auto", "bf16", True, "bf16"),
        ("auto", "fp16", True, "fp32"),
        ("auto", "fp16", False, "fp16"),
        ("auto", "fp32", True, "fp32"),
        ("fp32", "bf16", False, "fp32"),
        ("fp16", "bf16", True, "fp16"),
    ],
)
def test_the_vae_runs_where_its_activations_fit(asked, model, force_upcast, expected):
    assert pick_vae_precision(asked, model, force_upcast=force_upcast) == expected


def test_an_unknown_vae_precision_is_refused():
    with pytest.raises(InvalidRequest, match="unknown VAE precision"):
        pick_vae_precision("half", "bf16", force_upcast=False)


def test_a_stage_is_timed_and_a_failed_one_is_not_counted():
    meter = Meter(CPU)
    with meter.stage("denoise", steps=3, pixels=12):
        time.sleep(0.02)
    with pytest.raises(KeyError), meter.stage("decode"):
        raise KeyError
    (usage,) = meter.usage
    assert (usage.stage, usage.steps, usage.pixels, usage.device) == ("denoise", 3, 12, "cpu")
    assert 0.02 <= usage.seconds < 5


def test_a_gpu_is_waited_for_once_at_the_end_of_each_stage(monkeypatch):
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    meter = Meter(CUDA)
    with meter.stage("encode"):
        assert waits == []
    assert waits == [CUDA]
    assert meter.usage[0].device == "h100"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H100 NVL", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA", "cuda"),
    ],
)
def test_the_kind_of_a_device_is_what_its_price_is_filed_under(monkeypatch, name, kind):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert device_kind(torch.device("cuda:1")) == kind
    assert device_kind(CPU) == "cpu"
