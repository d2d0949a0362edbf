"""`packshot profile`: one render under the profiler, and what would make it faster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.studio import defaults

if TYPE_CHECKING:
    from packshot.engine.drift import Drift
    from packshot.engine.profile import Profile

__all__ = ["profile"]

BRIEF = "white sneakers on a sandy beach"

Trace = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Leave a trace there, for chrome://tracing or Perfetto."),
]
GatewayConfig = Annotated[
    Path | None,
    typer.Option(
        "--gateway", metavar="CONFIG", help="Measure this gateway's own overhead as well."
    ),
]

DriftToo = Annotated[
    bool,
    typer.Option("--drift", help="Render in each precision as well: how far is it from fp32?"),
]


def profile(
    brief: o.Brief = BRIEF,
    *,
    size: o.Size = None,
    count: o.Count = 1,
    steps: o.Steps = defaults.STEPS,
    guidance: o.Guidance = defaults.GUIDANCE,
    negative: o.Negative = "",
    sampler: o.Sampler = defaults.SAMPLER,
    schedule: o.Schedule = defaults.SCHEDULE,
    model: o.Model = defaults.MODEL,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    vae_precision: o.VaePrecision = "auto",
    graphs: o.Graphs = True,
    invariant: o.Invariant = False,
    trace: Trace = None,
    gateway: GatewayConfig = None,
    drift: DriftToo = False,
    as_json: o.AsJson = False,
) -> None:
    """Tell where a render's time goes, and what would save most of it."""
    from packshot.studio.plan import Options, plan
    from packshot.studio.profile import drifts_of, profile_plan
    from packshot.studio.settings import load_engine_settings

    planned = plan(
        Options(
            brief=brief,
            size=size,
            count=count,
            seed=0,
            steps=steps,
            guidance=guidance,
            negative=negative,
            sampler=sampler,
            schedule=schedule,
            model=model,
            device=device,
            precision=precision,
            vae_precision=vae_precision,
            graphs=graphs,
            invariant=invariant,
            buckets=load_engine_settings().sizes,
        )
    )
    for warning in planned.warnings:
        terminal.warn(warning)
    overhead = _gateway(gateway) if gateway is not None else None  # first: a mistake shows at once
    found = profile_plan(planned, trace)
    for warning in found.warnings:
        terminal.warn(warning)
    drifts = drifts_of(planned) if drift else ()
    if as_json:
        from packshot.cli.report import print_json

        facts = _facts(found, planned.warnings, trace, overhead)
        print_json(facts | {"drift": [asdict(each) for each in drifts]})
        return
    _show(found, trace)
    if drifts:
        _show_drifts(drifts)
    if overhead is not None:
        terminal.out().print(
            f"gateway: {overhead['cpu_us']:.0f} us of CPU a request, "
            f"{overhead['added_us']:.0f} us added (median)"
        )


def _gateway(config: Path) -> dict[str, float]:
    from packshot.gateway.bench import Options, bench

    figures = bench(config, Options())
    return {
        "cpu_us": figures.cpu_us or 0.0,
        "added_us": figures.added_p50_us,
        "added_p99_us": figures.added_p99_us,
    }


def _show(found: Profile, trace: Path | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = terminal.out()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("stage", footer="total")
    table.add_column("seconds", justify="right", footer=f"{found.seconds:.3f}")
    table.add_column("share", justify="right")
    for stage in found.stages:
        table.add_row(
            stage.stage, f"{stage.seconds:.3f}", f"{100 * stage.seconds / found.seconds:.1f} %"
        )
    console.print(table)
    kinds = Table(box=SIMPLE_HEAD, pad_edge=False)
    kinds.add_column("kernels")
    kinds.add_column("calls", justify="right")
    kinds.add_column("seconds", justify="right")
    for kind in found.kinds:
        kinds.add_row(kind.name, f"{kind.calls:,}", f"{kind.seconds:.3f}")
    kinds.add_row("no kernel ran", "", f"{found.gaps_s:.3f}")
    console.print(kinds)
    reached, top = found.tflops, found.ceilings
    console.print(
        f"{reached:.3g} of {top.tflops:.3g} TFLOP/s ({100 * reached / top.tflops:.0f} %), "
        f"{found.gbs:.3g} of {top.copy_gbs:.0f} GB/s ({100 * found.gbs / top.copy_gbs:.0f} %)"
    )
    for sync in found.syncs:
        console.print(f"waited for the device at {sync.where}, {sync.times} times", markup=False)
        console.print(f"    {sync.code}", style="dim", markup=False)
    for line in found.attention:
        console.print(line, style="dim")
    for number, hint in enumerate(found.hints, 1):
        console.print(f"{number}. {hint.what} (about {hint.saves_s:.2f} s)")
    if trace is not None:
        console.print(f"trace: {trace}", soft_wrap=True)


def _show_drifts(drifts: tuple[Drift, ...]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("beside fp32")
    for title in ("latents off by", "levels, mean", "most", "similarity", "lossless"):
        table.add_column(title, justify="right")
    for each in drifts:
        table.add_row(
            each.name,
            f"{each.latents:.4f}",
            f"{each.mean_levels:.2f}",
            str(each.most_levels),
            "" if each.similarity is None else f"{each.similarity:.4f}",
            {None: "", True: "yes", False: "no"}[each.lossless],
        )
    terminal.out().print(table)


def _facts(
    found: Profile,
    planned: tuple[str, ...],
    trace: Path | None,
    gateway: dict[str, float] | None,
) -> dict[str, Any]:
    return {
        "warnings": [*planned, *found.warnings],
        "seconds": found.seconds,
        "stages": [
            {"stage": stage.stage, "seconds": stage.seconds, "device": stage.device}
            for stage in found.stages
        ],
        "kinds": [asdict(kind) for kind in found.kinds],
        "gaps_s": found.gaps_s,
        "syncs": [asdict(sync) for sync in found.syncs],
        "tflop": found.tflop,
        "tflops": found.tflops,
        "gb": found.gb,
        "gbs": found.gbs,
        "ceilings": asdict(found.ceilings),
        "attention": list(found.attention),
        "hints": [asdict(hint) for hint in found.hints],
        "trace": None if trace is None else str(trace),
        "gateway": gateway,
    }
