"""How fast a picture is made on a CPU: this engine and diffusers on the same model folder.

Two questions, answered by both in turns, so that a busy machine is unfair to both:

- In one process, model loaded: seconds per picture (prompt to pixels), with classifier-free
  guidance, the same seed, sampler, steps and threads. The first picture of each is reported apart.
- From the start of a process to a file on disk, imports and loading included, and the most memory
  that the process held.

Run it with

    ./packshot python benchmarks/render_cpu.py

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from PIL.Image import Image, fromarray
from PIL.ImageChops import difference

PROMPT = "white sneakers on a sandy beach, bright daylight"
GUIDANCE = 5.0
SEED = 7
OURS, THEIRS = "packshot", "diffusers"
Times = dict[str, dict[str, list[float]]]
Maker = Callable[[], Image]

# What somebody would write who has diffusers and wants a file.
THEIR_SCRIPT = """
import sys, torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
model, out, steps, threads, side, guidance, seed, prompt = sys.argv[1:]
torch.set_num_threads(int(threads))
pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
images = pipe(prompt, width=int(side), height=int(side), num_inference_steps=int(steps),
              guidance_scale=float(guidance),
              generator=torch.Generator().manual_seed(int(seed))).images
images[0].save(out)
"""


def our_picture(model: Path, steps: int) -> Maker:
    """Load this engine; return a function that makes one picture."""
    from packshot.core.types import RenderRequest
    from packshot.engine.engine import Engine

    engine = Engine.load(model, device="cpu")
    side, _ = engine.default_size
    request = RenderRequest(PROMPT, (SEED,), side, side, steps, GUIDANCE, sampler="dpmpp-2m")
    return lambda: fromarray(engine.render(request).images[0])


def their_picture(model: Path, steps: int) -> Maker:
    """Load diffusers' pipeline; return a function that makes the same picture."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size * 8
    size = {"width": side, "height": side, "num_inference_steps": steps}

    def picture() -> Image:
        seed = torch.Generator().manual_seed(SEED)
        return pipe(PROMPT, **size, guidance_scale=GUIDANCE, generator=seed).images[0]

    return picture


def in_one_process(model: Path, steps: int, threads: int, rounds: int) -> tuple[Times, int]:
    """Return wall and CPU seconds of each picture, the first one of each engine included.

    And how far the two pictures are apart where they differ most, in levels of 256.
    """
    import torch

    torch.set_num_threads(threads)
    makers = {OURS: our_picture(model, steps), THEIRS: their_picture(model, steps)}
    times: Times = {name: {"wall": [], "cpu": []} for name in makers}
    pictures: dict[str, Image] = {}
    for _ in range(rounds + 1):
        for name, make in makers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            pictures[name] = make()
            times[name]["wall"].append(time.perf_counter() - wall)
            times[name]["cpu"].append(time.process_time() - cpu)
    apart = difference(pictures[OURS], pictures[THEIRS]).getextrema()
    return times, max(high for _, high in apart)


def commands(
    model: Path, folder: Path, steps: int, threads: int, side: int
) -> dict[str, list[str]]:
    """Return the two commands that end with a file on disk."""
    python = [sys.executable, "-P"]
    ours = [*python, "-m", "packshot", "render", PROMPT, "--raw", "--model", str(model)]
    ours += ["--out", str(folder / "ours.png"), "--sampler", "dpmpp-2m", "--device", "cpu"]
    ours += ["--steps", str(steps), "--guidance", str(GUIDANCE), "--seed", str(SEED)]
    rest = [steps, threads, side, GUIDANCE, SEED, PROMPT]
    theirs = [*python, "-c", THEIR_SCRIPT, str(model), str(folder / "theirs.png"), *map(str, rest)]
    return {OURS: ours, THEIRS: theirs}


def one_process(command: list[str], threads: int) -> tuple[float, float, float]:
    """Run a command to its end; return wall seconds, CPU seconds and the most MB it held."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def start_to_file(model: Path, steps: int, threads: int, rounds: int) -> Times:
    """Return wall seconds, CPU seconds and MB of whole processes but the first, cold ones."""
    side = json.loads((model / "unet" / "config.json").read_bytes())["sample_size"] * 8
    times: Times = {name: {"wall": [], "cpu": [], "mb": []} for name in (OURS, THEIRS)}
    with tempfile.TemporaryDirectory() as folder:
        both = commands(model, Path(folder), steps, threads, side)
        for index in range(rounds + 1):
            for name, command in both.items():
                figures = one_process(command, threads)
                if index:
                    for key, value in zip(("wall", "cpu", "mb"), figures, strict=True):
                        times[name][key].append(value)
    return times


def table(title: str, times: Times, key: str) -> dict[str, float]:
    """Print one figure of both and the ratio of the medians; return the medians and the ratio."""
    rows = {name: figures[key] for name, figures in times.items()}
    medians = {name: statistics.median(values) for name, values in rows.items()}
    print(f"\n{title}\n{'':12}{'median':>9}{'fastest':>9}{'slowest':>9}")
    for name, values in rows.items():
        print(f"{name:12}{medians[name]:>9.2f}{min(values):>9.2f}{max(values):>9.2f}")
    ratio = medians[OURS] / medians[THEIRS]
    print(f"{'ratio':12}{ratio:>9.2f}")
    return {name: round(value, 3) for name, value in medians.items()} | {"ratio": round(ratio, 3)}


def environment(threads: int) -> dict[str, str | int | float]:
    """Return what the figures depend on; imports none of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
    }


def packaged_model() -> Path:
    """Return the folder of packshot-mini; raises ImportError where it is not installed."""
    import packshot_mini

    return packshot_mini.model_path()


def name_of(model: Path) -> str:
    """Return the model's name and version by its manifest, or the folder's name."""
    manifest = model / "manifest.json"
    if not manifest.is_file():
        return model.name
    said = json.loads(manifest.read_bytes())
    return f"{said['name']} {said['version']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder (default: packshot-mini)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="pictures of each (default 7)")
    parser.add_argument("--processes", type=int, default=3, help="processes of each (default 3)")
    given = parser.parse_args()
    # As the terminal sets it, for both: where another process has a core, spinning ruins both.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    model = given.model or packaged_model()
    about = environment(given.threads) | {"model": name_of(model), "steps": given.steps}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    report: dict[str, object] = {"benchmark": "render_cpu", "environment": about}

    # First, while this process is small: a child's peak memory counts that of its parent at birth.
    whole = start_to_file(model, given.steps, given.threads, given.processes)
    report["process_wall_s"] = table("process start to file on disk: wall, s", whole, "wall")
    report["process_cpu_s"] = table("process start to file on disk: CPU, s", whole, "cpu")
    report["process_peak_mb"] = table("the most memory that the process held, MB", whole, "mb")

    loaded, apart = in_one_process(model, given.steps, given.threads, given.rounds)
    report["picture_max_difference"] = apart
    print(f"\nlargest difference between the two pictures: {apart} of 255")
    report["first_picture_s"] = {name: round(t["wall"][0], 3) for name, t in loaded.items()}
    print(f"first picture (s): {report['first_picture_s']}")
    later = {name: {key: times[1:] for key, times in t.items()} for name, t in loaded.items()}
    report["picture_wall_s"] = table("one picture, model loaded: wall, s", later, "wall")
    report["picture_cpu_s"] = table("one picture, model loaded: CPU, s", later, "cpu")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
