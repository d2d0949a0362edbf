"""All figures of SDXL on this GPU in one command: ours, diffusers', the aims, and the floor.

    python benchmarks/gpu/table.py [--limit 580]
    python benchmarks/gpu/table.py --of REPORT.json      (the table of reports that are there)

Runs `sdxl.py` twice, one after the other: all parts beside diffusers compiled for one picture, and
diffusers compiled for eight, which compiles anew. The second is left out where less than
``--limit`` seconds are left for it. The floor is the arithmetic over what this chip was measured to
do; the last column is the share of it that was reached. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

STEP, DECODE, SMALL_STEP = 13.52, 10.47, 3.18
"""TFLOP of a guided step and a decoding at 1024x1024, and of a guided step at 512x512."""

RUNS = (
    ("latency,throughput,vae,small,drift,cold,rival", 240.0),
    ("rival-throughput", 150.0),
)
"""Parts of `sdxl.py`, and the seconds that they take at least."""

Report = dict[str, Any]
Floor = Callable[[float, float], float]
"""Of what this chip multiplies in bf16 and in fp8, in TFLOP/s."""


@dataclass(frozen=True)
class Row:
    """A figure by its key in the report; ``rate`` is a speed, of which more is better."""

    what: str
    key: str
    unit: str
    aim: float
    moonshot: float
    floor: Floor | None = None
    rival: str = ""
    rate: bool = False


def picture(steps: int) -> Callable[[float, float], float]:
    """Return the milliseconds of a picture whose steps multiply at a rate, and its decoding."""
    return lambda by, bf16: (steps * STEP / by + DECODE / bf16) * 1e3


ROWS = (
    Row("1 picture, 30 steps, bf16", "latency_bf16_ms", "ms", 850, 770,
        lambda bf16, _: picture(30)(bf16, bf16), "rival_latency_ms"),
    Row("1 picture, 30 steps, fp8", "latency_fp8_ms", "ms", 750, 620,
        lambda bf16, fp8: picture(30)(fp8, bf16)),
    Row("8 pictures, 20 steps, bf16", "throughput_bf16", "/s", 1.9, 2.2,
        lambda bf16, _: 1e3 / picture(20)(bf16, bf16), "rival_throughput", rate=True),
    Row("8 pictures, 20 steps, fp8", "throughput_fp8", "/s", 2.4, 2.9,
        lambda bf16, fp8: 1e3 / picture(20)(fp8, bf16), rate=True),
    Row("decoding", "decode_ms", "ms", 24, 18, lambda bf16, _: DECODE / bf16 * 1e3,
        "rival_decode_ms"),
    Row("one text, both encoders", "encode_ms", "ms", 4, 3, rival="rival_encode_ms"),
    Row("a step at 512x512, bf16", "step_512_bf16_ms", "ms", 8, 6,
        lambda bf16, _: SMALL_STEP / bf16 * 1e3),
    Row("a step at 512x512, fp8", "step_512_fp8_ms", "ms", 8, 6,
        lambda _, fp8: SMALL_STEP / fp8 * 1e3),
    Row("process to picture, cold", "cold_s", "s", 30, 15),
    Row("process to picture, warm", "warm_s", "s", 10, 5),
)  # fmt: skip


def table(report: Report) -> list[str]:
    """Return the lines of the table, at most 80 columns wide."""
    top = report.get("ceilings", {})
    lines = [f"{'':<27}{'diffusers':>10}{'ours':>9}{'aim':>8}{'moonshot':>10}{'floor':>8}{'':>6}"]
    for row in ROWS:
        got, floor = report.get(row.key), None
        if row.floor is not None and "bf16" in top and "fp8" in top:
            floor = row.floor(top["bf16"], top["fp8"])
        share = "" if not got or not floor else f"{got / floor if row.rate else floor / got:.0%}"
        met = "" if got is None else "" if better(got, row.aim, rate=row.rate) else " missed"
        shown = [report.get(row.rival), got, row.aim, row.moonshot, floor]
        widths = (10, 9, 8, 10, 8)
        cells = "".join(f"{figure(x):>{w}}" for x, w in zip(shown, widths, strict=True))
        lines.append(f"{row.what:<27}{cells}{share:>6} {row.unit}{met}".rstrip())
    return lines


def better(got: float, aim: float, *, rate: bool) -> bool:
    """Tell whether an aim was reached."""
    return got >= aim if rate else got <= aim


def figure(value: float | None) -> str:
    """Return a number with as many places as it needs."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def run(parts: str, limit_s: float) -> Report:
    """Run parts of `sdxl.py`, show what it says as it comes, and return its last line."""
    line = [sys.executable, str(Path(__file__).with_name("sdxl.py")), "--parts", parts]
    last = ""
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 (for the checker)
        ends = Timer(limit_s, process.kill)
        ends.start()
        for text in process.stdout:
            print(text, end="", flush=True)
            last = text
        ends.cancel()
    try:
        return json.loads(last)
    except ValueError:
        print(f"FAILED: {parts} ended with {process.returncode} and no report", flush=True)
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=580.0)
    parser.add_argument("--of", type=Path, nargs="+")
    options = parser.parse_args()
    begun, report = time.perf_counter(), Report()
    for path in options.of or ():
        report |= json.loads(path.read_text().splitlines()[-1])
    for parts, least in () if options.of else RUNS:
        left = options.limit - (time.perf_counter() - begun)
        if left < least:
            print(f"not run: {parts}, for which {left:.0f} s are too few", flush=True)
            continue
        ceilings = report.get("ceilings")
        report |= run(parts, left)
        report["ceilings"] = ceilings or report.get("ceilings", {})
    print(f"\n{report.get('device', 'no GPU')}, torch {report.get('torch', '–')}")
    print("random weights of SDXL's shape, 1024x1024, guidance on every step, text to bytes")
    print(*table(report), sep="\n")
    drift = report.get("drift", {})
    print("drift from fp32:", ", ".join(f"{name} {value:.4f}" for name, value in drift.items()))
    print(json.dumps(report | {"seconds": time.perf_counter() - begun}))
    missing = [row.key for row in ROWS if row.key not in report]
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
