"""What an operator meets on a GPU, run once for real: one line for each check, ok or FAILED.

    python benchmarks/gpu/operator_run.py [--checks warm,memory,...] [--limit 200]
    python benchmarks/gpu/operator_run.py --device cpu --tiny     (tries the script itself)

SDXL's true shape with random weights. A check that would begin after ``--limit`` seconds is not
run, and says so. ``--tiny`` takes the tests' small folder and the plain meaning of the kernels;
what only a GPU does (room running out, a broken context) is played there. The exit code is 1 where
a check failed. Nothing of the engine's source may change meanwhile: its tuning would be stale.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from operator_children import POISON, child
from operator_place import TEXT, Place, again, allocated, asked, digest, levels, placed, reserved
from world import ROOT, drift

from packshot.core.errors import DeviceLost, OutOfMemory, PackshotError
from packshot.engine.drift import exact_products
from packshot.engine.engine import Engine
from packshot.engine.fast.runner import FastRunner
from packshot.engine.folder import ModelFolder
from packshot.engine.memory import CUDA_BYTES, Ask, footprint, read_shapes
from packshot.engine.model import Model
from packshot.engine.runner import PlainRunner, Runner, Task

GB = 1e9
LITTLE = (3.5, 3.2, 2.9, 2.6, 2.3)
"""GB; the first that does not take eight pictures at once is the one that is looked at."""


@dataclass(frozen=True)
class Found:
    """What a check came to; ``ok`` None: it could not be run."""

    ok: bool | None
    said: str
    figures: dict[str, Any] = field(default_factory=dict)


class Run:
    """The checks, in order; each is a method and uses what those before it left."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.weights = 0
        self.copies: dict[str, int] = {}
        self.totals: list[tuple[str, Ask, int]] = []
        self.graph_bytes: list[int] = []
        before, begun = allocated(), time.perf_counter()
        self.engine = place.load()
        self.weights = allocated() - before
        self.load_s = time.perf_counter() - begun
        self.runner: FastRunner = self.engine.runner  # type: ignore[assignment]

    # ------------------------------------------------------------------ warm, memory

    def warm(self) -> Found:
        """All sizes in both tiers; then renders of them make no graph, and repeat to the bit."""
        sizes, runner, begun = self.place.sizes, self.runner, time.perf_counter()
        self._built("exact", "bf16")
        self._warmed("one size, bf16", Ask(sizes[:1], (1,), ("bf16",)))
        first = time.perf_counter() - begun
        self._warmed(f"{len(sizes)} sizes, bf16", Ask(sizes, (1,), ("bf16",)))
        self._built("fp8", "fp8")
        self._warmed(f"{len(sizes)} sizes, both", Ask(sizes, (1,), ("bf16", "fp8")))
        warm_s, made = time.perf_counter() - begun, runner.captures
        again_made = runner.warm(sizes, (1,), ("exact", "fp8"))
        requests = [
            asked(size, precision=tier, sampler=sampler)
            for size, tier, sampler in zip(
                sizes * 2,
                ("bf16", "fp8") * len(sizes),
                ("euler", "dpmpp-2m", "euler-ancestral") * len(sizes),
                strict=False,
            )
        ]
        begun = time.perf_counter()
        with compiled() as fresh:
            seen = [digest(self.engine, request) for request in requests]
        render_s = time.perf_counter() - begun
        captured = runner.captures - made
        changed = sum(digest(self.engine, r) != d for r, d in zip(requests[:3], seen, strict=False))
        return Found(
            captured == 0 and again_made == 0 and changed == 0 and not fresh,
            f"{made} graphs in {warm_s:.1f} s (the first size {first:.1f}), then {len(requests)} "
            f"renders in {render_s:.1f} s: {captured} new graphs, {len(fresh)} kernels compiled; "
            f"{changed} of 3 repeats changed",
            {"graphs": made, "warm_s": warm_s, "new_graphs": captured, "changed": changed}
            | {"compiled": fresh},
        )

    def _built(self, tier: Literal["exact", "fp8"], name: str) -> None:
        before = allocated()
        with torch.inference_mode():
            self.runner.unet(tier)
        self.copies[name] = allocated() - before

    def _warmed(self, name: str, ask: Ask) -> None:
        """Prepare for ``ask``, and note what each graph reserved, and all of it."""
        last = reserved()

        def tell(_done: int, _of: int) -> None:
            nonlocal last
            now = reserved()
            self.graph_bytes.append(now - last)
            last = now

        tiers = [{"bf16": "exact"}.get(tier, tier) for tier in ask.tiers]
        self.runner.warm(ask.sizes, ask.pictures, tiers, tell)  # type: ignore[arg-type]
        self.totals.append((name, ask, reserved()))

    def memory(self) -> Found:
        """What `packshot plan` predicts, beside what was reserved."""
        if not self.totals:
            return Found(None, "nothing was warmed")
        if not self.place.tiny:
            self.runner.release()
            ask = Ask(self.place.sizes[:1], (8,), ("bf16", "fp8"))
            self._warmed("eight of one size, both", ask)
        shapes = read_shapes(ModelFolder.open(Path(self.place.folder)))
        parts = {part.what: part.size for part in footprint(shapes, self.totals[-1][1]).parts}
        rows = [("weights, and the decoder's copies", parts["weights in bf16"], self.weights)]
        rows += [
            (f"copies, {tier}", parts[f"copies for the kernels, {tier}"], size)
            for tier, size in self.copies.items()
        ]
        figures: dict[str, Any] = {}
        fits = True
        for name, ask, got in self.totals:
            found = footprint(shapes, ask)
            rows.append((f"reserved: {name}", found.total - CUDA_BYTES, got))
            figures[name] = [(found.total - CUDA_BYTES) / GB, got / GB]
            fits = fits and got + CUDA_BYTES <= found.room
        grown = [size for size in self.graph_bytes if size > 0]
        one, many = (footprint(shapes, ask).total for _, ask, _ in self.totals[:2])
        each = (many - one) / max(1, 2 * len(self.place.sizes) - 2)
        rows.append(("a further graph, the mean of a step's and a decoder's", round(each), 0))
        print(f"    {'GB':<52} {'plan':>7} {'here':>7}")
        for name, plan, got in rows:
            print(f"    {name:<52} {plan / GB:7.3f} {got / GB:7.3f}")
        print("    each graph as it came, MB:", *(round(size / 1e6) for size in self.graph_bytes))
        if torch.cuda.is_available():
            free, of = torch.cuda.mem_get_info()
            figures["cuda_gb"] = (of - free - reserved()) / GB
            print(f"    CUDA itself: {figures['cuda_gb']:.3f}, taken to be {CUDA_BYTES / GB:.3f}")
        said = ", ".join(f"{name}: {got / GB:.1f} of {plan:.1f} GB"
                         for (name, _, got), (plan, _) in zip(self.totals, figures.values(),
                                                              strict=False))  # fmt: skip
        return Found(fits, f"{said}; {len(grown)} graphs took new memory", figures)

    # ------------------------------------------------------------------ pictures

    def drift(self) -> Found:
        """Each tier's error of the final latents against the plain networks in fp32."""
        from packshot.engine.denoise import noise_of
        from packshot.engine.samplers import plan

        model, (width, height) = self.engine.model, self.place.small
        steps = plan(
            model.noise, sampler="dpmpp-2m", schedule="karras", spacing="leading", steps=30,
            device=model.device,
        )  # fmt: skip
        with torch.inference_mode():
            task = Task(steps, self.runner.encode(["", TEXT]), width, height, 5.0)

            def ended(runner: Runner, task: Task) -> torch.Tensor:
                noise = noise_of((1,), (4, height // 8, width // 8), model.device)
                return runner.denoise(task, 1, noise, None)

            ends = {
                "bf16": ended(self.runner, task),
                "fp8": ended(self.runner, replace(task, tier="fp8")),
                "int8": ended(self.runner, replace(task, tier="int8")),
                "eager bf16": ended(PlainRunner(model), task),
            }
            with exact_products():
                exact = Model(model.folder, model.device, "fp32", "fp32")
                texts = replace(
                    task.texts,
                    tokens=task.texts.tokens.float(),
                    pooled=task.texts.pooled.float(),
                )
                want = ended(PlainRunner(exact), replace(task, texts=texts))
        apart = {name: drift(end, want) for name, end in ends.items()}
        del exact
        said = ", ".join(f"{name} {value:.5f}" for name, value in apart.items())
        lossless = apart["bf16"] <= 1.1 * max(apart["eager bf16"], 1e-6)
        return Found(lossless, f"{width}x{height}, 30 steps: {said}", apart)

    def graphs(self) -> Found:
        """A render without graphs, beside one with."""
        request = asked(self.place.small, steps=8)
        plain, begun = again(self.engine, graphs=False), 0.0
        seconds: dict[str, float] = {}
        images = {}
        for name, engine in (("graphs", self.engine), ("none", plain)):
            engine.render(request)
            begun = time.perf_counter()
            images[name] = engine.render(request).images[0]
            seconds[name] = time.perf_counter() - begun
        mean, most = levels(images["graphs"], images["none"])
        same = "bit for bit" if most == 0 else f"but {mean:.3f} levels, at most {most}"
        return Found(
            mean <= 0.05,
            f"--no-graphs gives the same {same}; 8 steps {seconds['none'] * 1e3:.0f} ms, "
            f"with graphs {seconds['graphs'] * 1e3:.0f}",
            {"mean_levels": mean, "most_levels": most, "seconds": seconds},
        )

    def aside(self) -> Found:
        """Pictures finished beside the next render, as in a batch's worker, and after each."""
        from PIL.Image import fromarray

        from packshot.studio.finish import DEFAULT_SHARPEN, finish
        from packshot.studio.store import encode

        size, count = self.place.sizes[0], 4
        request = asked(size, steps=30)

        def finished(pixels: np.ndarray) -> int:
            return len(encode(finish(fromarray(pixels), size, DEFAULT_SHARPEN), "PNG"))

        def taken(way: Callable[[Executor, np.ndarray], Future[int] | int]) -> float:
            """Return the seconds until all are made and finished."""
            begun = time.perf_counter()
            with ThreadPoolExecutor(2) as threads:
                ends = [way(threads, self.engine.render(request).images[0]) for _ in range(count)]
            for end in ends:
                if isinstance(end, Future):
                    end.result()  # raises what it met
            return time.perf_counter() - begun

        ways: dict[str, Callable[[Executor, np.ndarray], Future[int] | int]] = {
            "alone": lambda _, __: 0,
            "after": lambda _, pixels: finished(pixels),
            "beside": lambda threads, pixels: threads.submit(finished, pixels),
        }
        finished(self.engine.render(request).images[0])  # warms up both
        turns = [{name: taken(way) for name, way in ways.items()} for _ in range(2)]
        alone, after, beside = (min(turn[name] for turn in turns) for name in ways)
        busy = {"after": alone / after, "beside": alone / beside}
        return Found(
            None if self.place.tiny else beside < after,
            f"{count} pictures of 30 steps: {alone:.2f} s of rendering; finished after each "
            f"{after:.2f} s (the device is used {busy['after']:.0%} of it), beside the next "
            f"{beside:.2f} s ({busy['beside']:.0%})",
            {"alone_s": alone, "after_s": after, "beside_s": beside, "busy": busy},
        )

    def invariant(self) -> Found:
        """What it costs that a seed means the same bits in company: eight pictures, 20 steps."""
        steps = 4 if self.place.tiny else 20
        eight = asked(self.place.sizes[0], tuple(range(8)), steps, sampler="euler")
        seconds: dict[str, float] = {}
        equal: dict[str, bool] = {}
        for name in ("free", "invariant"):
            engine = self.engine if name == "free" else again(self.engine, invariant=True)
            engine.render(replace(eight, steps=2))
            begun = time.perf_counter()
            company = engine.render(eight).images
            seconds[name] = time.perf_counter() - begun
            alone = engine.render(replace(eight, seeds=(3,))).images[0]
            equal[name] = bool(np.array_equal(alone, company[3]))
            if name == "free":
                self.runner.release()
        price = seconds["invariant"] / seconds["free"] - 1
        return Found(
            equal["invariant"],
            f"free {seconds['free']:.2f} s ({8 / seconds['free']:.2f} pictures/s), invariant "
            f"{seconds['invariant']:.2f} s: {price:+.1%}; a seed alone gives the bits that it "
            f"gives in company: invariant {equal['invariant']}, free {equal['free']}",
            {"free_s": seconds["free"], "invariant_s": seconds["invariant"], "price": price},
        )

    # ------------------------------------------------------------------ what is kept

    def tuning(self) -> Found:
        """A file of another driver and a damaged one are refused with a sentence, and replaced."""
        self.runner.tuning.keep()
        path = self.runner.tuning.path
        if path is None or not path.exists():
            return Found(False, f"no tuning was kept in {path}")
        whole = path.read_bytes()
        entry = json.loads(whole)["entry"]
        entry["key"]["driver"] = "another driver"
        content = json.dumps(entry, separators=(",", ":")).encode()
        total = hashlib.sha256(content).hexdigest()
        stale = b'{"sum":"' + total.encode() + b'","entry":' + content + b"}"
        said: dict[str, tuple[str, ...]] = {}
        for name, bad in (("stale", stale), ("damaged", whole[:-40]), ("whole", whole)):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / path.name).write_bytes(bad)
                runner = FastRunner(self.engine.model, tuning=Path(folder))
                said[name] = runner.told()
                known = len(runner.tuning.attention) + len(runner.tuning.fp8_largest)
        print("    stale:  ", *said["stale"])
        print("    damaged:", *said["damaged"])
        fine = (
            "was made with" in " ".join(said["stale"])
            and "is damaged" in " ".join(said["damaged"])
            and not said["whole"]
            and known > 0
        )
        return Found(fine, f"each refused with a sentence; the whole file has {known} entries")

    def room(self) -> Found:
        """Too little room gives a smaller batch, far too little an error; then all is well."""
        size, engine = self.place.sizes[0], self.engine
        request = asked(size, steps=2)
        self.runner.release()
        before = digest(engine, request)
        eight = replace(request, seeds=tuple(range(8)))
        told: dict[str, str] = {}
        batches: dict[str, list[int]] = {}
        for name, leave in (*(("little", room * GB) for room in LITTLE), ("none", 0.15 * GB)):
            if len(batches.get(name, ())) > 1:
                continue  # it was little enough
            self.runner.release()
            with filled(engine, leave, name) as made:
                batches[name] = made
                try:
                    pictures = engine.render(eight if name == "little" else request).images
                    told[name] = f"{len(pictures)} pictures, in batches of {made}"
                except OutOfMemory as error:
                    told[name] = f"after batches of {made}: {error}"
            print(f"    room for {leave / GB:g} GB: {told[name]}")
        self.runner.release()
        after = digest(engine, request)
        return Found(
            "pictures" in told["little"]
            and len(batches["little"]) > 1
            and "no room" in told["none"]
            and after == before,
            f"{told['little']}; with none left an error; and after it "
            f"{'the same picture' if after == before else 'another picture'} as before",
            told | {"same_after": after == before},
        )

    # ------------------------------------------------------------------ other processes

    def processes(self) -> list[tuple[str, Found]]:
        """Second start, older chips, a broken context, the command line: side by side."""
        for tier in ("bf16", "fp8"):  # what the second start is to find, if nothing else ran
            self.engine.render(asked(self.place.sizes[0], precision=tier))
        want = len(self.runner.tuning.attention)
        self._give_way()
        jobs: dict[str, Callable[[], Found]] = {
            "second": lambda: self._second(want),
            "chip-8.6": lambda: self._chip("8.6", "int8"),
            "chip-8.9": lambda: self._chip("8.9", "fp8"),
            "poisoned": self._poisoned,
            "commands": self._commands,
        }
        found: dict[str, Found] = {}

        def done(name: str) -> None:
            try:
                found[name] = jobs[name]()
            except Exception as error:
                found[name] = Found(False, f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=done, args=(name,)) for name in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [(name, found[name]) for name in jobs]

    def _give_way(self) -> None:
        """Make room for other processes."""
        import gc

        self.runner.tuning.keep()
        del self.engine, self.runner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _second(self, want: int) -> Found:
        """The same tuning file: nothing is measured anew, and the choices are the same."""
        got = child(self.place, "second")
        fine = got["measured"] == got["calibrated"] == 0 and got["same"] and got["known"] == want
        return Found(
            fine and not got["told"],
            f"{got['known']} shapes known at the start, {got['measured']} attentions measured, "
            f"{got['calibrated']} calibrations; choices unchanged: {got['same']}; "
            f"first picture {got['first_s']:.1f} s after the process began",
            got,
        )

    def _chip(self, chip: str, tier: str) -> Found:
        """Render as on an older chip."""
        with tempfile.TemporaryDirectory() as cache:
            env = {"PACKSHOT_COMPUTE_CAPABILITY": chip, "XDG_CACHE_HOME": cache}
            got = child(self.place, f"chip {tier}", env)
        refused = chip == "8.9" or "fp8" in got["refused"]
        one_pass = self.place.tiny or not got["one_pass"]
        return Found(
            one_pass and refused and 0 < got["mean_levels"] < 5,
            f"{tier} renders, {got['mean_levels']:.2f} levels from bf16 there (at most "
            f"{got['most_levels']}); {got['refused'] or 'fp8 taken'}",
            got,
        )

    def _poisoned(self) -> Found:
        """A broken context ends a batch's worker with a clear error; the next one works."""
        from packshot.studio.batch.frames import Do
        from packshot.studio.batch.items import Item
        from packshot.studio.batch.supervise import Order, Watch, Worker

        said: dict[str, str] = {}
        with tempfile.TemporaryDirectory() as folder:
            order = Order("operator_children:factory", asdict(self.place), Path(folder))
            worker = Worker(order, Watch())
            for name, brief in (("poison", POISON), ("after", TEXT)):
                worker.load(lambda _: None)
                try:
                    worker.ask(Do(name, Item(name, brief, 1), "r1", 120.0), [], [])
                    said[name] = "made"
                except PackshotError as error:
                    said[name] = f"{type(error).__name__}: {error}"
                said[f"{name} alive"] = str(worker.alive)
            worker.close()
        fine = said["poison"].startswith(DeviceLost.__name__) and said["after"] == "made"
        return Found(fine and said["poison alive"] == "False", said["poison"][:200], said)

    def _commands(self) -> Found:
        """`packshot plan` and `packshot render`, where their libraries are there."""
        home = tempfile.mkdtemp()
        env = os.environ | {"XDG_CACHE_HOME": home, "XDG_STATE_HOME": home}
        base = [sys.executable, "-m", "packshot"]
        model = ["--model", self.place.folder]
        lines = {
            "plan": ["plan", "--gpu", "80GB", *model, "--json"],
            "render": ["render", TEXT, *model, "--device", self.place.device, "--steps", "4",
                       "-n", "2", "--out", home, "--json"],
        }  # fmt: skip
        said: dict[str, str] = {}
        for name, line in lines.items():
            done = subprocess.run(
                [*base, *line], env=env, capture_output=True, text=True, check=False
            )
            lacks = [row for row in done.stderr.splitlines() if "No module named" in row]
            said[name] = lacks[-1] if lacks else f"exit {done.returncode}"
            if done.returncode and not lacks:
                said[name] += f": {done.stderr.strip()[-300:]}"
        if any("No module" in word for word in said.values()):
            return Found(None, str(said))
        return Found(all(word == "exit 0" for word in said.values()), str(said))


@contextmanager
def compiled() -> Generator[list[str]]:
    """Yield the names of the kernels that Triton compiles, or loads, inside."""
    names: list[str] = []
    if not torch.cuda.is_available():
        yield names
        return
    from triton import knobs

    before = knobs.compilation.listener
    knobs.compilation.listener = lambda src, **_: names.append(getattr(src, "name", "?"))
    try:
        yield names
    finally:
        knobs.compilation.listener = before


@contextmanager
def filled(engine: Engine, leave: float, name: str) -> Generator[list[int]]:
    """Leave so many bytes of the device free; yields the batches that are tried meanwhile."""
    tried: list[int] = []
    denoise = engine.runner.denoise
    played_limit = {"little": 2, "none": 0}[name]

    def watched(task: Task, pictures: int, *rest: object) -> torch.Tensor:
        tried.append(pictures)
        if not torch.cuda.is_available() and pictures > played_limit:
            raise torch.OutOfMemoryError("no room is played here.")
        return denoise(task, pictures, *rest)

    block = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        block = torch.empty(int(free - leave), dtype=torch.uint8, device="cuda")
    try:
        with patch.object(engine.runner, "denoise", watched):
            yield tried
    finally:
        del block


# ---------------------------------------------------------------------- the command


CHECKS = (
    "warm", "memory", "tuning", "graphs", "drift", "room", "aside", "invariant", "processes"
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--checks", default=",".join(CHECKS))
    parser.add_argument("--limit", type=float, default=200.0)
    options = parser.parse_args()
    begun = time.perf_counter()
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    paths = (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    place = placed(tiny=options.tiny or options.device == "cpu")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(name, "torch", torch.__version__, "Python", sys.version.split()[0], flush=True)
    run = Run(place)
    print(f"folder made, {run.weights / GB:.2f} GB loaded: {time.perf_counter() - begun:.1f} s, "
          f"of which {run.load_s:.1f} loading")  # fmt: skip
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "load_s": run.load_s}
    wanted = [name for name in CHECKS if name in options.checks.split(",")]
    failed = tried(run, wanted, begun, options.limit, report)
    report |= {"seconds": time.perf_counter() - begun, "failed": failed}
    print(json.dumps(report, default=str))
    sys.exit(1 if failed else 0)


def tried(
    run: Run, wanted: list[str], begun: float, limit: float, report: dict[str, Any]
) -> list[str]:
    """Run the checks, show each, and return the names of those that failed."""
    failed: list[str] = []
    for name in wanted:
        at = time.perf_counter()
        if at - begun > limit:
            found: list[tuple[str, Found]] = [(name, Found(None, "there was no time left"))]
        else:
            try:
                got = getattr(run, name)()
                found = got if isinstance(got, list) else [(name, got)]
            except Exception as error:
                traceback.print_exc(limit=-6)
                found = [(name, Found(False, f"{type(error).__name__}: {error}"))]
        for label, each in found:
            word = {True: "ok", False: "FAILED", None: "not run"}[each.ok]
            print(f"{word:<7} {label:<10} {time.perf_counter() - at:5.1f} s  {each.said}",
                  flush=True)  # fmt: skip
            report[label] = {"ok": each.ok, **each.figures}
            failed += [label] if each.ok is False else []
    return failed


if __name__ == "__main__":
    main()
