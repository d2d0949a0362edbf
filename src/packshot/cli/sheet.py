"""``packshot sheet``: a contact sheet of many briefs."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.cli.caption import Choice, choose, written
from packshot.studio import defaults

if TYPE_CHECKING:
    from packshot.cli.booking import Books
    from packshot.studio.plan import Plan
    from packshot.studio.sheet import Sheet

__all__ = ["sheet"]


def sheet(
    briefs: o.BriefsFile,
    *,
    out: o.SheetOut = "sheet.png",
    columns: o.Columns = 4,
    as_json: o.AsJson = False,
    size: o.Size = None,
    seed: o.Seed = None,
    negative: o.Negative = "",
    raw: o.Raw = False,
    caption: o.CaptionBy = None,
    strict: o.Strict = False,
    sharpen: o.Sharpen = True,
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
    """Render a contact sheet of many briefs."""
    from packshot.studio.finish import DEFAULT_SHARPEN
    from packshot.studio.plan import Options
    from packshot.studio.settings import load_engine_settings
    from packshot.studio.sheet import plan_sheet, read_briefs

    choice = choose(caption, raw=raw)
    options = Options(
        brief="",
        seed=seed,
        size=size,
        steps=steps,
        guidance=guidance,
        negative=negative,
        sampler=sampler,
        schedule=schedule,
        spacing=spacing,
        model=model,
        precision=precision,
        vae_precision=vae_precision,
        device=device,
        out=out,
        raw=choice == "none",
        strict=strict,
        sharpen=DEFAULT_SHARPEN if sharpen else None,
        buckets=load_engine_settings().sizes,
    )
    plans = plan_sheet(briefs, read_briefs(briefs), options, columns)
    _deliver(plans, choice, columns, as_json=as_json)


def _deliver(plans: tuple[Plan, ...], choice: Choice, columns: int, *, as_json: bool) -> None:
    """Have the captions written, load the model once, render every plan, and say what came of it.

    The ledger is opened first: where it cannot be written, nothing is asked for or rendered.
    """
    from packshot.cli import report
    from packshot.cli.booking import bookkeeping

    with bookkeeping("sheet") as books:
        plans = written(plans, choice, books, "sheet")
        made, load_seconds = _render(plans, books, columns)
    for warning in made.warnings:
        terminal.warn(warning)
    bill = books.keeper.bill
    if as_json:
        report.print_json(report.sheet_facts(plans, made, load_seconds, bill))
    else:
        report.show_sheet(plans, made, load_seconds, bill)


def _render(plans: tuple[Plan, ...], books: Books, columns: int) -> tuple[Sheet, float]:
    """Return the sheet, and the seconds that loading took with torch's import."""
    from packshot.cli.progress import bar, spinner
    from packshot.studio.embeddings import kept_embeddings
    from packshot.studio.render import load_engine
    from packshot.studio.settings import load_studio
    from packshot.studio.sheet import render_sheet

    with kept_embeddings(load_studio().embeddings) as embeddings:
        start = perf_counter()
        with spinner(f"loading {plans[0].folder.name}"), books.session.loading() as on_device:
            engine = load_engine(plans[0], on_device, embeddings)
        load_seconds = perf_counter() - start
        with bar(len(plans), plans[0].request.steps) as tell:
            return render_sheet(plans, engine, columns, tell, books.keeper), load_seconds
