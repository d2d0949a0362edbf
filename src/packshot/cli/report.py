"""What a render says when it is done: the table of stages, the files, or one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packshot.cli import terminal
from packshot.cli.caption import ELSEWHERE, caption_facts
from packshot.core.money import Nanos, show_eur
from packshot.core.types import EmbeddingUse, Stage, Usage

if TYPE_CHECKING:
    from rich.table import Table

    from packshot.studio.booking import Bill
    from packshot.studio.caption import Caption
    from packshot.studio.plan import Plan
    from packshot.studio.render import Delivery
    from packshot.studio.sheet import Sheet

__all__ = [
    "cost_lines",
    "print_json",
    "render_facts",
    "sheet_facts",
    "show_caption",
    "show_file",
    "show_render",
    "show_sheet",
    "show_stages",
    "usage_facts",
]


PLACES = 9
"""Digits of EUR: all there are, so that the rows add up to the total, and few cost nothing."""


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


def show_render(plan: Plan, delivery: Delivery, load_seconds: float, bill: Bill) -> None:
    """Print the stage table, what it cost, and the path of each picture."""
    _show_stages(delivery, load_seconds, bill)
    for picture in delivery.pictures:
        show_file(picture.path, plan.size, picture.seed)


def show_sheet(plans: Sequence[Plan], sheet: Sheet, load_seconds: float, bill: Bill) -> None:
    """Print the stage table, summed over the tiles, what they cost, and the path of the sheet."""
    _show_stages(sheet, load_seconds, bill)
    show_file(sheet.path, sheet.size, plans[0].request.seeds[0])


def show_file(path: Path, size: tuple[int, int], seed: int) -> None:
    """Print the path of a picture, with its size and seed."""
    from rich.text import Text

    said = f"  {size[0]}x{size[1]}, seed {seed}"
    terminal.out().print(Text.assemble((str(path), "bold"), (said, "dim")), soft_wrap=True)


def _show_stages(made: Delivery | Sheet, load_seconds: float, bill: Bill) -> None:
    """Print one row per stage: seconds, share, cost, and its speed where it has steps."""
    used = f"on {made.device} in {made.precision}; loading took {load_seconds:.2f} s more"
    if getattr(made, "hosted", ()):
        used = f"made by {made.device}, a hosted provider"
    show_stages(made.usage, bill, [used, *kept_lines(made.embeddings)])


def show_stages(usage: Sequence[Usage], bill: Bill, notes: Sequence[str]) -> None:
    """Print the stage table, a dim line for each of ``notes``, and what it cost."""
    console = terminal.out()
    console.print(_stage_table(usage, bill))
    for note in notes:
        console.print(note, style="dim")
    for line in cost_lines(bill):
        console.print(line, soft_wrap=True)


def kept_lines(use: EmbeddingUse) -> list[str]:
    """Say how many texts were encoded before, in a line if there were any."""
    if not use.hits:
        return []
    texts = use.hits + use.misses
    return [f"{use.hits} of {texts} texts encoded before, which saved {use.saved_s:.3f} s"]


def _stage_table(usage: Sequence[Usage], bill: Bill) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    seconds = sum(part.seconds for part in usage)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("stage", footer="total")
    table.add_column("seconds", justify="right", footer=f"{seconds:.3f}")
    table.add_column("share", justify="right", footer="100.0 %")
    table.add_column("EUR", justify="right", footer=_cost(bill, None))
    table.add_column("", style="dim")
    for part in usage:
        share = part.seconds / seconds if seconds else 0.0
        table.add_row(
            part.stage,
            f"{part.seconds:.3f}",
            f"{share:.1%}".replace("%", " %"),
            _cost(bill, part.stage),
            _speed(part),
        )
    return table


def _cost(bill: Bill, stage: Stage | None) -> str:
    """Return what a stage cost, or all of them; what has no price is never shown as nothing."""
    if bill.problem:
        return "not booked"
    if bill.unpriced_stages if stage is None else stage in bill.unpriced_stages:
        return "unpriced"
    amount = bill.amount if stage is None else bill.stages.get(stage, 0)
    return show_eur(amount, PLACES)


def cost_lines(bill: Bill) -> list[str]:
    """Return the total with its rates, what has no price, and the ids that the ledger has it by."""
    first, *others = bill.renders
    ids = f"render {first}" + (f" and {len(others)} more" if others else "")
    if bill.problem:
        return ["cost not booked", ids]
    rates = ", ".join(f"{kind} at {_plain(rate)} EUR/h" for kind, rate in bill.rates.items())
    without = f", without {', '.join(sorted(bill.unpriced))}" if bill.unpriced else ""
    known = f"cost {show_eur(bill.amount, PLACES)} EUR ({rates}){without}"
    known = known if rates else "cost unpriced"
    return [known, *map(_missing, sorted(bill.unpriced)), ids]


def _missing(name: str) -> str:
    """Say how to learn a price: of a provider's model, of a device, of a call made elsewhere."""
    if name == ELSEWHERE:
        return f"{name} did not answer; what its call cost stands in its ledger"
    if "/" in name:
        return f"{name} has no price: packshot prices add {name} gives it one"
    return f"{name} has no price: set ledger.gpu_eur_per_hour.{name} in packshot.yaml"


def _plain(amount: Nanos) -> str:
    """Return EUR without spare zeros, with two digits at least: "0.05", "2.30"."""
    whole, _, digits = show_eur(amount, PLACES).partition(".")
    return f"{whole}.{digits.rstrip('0'):0<2}"


def _speed(part: Usage) -> str:
    pace = terminal.pace(part.steps, part.seconds)
    return f"{part.steps} steps, {pace}" if pace else ""


def render_facts(plan: Plan, delivery: Delivery, load_seconds: float, bill: Bill) -> dict[str, Any]:
    """Return everything about a render that a program may want."""
    return {
        "pictures": [
            {"path": str(p.path), "seed": p.seed, "width": plan.size[0], "height": plan.size[1]}
            for p in delivery.pictures
        ],
        "brief": plan.brief,
        "caption": plan.caption.text,
        "writer": caption_facts(plan),
        "unknown": plan.caption.unknown,
        "ignored": list(plan.caption.ignored),
        "original": None if plan.source is None else asdict(plan.source),
        "warnings": list(delivery.warnings),
        **_machine_facts(plan, delivery, load_seconds, bill),
        "hosted": [asdict(each) for each in delivery.hosted],
    }


def sheet_facts(
    plans: Sequence[Plan], sheet: Sheet, load_seconds: float, bill: Bill
) -> dict[str, Any]:
    """Return everything about a contact sheet that a program may want."""
    return {
        "path": str(sheet.path),
        "width": sheet.size[0],
        "height": sheet.size[1],
        "seed": plans[0].request.seeds[0],
        "tiles": [
            {"brief": plan.brief, "caption": plan.caption.text, "writer": caption_facts(plan)}
            for plan in plans
        ],
        "warnings": list(sheet.warnings),
        **_machine_facts(plans[0], sheet, load_seconds, bill),
    }


def _machine_facts(
    plan: Plan, made: Delivery | Sheet, load_seconds: float, bill: Bill
) -> dict[str, Any]:
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
        "embeddings": embedding_facts(made.embeddings),
        "usage": usage_facts(made.usage, bill),
        "renders": list(bill.renders),
        "cost_nano_eur": None if bill.problem or bill.unpriced else bill.amount,
    }


def embedding_facts(use: EmbeddingUse) -> dict[str, Any]:
    """Return how many texts were encoded before, and what that saved."""
    return {
        "hits": use.hits,
        "misses": use.misses,
        "hit_rate": round(use.rate, 6),
        "saved_seconds": round(use.saved_s, 6),
    }


def usage_facts(usage: Sequence[Usage], bill: Bill) -> list[dict[str, Any]]:
    """Return what each stage consumed; its cost is null where no price is known."""
    return [
        {
            "stage": part.stage,
            "seconds": round(part.seconds, 6),
            "device": part.device,
            "steps": part.steps,
            "pixels": part.pixels,
            "cost_nano_eur": (
                None
                if bill.problem or part.stage in bill.unpriced_stages
                else bill.stages.get(part.stage, 0)
            ),
        }
        for part in usage
    ]


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, unstyled."""
    import json

    print(json.dumps(facts, indent=2, ensure_ascii=False))  # noqa: T201 - the result itself
