"""What a render says when it is done: the table of stages, the files, or one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packshot.cli import terminal
from packshot.core.types import Usage

if TYPE_CHECKING:
    from rich.table import Table

    from packshot.studio.caption import Caption
    from packshot.studio.plan import Plan
    from packshot.studio.render import Delivery
    from packshot.studio.sheet import Sheet

__all__ = ["print_json", "render_facts", "sheet_facts", "show_caption", "show_render", "show_sheet"]


def show_caption(caption: Caption) -> None:
    """Print the caption and, where there are slots, what was understood."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("caption", style="bold"), Text(caption.text))
    if caption.slots is not None:
        found = ((name, value) for name, value in asdict(caption.slots).items() if value)
        said = ", ".join(f"{name}: {value}" for name, value in found)
        grid.add_row("", Text(said, style="dim"))
    terminal.out().print(grid)


def show_render(plan: Plan, delivery: Delivery, load_seconds: float) -> None:
    """Print the stage table and the path of each picture."""
    _show_stages(delivery, load_seconds)
    for picture in delivery.pictures:
        _show_file(picture.path, plan.size, picture.seed)


def show_sheet(plans: Sequence[Plan], sheet: Sheet, load_seconds: float) -> None:
    """Print the stage table, summed over the tiles, and the path of the sheet."""
    _show_stages(sheet, load_seconds)
    _show_file(sheet.path, sheet.size, plans[0].request.seeds[0])


def _show_file(path: Path, size: tuple[int, int], seed: int) -> None:
    from rich.text import Text

    said = f"  {size[0]}x{size[1]}, seed {seed}"
    terminal.out().print(Text.assemble((str(path), "bold"), (said, "dim")), soft_wrap=True)


def _show_stages(made: Delivery | Sheet, load_seconds: float) -> None:
    """Print one row per stage: seconds, share of the total, and its speed where it has steps."""
    console = terminal.out()
    console.print(_stage_table(made.usage))
    used = f"on {made.device} in {made.precision}; loading took {load_seconds:.2f} s more"
    console.print(used, style="dim")


def _stage_table(usage: Sequence[Usage]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    seconds = sum(part.seconds for part in usage)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("stage", footer="total")
    table.add_column("seconds", justify="right", footer=f"{seconds:.3f}")
    table.add_column("share", justify="right", footer="100.0 %")
    table.add_column("", style="dim")
    for part in usage:
        share = part.seconds / seconds if seconds else 0.0
        table.add_row(
            part.stage, f"{part.seconds:.3f}", f"{share:.1%}".replace("%", " %"), _speed(part)
        )
    return table


def _speed(part: Usage) -> str:
    pace = terminal.pace(part.steps, part.seconds)
    return f"{part.steps} steps, {pace}" if pace else ""


def render_facts(plan: Plan, delivery: Delivery, load_seconds: float) -> dict[str, Any]:
    """Return everything about a render that a program may want."""
    return {
        "pictures": [
            {"path": str(p.path), "seed": p.seed, "width": plan.size[0], "height": plan.size[1]}
            for p in delivery.pictures
        ],
        "brief": plan.brief,
        "caption": plan.caption.text,
        "unknown": plan.caption.unknown,
        "ignored": list(plan.caption.ignored),
        "warnings": list(delivery.warnings),
        **_machine_facts(plan, delivery, load_seconds),
    }


def sheet_facts(plans: Sequence[Plan], sheet: Sheet, load_seconds: float) -> dict[str, Any]:
    """Return everything about a contact sheet that a program may want."""
    return {
        "path": str(sheet.path),
        "width": sheet.size[0],
        "height": sheet.size[1],
        "seed": plans[0].request.seeds[0],
        "tiles": [{"brief": plan.brief, "caption": plan.caption.text} for plan in plans],
        "warnings": list(sheet.warnings),
        **_machine_facts(plans[0], sheet, load_seconds),
    }


def _machine_facts(plan: Plan, made: Delivery | Sheet, load_seconds: float) -> dict[str, Any]:
    """Return what both kinds of result say of the choices, the model, the machine and the time."""
    request, folder = plan.request, plan.folder
    return {
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": request.sampler,
        "schedule": request.schedule,
        "model": {
            "name": folder.name,
            "version": folder.version,
            "fingerprint": folder.fingerprint,
        },
        "device": made.device,
        "precision": made.precision,
        "load_seconds": round(load_seconds, 6),
        "usage": _usage_facts(made.usage),
    }


def _usage_facts(usage: Sequence[Usage]) -> list[dict[str, Any]]:
    return [
        {
            "stage": part.stage,
            "seconds": round(part.seconds, 6),
            "device": part.device,
            "steps": part.steps,
            "pixels": part.pixels,
        }
        for part in usage
    ]


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, unstyled."""
    import json

    print(json.dumps(facts, indent=2, ensure_ascii=False))  # noqa: T201 - the result itself
