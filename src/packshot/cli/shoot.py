"""``packshot shoot``: the customer's own product, untouched, on a new ground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.core.errors import CheckFailed
from packshot.core.types import NOTHING_READ, EmbeddingUse
from packshot.studio import defaults

if TYPE_CHECKING:
    from packshot.cli.booking import Books
    from packshot.studio.booking import Bill
    from packshot.studio.hosted import HostedProvider
    from packshot.studio.overflow import Why
    from packshot.studio.recipes.step import Shot
    from packshot.studio.shoot import Shoot, Taken

__all__ = ["shoot"]

PRODUCT = "Product and ground"

Photo = Annotated[
    Path, typer.Argument(metavar="PHOTO", help="The product: a PNG, JPEG, WebP or TIFF.")
]
Ground = Annotated[
    str, typer.Argument(metavar="BRIEF", help='The ground: "on wet slate, dramatic side light".')
]
Mask = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="White where the product is; of the photo's size.",
        rich_help_panel=PRODUCT,
    ),
]  # fmt: skip
White = Annotated[
    bool, typer.Option("--white", help="Pure white; nothing is rendered.", rich_help_panel=PRODUCT)
]
Shadow = Annotated[
    bool,
    typer.Option("--shadow/--no-shadow", help="With --white: a shadow.", rich_help_panel=PRODUCT),
]
Mode = Annotated[
    str,
    typer.Option(
        help="blend renders around the product, ground without it.", rich_help_panel=PRODUCT
    ),
]
Attempts = Annotated[
    int, typer.Option(help="Seeds that are tried for a ground, 1 to 10.", rich_help_panel=PRODUCT)
]
Canvas = Annotated[
    str | None,
    typer.Option(
        metavar="S | WxH",
        help="Pixels of the canvas, multiples of 8; the product is never enlarged.",
        show_default="the photo's own",
        rich_help_panel=PRODUCT,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="png, jpeg or webp.", show_default="by --out, else png"
    ),
]


def shoot(
    photo: Photo,
    brief: Ground = "",
    *,
    mask: Mask = None,
    white: White = False,
    shadow: Shadow = True,
    mode: Mode = "blend",
    attempts: Attempts = 3,
    count: o.Count = 1,
    out: o.Out = None,
    format_: Format = None,
    as_json: o.AsJson = False,
    size: Canvas = None,
    seed: o.Seed = None,
    negative: o.Negative = "",
    raw: o.Raw = False,
    steps: o.Steps = defaults.STEPS,
    guidance: o.Guidance = defaults.GUIDANCE,
    sampler: o.Sampler = defaults.SAMPLER,
    schedule: o.Schedule = defaults.SCHEDULE,
    spacing: o.Spacing = None,
    model: o.Model = defaults.MODEL,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    vae_precision: o.VaePrecision = "auto",
) -> None:
    """Put the product of a PHOTO on the ground of a BRIEF, its pixels untouched."""
    from packshot.studio.shoot import Choices, plan_shoot

    choices = Choices(
        photo=photo,
        brief=brief,
        mask=mask,
        white=white,
        shadow=shadow,
        mode=mode,
        attempts=attempts,
        count=count,
        seed=seed,
        size=size,
        format=format_,
        out=out,
        raw=raw,
        steps=steps,
        guidance=guidance,
        negative=negative,
        sampler=sampler,
        schedule=schedule,
        spacing=spacing,
        model=model,
        device=device,
        precision=precision,
        vae_precision=vae_precision,
    )
    _deliver(plan_shoot(choices), as_json=as_json)


def _deliver(plan: Shoot, *, as_json: bool) -> None:
    """Load the model if there is one to load, take the pictures, and say what came of it."""
    from packshot.cli.booking import bookkeeping
    from packshot.cli.overflow import rendered
    from packshot.cli.progress import spinner
    from packshot.studio.shoot import take

    with bookkeeping(plan.recipe.name) as books:
        if plan.folder is None:
            with spinner("on white"):
                made = _Made(take(plan, booking=books.keeper))
        else:
            made = rendered(
                books,
                plan.recipe.name,
                lambda: _own(plan, books),
                lambda provider, why: _Made(_hosted(plan, books, provider, why)),
            )
    taken, bill = made.taken, books.keeper.bill
    bill.renders = tuple(shot.render for shot in plan.shots)
    if as_json:
        _print(plan, made, bill)
    else:
        _show(plan, made, bill)
    if taken.refused:
        raise CheckFailed(
            f"{len(taken.refused)} of {len(plan.shots)} pictures are not delivered, each with a "
            f"note in {plan.targets[0].path.parent}/quarantine: {'; '.join(taken.refused)}"
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """What was taken, the seconds that loading took, and what texts had been encoded before."""

    taken: Taken
    load_seconds: float = 0.0
    embeddings: EmbeddingUse = NOTHING_READ


def _own(plan: Shoot, books: Books) -> _Made:
    """Return the pictures that our own device made grounds for."""
    from packshot.cli.progress import bar, spinner
    from packshot.studio.embeddings import kept_embeddings
    from packshot.studio.settings import load_studio
    from packshot.studio.shoot import load, take

    name = plan.folder.name if plan.folder else ""
    with kept_embeddings(load_studio().embeddings) as kept:
        start = perf_counter()
        with spinner(f"loading {name}"), books.session.loading() as on_device:
            engine = load(plan, on_device, kept)
        load_seconds = perf_counter() - start
        with bar(len(plan.shots), plan.steps) as tell:
            taken = take(plan, engine, tell, books.keeper)
        return _Made(taken, load_seconds, kept.total if kept else NOTHING_READ)


def _hosted(plan: Shoot, books: Books, provider: HostedProvider, why: Why) -> Taken:
    """Return the pictures that a hosted provider made grounds for; the product is ours still."""
    from packshot.cli.progress import spinner
    from packshot.studio.hosted import BESIDE, InTurn
    from packshot.studio.shoot import take

    turn = InTurn(provider, why, books.keeper.beside(BESIDE))
    with spinner(f"asking {provider.order.route} for {len(plan.shots)} grounds"):
        return take(plan, turn, None, turn)


def _show(plan: Shoot, made: _Made, bill: Bill) -> None:
    """Print the stage table, what was measured of each picture, and its path."""
    from packshot.cli import report
    from packshot.studio.render import total

    taken = made.taken
    for warning in dict.fromkeys(said for _, shot in taken.done for said in shot.warnings):
        terminal.warn(warning)
    if not taken.done:
        return
    used = f"loading took {made.load_seconds:.2f} s more" if plan.folder else "nothing was rendered"
    report.show_stages(total(taken.usage), bill, [used, *report.kept_lines(made.embeddings)])
    for path, shot in taken.done:
        terminal.out().print(_measured(shot), style="dim", soft_wrap=True)
        report.show_file(path, shot.shown().size, _seed(shot))


def _measured(shot: Shot) -> str:
    """Say in one line what the checks found, and in which light the shadow lies."""
    product = shot.facts["product"]
    rows = [*product.get("checks", ()), *shot.facts["verified"]]
    said = ", ".join(f"{row['check']} {row['value']:.3g} of {row['limit']:g}" for row in rows)
    light = shot.facts.get("shadow")
    where = f"; light {light['side']}, {light['kind']}" if light else ""
    return f"product by {product['matte']}, {product['core_pixels']} pixels kept; {said}{where}"


def _seed(shot: Shot) -> int:
    return int(shot.facts["product"].get("seed", shot.seed))


def _print(plan: Shoot, made: _Made, bill: Bill) -> None:
    from packshot.cli import report
    from packshot.studio.render import total

    taken = made.taken
    pictures: list[dict[str, Any]] = [
        {
            "path": str(path),
            "seed": _seed(shot),
            "width": shot.shown().width,
            "height": shot.shown().height,
            "caption": shot.caption.text if shot.caption else "",
            "render": shot.render,
            "sha256": shot.kept.sha256 if shot.kept else "",
            "warnings": list(shot.warnings),
            **shot.facts,
        }
        for path, shot in taken.done
    ]
    report.print_json(
        {
            "pictures": pictures,
            "refused": list(taken.refused),
            "recipe": plan.recipe.facts(),
            "model": plan.folder.name if plan.folder else "",
            "load_seconds": round(made.load_seconds, 6),
            "embeddings": report.embedding_facts(made.embeddings),
            "usage": report.usage_facts(total(taken.usage), bill),
            "renders": list(bill.renders),
            "cost_nano_eur": None if bill.problem or bill.unpriced else bill.amount,
        }
    )
