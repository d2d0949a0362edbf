"""How fast SDXL is on this GPU: ours and diffusers' in one run, from a text to bytes.

    python benchmarks/gpu/sdxl.py [--parts latency,throughput,vae,small,drift,cold,rival]
    python benchmarks/gpu/sdxl.py --parts throughput,rival-throughput

Random weights of SDXL's true shape, 1024x1024, guidance on every step. The rival is diffusers with
UNet and VAE compiled, channels last, guidance in one batch, whatever attention torch picks there.
Medians (least to most). The floor is the arithmetic over what this chip was measured to do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from world import PROMPTS, Times, drift, make_folder, timed

from packshot.core.types import RenderRequest
from packshot.engine.devices import pick_device
from packshot.engine.drift import exact_products
from packshot.engine.engine import Engine
from packshot.engine.folder import ModelFolder
from packshot.engine.model import Model
from packshot.engine.runner import PlainRunner

STEP_TFLOP, DECODE_TFLOP = 13.52, 10.47  # counted on these networks; DIFFUSION.md
FOLDER = Path(os.environ.get("SDXL_FOLDER", "/tmp/sdxl-random"))  # noqa: S108 (7 GB, to be kept)
LATENCY = RenderRequest(PROMPTS[0], (1,), 1024, 1024, 30, 5.0, schedule="karras")
THROUGHPUT = RenderRequest(PROMPTS[0], tuple(range(8)), 1024, 1024, 20, 8.0, sampler="euler")


def say(name: str, times: Times | float, unit: str = "ms") -> None:
    shown = f"{times:9.2f}" if isinstance(times, float) else str(times)
    print(f"{name:<46} {shown} {unit}", flush=True)


def ceilings() -> dict[str, float]:
    """Return TFLOP/s of a large product in bf16 and fp8, and TB/s of a copy."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bf16 = 2 * size**3 / timed(lambda: a @ b, 10).median / 1e9
    x, y, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device="cuda")
    fp8 = 2 * size**3 / 1e9 / timed(
        lambda: torch._scaled_mm(x, y.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    ).median  # fmt: skip
    big = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    copy = 2 * 2**30 / timed(lambda: other.copy_(big)).median / 1e9
    return {"bf16": bf16, "fp8": fp8, "copy": copy}


class Ours:
    """The engine as users have it."""

    def __init__(self) -> None:
        start = time.perf_counter()
        model = Model(ModelFolder.open(FOLDER), pick_device("cuda"), "bf16", "auto")
        torch.cuda.synchronize()
        self.loaded_s = time.perf_counter() - start
        self.engine = Engine(model)

    def latency(self, precision: str) -> Times:
        request = replace(LATENCY, precision=precision)
        return timed(lambda: self.engine.render(request), 10)

    def throughput(self, precision: str) -> Times:
        request = replace(THROUGHPUT, precision=precision)
        return timed(lambda: self.engine.render(request), 3, 1)

    def stages(self, request: RenderRequest) -> dict[str, float]:
        return {u.stage: u.seconds * 1e3 for u in self.engine.render(request).usage}


def small_step(engine: Engine, precision: str) -> Times:
    """Time one step at 512x512, by replaying its graph."""
    engine.render(replace(LATENCY, width=512, height=512, steps=3, precision=precision))
    tier = "exact" if precision == "bf16" else precision
    graph = next(g for (t, s), g in engine.runner.steps.items() if s.height == 64 and t == tier)
    with torch.inference_mode():
        graph.index.zero_()
        return timed(graph.step, 30)


def drifts(ours: Ours) -> dict[str, float]:
    """Return the error of the final latents of 30 steps against the plain networks in fp32."""
    from packshot.engine.denoise import noise_of
    from packshot.engine.runner import Runner, Task
    from packshot.engine.samplers import plan

    model = ours.engine.model
    steps = plan(
        model.noise, sampler="dpmpp-2m", schedule="karras", spacing="leading", steps=30,
        device=model.device,
    )  # fmt: skip
    ends: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        texts = ours.engine.runner.encode(["", PROMPTS[0]])
        task = Task(steps, texts, 1024, 1024, 5.0)

        def ended(runner: Runner, task: Task) -> torch.Tensor:
            noise = noise_of((1,), (4, 128, 128), model.device)
            return runner.denoise(task, 1, noise, None)

        ends["ours bf16"] = ended(ours.engine.runner, task)
        for tier in ("fp8", "int8"):
            ends[f"ours {tier}"] = ended(ours.engine.runner, replace(task, tier=tier))
        ends["eager bf16"] = ended(PlainRunner(model), task)
        exact = Model(model.folder, model.device, "fp32", "fp32")
        texts32 = replace(texts, tokens=texts.tokens.float(), pooled=texts.pooled.float())
        with exact_products():
            want = ended(PlainRunner(exact), replace(task, texts=texts32))
    return {name: drift(end, want) for name, end in ends.items()}


def diffusers_compiled() -> Any:  # noqa: ANN401 (it has no types)
    """Return diffusers' pipeline on the same folder, as strong as it gets without other work."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(FOLDER, torch_dtype=torch.bfloat16).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.config.force_upcast = False
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode="reduce-overhead", fullgraph=True)
    return pipe


def rival_run(
    pipe: Any,  # noqa: ANN401
    steps: int,
    guidance: float,
    count: int = 1,
    output: str = "pil",
) -> object:
    return pipe(
        PROMPTS[0], negative_prompt="", num_inference_steps=steps, guidance_scale=guidance,
        height=1024, width=1024, num_images_per_prompt=count, output_type=output,
    )  # fmt: skip


def rival(report: dict[str, Any]) -> None:
    """Time diffusers, compiled, for one picture."""
    from diffusers import DPMSolverMultistepScheduler

    pipe = diffusers_compiled()
    config = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)
    start = time.perf_counter()
    rival_run(pipe, 2, 5.0)
    torch.cuda.synchronize()
    report["rival_compile_s"] = time.perf_counter() - start
    say("diffusers compiled: first picture after loading", report["rival_compile_s"], "s")
    times = timed(lambda: rival_run(pipe, 30, 5.0), 7)
    report["rival_latency_ms"] = times.median
    say("diffusers compiled: 30 steps, text to PIL", times)
    times = timed(lambda: rival_run(pipe, 30, 5.0, output="pt"), 5)
    report["rival_latency_pt_ms"] = times.median
    say("diffusers compiled: 30 steps, text to tensor", times)
    latents = torch.randn(1, 4, 128, 128, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        times = timed(lambda: pipe.vae.decode(latents, return_dict=False), 10)
        report["rival_decode_ms"] = times.median
        say("diffusers compiled: VAE decode", times)
        times = timed(lambda: pipe.encode_prompt(PROMPTS[0], negative_prompt=""), 10)
        report["rival_encode_ms"] = times.median
        say("diffusers: a text and the empty one", times)


def rival_throughput(report: dict[str, Any]) -> None:
    """Time diffusers, compiled, for eight pictures at a time: in a call of its own, it compiles."""
    from diffusers import EulerDiscreteScheduler

    pipe = diffusers_compiled()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    start = time.perf_counter()
    rival_run(pipe, 2, 8.0, 8)
    torch.cuda.synchronize()
    say("diffusers compiled: first eight pictures", time.perf_counter() - start, "s")
    times = timed(lambda: rival_run(pipe, 20, 8.0, 8), 3, 1)
    report["rival_throughput"] = 8e3 / times.median
    say("diffusers compiled: 20 Euler steps, batch 8", 8e3 / times.median, "pictures/s")


def cold(label: str, env: dict[str, str]) -> float:
    """Return the seconds from the start of a process to its first picture, loaded as users do."""
    source = str(Path(__file__).parents[2] / "src")
    code = (
        f"import sys; sys.path.insert(0, {source!r}); from pathlib import Path;"
        "from packshot.core.types import RenderRequest;"
        "from packshot.engine.folder import ModelFolder;"
        "from packshot.studio.loading import load_model;"
        f"e = load_model(ModelFolder.open(Path({str(FOLDER)!r})), 'cuda', ('auto', 'auto'));"
        "e.render(RenderRequest('a red mug', (1,), 1024, 1024, 30, 5.0))"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | env)
    seconds = time.perf_counter() - start
    say(f"process start to first picture, {label}", seconds, "s")
    return seconds


@contextmanager
def part(name: str, parts: set[str]) -> Iterator[bool]:
    """Tell whether a part is wanted; one that fails is shown, and the others go on."""
    try:
        yield name in parts
    except Exception:
        traceback.print_exc(limit=4)
        print(f"FAILED: {name}", flush=True)


def measure(ours: Ours, report: dict[str, Any], parts: set[str]) -> None:
    """Time the engine, part by part."""
    floor = {"bf16": (30 * STEP_TFLOP + DECODE_TFLOP) / report["ceilings"]["bf16"] * 1e3}
    floor["fp8"] = (
        30 * STEP_TFLOP / report["ceilings"]["fp8"] + DECODE_TFLOP / report["ceilings"]["bf16"]
    ) * 1e3
    floor["int8"] = floor["fp8"]  # the tensor cores do as many of either
    for precision in ("bf16", "fp8", "int8"):
        with part("latency", parts) as wanted:
            if wanted:
                times = ours.latency(precision)
                report[f"latency_{precision}_ms"] = times.median
                say(f"ours {precision}: 30 steps, text to bytes", times)
                say(
                    f"    of the floor, {floor[precision]:.0f} ms",
                    100 * floor[precision] / times.median,
                    "%",
                )
                stages = ours.stages(replace(LATENCY, precision=precision))
                print("   ", {stage: round(ms, 1) for stage, ms in stages.items()})
    for precision in ("bf16", "fp8"):
        with part("small", parts) as wanted:
            if wanted:
                times = small_step(ours.engine, precision)
                report[f"step_512_{precision}_ms"] = times.median
                say(f"ours {precision}: one step at 512x512", times)
    for precision in ("bf16", "fp8"):
        with part("throughput", parts) as wanted:
            if wanted:
                times = ours.throughput(precision)
                report[f"throughput_{precision}"] = 8e3 / times.median
                say(f"ours {precision}: 20 Euler steps, batch 8", 8e3 / times.median, "pictures/s")
    with part("vae", parts) as wanted, torch.inference_mode():
        if wanted:
            runner = ours.engine.runner
            runner.decode([torch.randn(4, 128, 128, device="cuda")])
            times = timed(runner._decodes[128, 128].captured, 20)
            report["decode_ms"] = times.median
            say("ours: VAE decode", times)
            times = timed(lambda: runner.encode([PROMPTS[0]]), 20)
            report["encode_ms"] = times.median
            say("ours: one text, tokenizers and copies too", times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="latency,throughput,vae,small,drift,cold,rival")
    parts = set(parser.parse_args().parts.split(","))
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN",
          torch.backends.cudnn.version(), "Python", sys.version.split()[0])  # fmt: skip
    start = time.perf_counter()
    make_folder(FOLDER)
    say("the folder was made in", time.perf_counter() - start, "s")
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    report["ceilings"] = top = ceilings()
    print({name: round(value, 2) for name, value in top.items()})
    ours = Ours()
    report["load_s"] = ours.loaded_s
    say("ours: load 6.9 GB", ours.loaded_s, "s")
    start = time.perf_counter()
    ours.engine.render(LATENCY)
    say("ours: first picture after loading", time.perf_counter() - start, "s")
    measure(ours, report, parts)
    report["memory_gb"] = torch.cuda.max_memory_reserved() / 1e9
    say("ours: most memory reserved", report["memory_gb"], "GB")
    with part("drift", parts) as wanted:
        if wanted:
            report["drift"] = drifts(ours)
            print("drift of the final latents against fp32:", report["drift"])
    del ours
    torch.cuda.empty_cache()
    with part("cold", parts) as wanted:
        if wanted:
            scratch = f"/tmp/packshot-{os.getpid()}"  # noqa: S108
            caches = {"TRITON_CACHE_DIR": f"{scratch}/triton", "XDG_CACHE_HOME": scratch}
            report["cold_s"] = cold("compile caches cold", caches)
            report["warm_s"] = cold("compile caches warm", caches)
    with part("rival", parts) as wanted:
        if wanted:
            rival(report)
    with part("rival-throughput", parts) as wanted:
        if wanted:
            rival_throughput(report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
