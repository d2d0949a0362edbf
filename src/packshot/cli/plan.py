"""`packshot plan`: whether a model fits a GPU, before there is one."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.core.errors import InvalidRequest
from packshot.studio import defaults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packshot.engine.folder import ModelFolder
    from packshot.engine.memory import Ask, Footprint, Shapes, Tier

__all__ = ["plan"]

GPUS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""What cards have, from an RTX 3050's to a B200's; the smallest that fits is named."""

GB = 10**9

Gpu = Annotated[
    str, typer.Option(metavar="24GB", help="The memory of the GPU, in GB (10^9 bytes) or GiB.")
]
Tiers = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="bf16, fp8 or int8; give it again where several are used.",
        show_default="bf16",
        rich_help_panel=o.MACHINE,
    ),
]


def plan(
    *,
    gpu: Gpu,
    model: o.Model = defaults.MODEL,
    precision: Tiers = None,
    size: o.Size = None,
    count: o.Count = 1,
    as_json: o.AsJson = False,
) -> None:
    """Tell how much of a GPU's memory a model takes, by its files' headers; exit 1 if too much."""
    from packshot.engine.memory import footprint, read_shapes
    from packshot.studio.models import open_model

    capacity = memory_of(gpu)
    folder = open_model(model)
    ask, warnings = _ask(folder, tuple(precision or ("bf16",)), size, count)
    for warning in warnings:
        terminal.warn(warning)
    shapes = read_shapes(folder)
    found = footprint(shapes, ask)
    fits = found.room <= capacity
    instead = () if fits else _instead(shapes, ask, found, capacity)
    if as_json:
        from packshot.cli.report import print_json

        print_json(
            {
                "fits": fits,
                "gpu_bytes": capacity,
                "bytes": found.total,
                "with_margin_bytes": found.room,
                "parts": [asdict(part) for part in found.parts],
                "what_would_fit": list(instead),
                "warnings": list(warnings),
            }
        )
    else:
        _show(ask, found, capacity, instead)
    raise typer.Exit(0 if fits else 1)


def memory_of(text: str) -> int:
    """Return the bytes of "24GB", "24" or "22.5GiB"; `InvalidRequest` if it is none."""
    said = text.strip().lower()
    found = re.fullmatch(r"(\d{1,5}(?:\.\d{1,3})?)\s*(gb|gib|g)?", said, re.ASCII)
    if found is None or not float(found[1]):
        raise InvalidRequest(f"{text!r} is no memory of a GPU; say e.g. 24GB, or 22.5GiB")
    return round(float(found[1]) * (2**30 if found[2] == "gib" else GB))


def _ask(
    folder: ModelFolder, precisions: tuple[str, ...], size: str | None, count: int
) -> tuple[Ask, tuple[str, ...]]:
    """Return what is asked for, one size or all that the model renders at, and warnings of it."""
    from packshot.engine.buckets import buckets_of, nearest
    from packshot.engine.limits import MAX_PICTURES, default_size
    from packshot.engine.memory import TIERS, Ask
    from packshot.studio.finish import parse_size
    from packshot.studio.plan import one_of, size_warning
    from packshot.studio.settings import load_engine_settings

    if not 1 <= count <= MAX_PICTURES:
        raise InvalidRequest(f"{count} pictures were asked for, expected 1 to {MAX_PICTURES}")
    tiers: list[Tier] = [one_of("precision", name, TIERS) for name in dict.fromkeys(precisions)]
    native = default_size(folder)
    buckets = buckets_of(native, load_engine_settings().sizes)
    if size is None:
        return Ask(buckets or (native,), (count,), tuple(tiers)), ()
    wanted = parse_size(size, native)
    made = nearest(wanted, native, buckets)
    return Ask((made,), (count,), tuple(tiers)), size_warning(made, wanted, buckets)


def _instead(
    shapes: Mapping[str, Shapes], ask: Ask, found: Footprint, capacity: int
) -> tuple[str, ...]:
    """Say what would fit: less of what was asked for, and the smallest card for all of it."""
    from packshot.engine.memory import footprint, smaller

    asks = [(said, footprint(shapes, less).room) for said, less in smaller(ask)]
    less = [f"{said}: {room / GB:.1f} GB" for said, room in asks if room <= capacity][:2]
    card = next((f"a GPU of {gb} GB" for gb in GPUS_GB if found.room <= gb * GB), None)
    return (*less, *([card] if card else []))


def _show(ask: Ask, found: Footprint, capacity: int, instead: tuple[str, ...]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from packshot.engine.memory import MARGIN, MEASURED

    console = terminal.out()
    sizes = ", ".join(f"{w}x{h}" for w, h in ask.sizes)
    console.print(f"{', '.join(ask.tiers)}; {ask.pictures[0]} at a time; {sizes}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("on the GPU", footer="total")
    table.add_column("GB", justify="right", footer=f"{found.total / GB:.2f}")
    for part in found.parts:
        table.add_row(part.what, f"{part.size / GB:.2f}")
    console.print(table)
    needed = f"{found.room / GB:.1f} GB with a margin of {MARGIN:.0%}"
    if found.room <= capacity:
        console.print(f"fits {capacity / GB:g} GB: {needed}")
    elif found.total <= capacity:
        console.print(f"may or may not fit {capacity / GB:g} GB: {needed}")
    else:
        console.print(f"does not fit {capacity / GB:g} GB: {needed}")
    for said in instead:
        console.print(f"  would fit: {said}")
    terminal.note("Estimated, and fitted to three runs; other models and cards may differ.")
    for line in MEASURED:
        terminal.stderr().print(f"      {line}", style="dim")
