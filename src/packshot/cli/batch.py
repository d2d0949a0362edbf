"""``packshot batch``: many pictures from a table, each delivered once, with its cost."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.cli.batch_overflow import Out, beside_of, out_of
from packshot.cli.batch_progress import count_of
from packshot.core.errors import BudgetExceeded, InvalidRequest, PackshotError
from packshot.core.money import Nanos, decimal_of, nanos_of, show_eur
from packshot.studio import defaults

if TYPE_CHECKING:
    from packshot.cli.booking import Books
    from packshot.ledger.reports.forecast import Forecast
    from packshot.studio.batch.captions import Ahead
    from packshot.studio.batch.elsewhere import Beside
    from packshot.studio.batch.planning import Source
    from packshot.studio.batch.report import Report
    from packshot.studio.batch.runner import Run, Setup
    from packshot.studio.batch.state import Counts, RunState
    from packshot.studio.batch.tally import Tally
    from packshot.studio.objects import Objects
    from packshot.studio.recipes.recipe import Recipe

__all__ = ["batch"]

WARM_UP = 3
"""Pictures that are made to measure, where the ledger knows none of the recipe."""

NOT_ALL = 1
"""Exit code: the batch is done, and some of it is quarantined."""

RECIPE_HELP = "A recipe's name, or its .yaml file: packshot recipe show."
YES_HELP = "Spend up to so much without asking; needed where nobody can be asked."
NAME_HELP = "What it is called in the ledger and its caps."
AGAIN_HELP = "Give what is quarantined another chance."
OUT_HELP = "A folder, or s3://bucket/prefix (gs://, az://)."

Items = Annotated[
    Path, typer.Argument(metavar="ITEMS.csv", help="Or .jsonl, .parquet; columns: docs/batch.md.")
]


@dataclass(frozen=True, slots=True)
class Engine:
    """What the worker is told of the model."""

    model: str
    device: str
    precision: str
    vae_precision: str


def batch(
    items: Items,
    *,
    recipe: Annotated[str, typer.Option(metavar="NAME | FILE", help=RECIPE_HELP)] = "text",
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR | URL", help=OUT_HELP, show_default="studio.store, or out/"),
    ] = None,
    yes_up_to: Annotated[str | None, typer.Option(metavar="EUR", help=YES_HELP)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop.")] = False,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help=AGAIN_HELP)
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=NAME_HELP, show_default="after the table"),
    ] = None,
    as_json: o.AsJson = False,
    caption: o.CaptionBy = None,
    model: o.Model = defaults.MODEL,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    vae_precision: o.VaePrecision = "auto",
) -> None:
    """Render every row of a table of items; run it again to go on where it stopped."""
    from packshot.cli.booking import bookkeeping
    from packshot.studio.batch.planning import Source, run_folder
    from packshot.studio.batch.state import RunState
    from packshot.studio.models import open_model
    from packshot.studio.objects import Objects
    from packshot.studio.recipes.recipe import load_recipe
    from packshot.studio.settings import load_studio

    agreed = None if yes_up_to is None else _agreed(yes_up_to)
    wanted, captions = captioned(load_recipe(recipe), caption)
    needs_engine = "engine" in wanted.needs
    fingerprint = open_model(model).fingerprint if needs_engine else ""
    source = Source(items, wanted, fingerprint, captions)
    out = out or load_studio().store or defaults.OUT
    store = Objects(out)
    engine = Engine(model, device, precision, vae_precision)
    state = RunState(run_folder(out))
    try:
        store.probe()
        called = _plan(state, source, name, again=retry_quarantined)
        with bookkeeping(wanted.name) as books:
            desk = Desk(state, source, store, engine, books, called)
            _go(desk, agreed, dry_run=dry_run, as_json=as_json)
    finally:
        state.close()


@dataclass(frozen=True, slots=True)
class Desk:
    """All that a batch is made with."""

    state: RunState
    source: Source
    store: Objects
    engine: Engine
    books: Books
    name: str


def captioned(recipe: Recipe, asked: str | None) -> tuple[Recipe, str]:
    """Return the recipe as captions are asked for, and who writes them: "rules", or a language
    model by its route and prompt.
    """
    from packshot.cli.caption import choose

    choice = choose(asked, raw=False)
    step = next((step for step in recipe.steps if step.name == "caption"), None)
    if step is None or getattr(step, "raw", False):
        return recipe, "rules"
    if choice == "none":
        return recipe.changed({"caption.raw": True}), "rules"
    if choice == "rules":
        return recipe, "rules"
    from packshot.studio.caption_prompt import load_prompt
    from packshot.studio.settings import load_studio

    return recipe, f"{load_studio().caption_route} {load_prompt().version}"


def _agreed(text: str) -> Nanos:
    amount = nanos_of(decimal_of(text, "--yes-up-to"))
    if amount < 0:
        raise InvalidRequest(f"--yes-up-to must not be negative, got {text}")
    return amount


def _plan(state: RunState, source: Source, name: str | None, *, again: bool) -> str:
    """Have the plan be that of the source, and return the batch's name."""
    from packshot.cli.progress import spinner
    from packshot.core.ids import new_id
    from packshot.studio.batch.planning import plan_batch
    from packshot.studio.store import slug

    with spinner(f"reading {source.items.name}"):
        plan_batch(state, source)
    if again:
        state.release()
    called = name or state.noted("batch") or f"{slug(source.items.stem)}-{new_id()[-6:]}"
    if called != state.noted("batch"):
        state.note("batch", called)
    return called


def _go(desk: Desk, agreed: Nanos | None, *, dry_run: bool, as_json: bool) -> None:
    """Show the plan, ask, run, and report."""
    from packshot.studio.batch.report import catch_up

    with _ledger_store() as ledger:
        catch_up(desk.state, ledger, _books_of(desk, None))
    counts, forecast = desk.state.counts(), _forecast(desk)
    if not as_json or dry_run:
        _show_plan(desk, counts, forecast, as_json=as_json)
    if dry_run:
        return
    stopped, began = False, None
    if counts.left:
        if forecast is None and _may_measure(agreed):
            began = monotonic()
            stopped = _run(desk, agreed, WARM_UP, None)
            forecast = _forecast(desk)
        counts = desk.state.counts()
    if counts.left and not stopped:
        limit = _consent(desk, counts, forecast, agreed)
        beside = beside_of(desk.source.recipe, forecast, began, _out(desk, forecast))
        stopped = _run(desk, limit, None, beside)
    _end(desk, stopped=stopped, as_json=as_json)


# ------------------------------------------------------------------------------ money


@contextmanager
def _ledger_store() -> Generator[Any]:
    """Yield the ledger's store, with all in it that the journals have."""
    from packshot.cli.booking import drain
    from packshot.ledger.settings import load_settings
    from packshot.ledger.stores import open_store

    settings = load_settings()
    drain(settings)
    store = open_store(settings.store)
    try:
        yield store
    finally:
        store.close()


def _forecast(desk: Desk) -> Forecast | None:
    from packshot.studio.batch.planning import foretold

    left = desk.state.counts().left
    if not left:
        return None
    with _ledger_store() as store:
        return foretold(store, left, desk.source.recipe.name, desk.name)


def _may_measure(agreed: Nanos | None) -> bool:
    """Return whether a few pictures may be made to measure; refuse where nobody can say so."""
    if agreed is not None:
        return agreed > 0
    said = "what the pictures will cost is not known: the ledger has none of this recipe"
    return _ask(said, f"Make {WARM_UP} of them to measure?")


def _consent(
    desk: Desk, counts: Counts, forecast: Forecast | None, agreed: Nanos | None
) -> Nanos | None:
    """Return what the run may cost, None for no limit; refuse to spend beyond what was agreed.

    Raises:
        BudgetExceeded: the forecast is above ``agreed``, and nobody can be asked.
    """
    high = 0 if forecast is None else forecast.amount_high or forecast.amount
    out = _out(desk, forecast)
    there = 0 if out is None else out.cost
    if agreed is not None and there is not None and high + there <= agreed:
        return agreed
    many = count_of(counts.left)
    said = f"{many} may cost up to {show_eur(high + (there or 0), 4)} EUR"
    if forecast is None or there is None:
        said = f"what {many} will cost is not known"
    if out is not None:
        said += f" ({out.said()})"
    if agreed is not None and not _can_ask():
        raise BudgetExceeded(
            f"{said}, and --yes-up-to says {show_eur(agreed, 4)}: say more, or divide the batch"
        )
    if not _ask(said, "Go on?"):
        raise InvalidRequest(f"nothing more was rendered; the plan is kept in {desk.state.folder}")
    return None


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(said: str, question: str) -> bool:
    if not _can_ask():
        raise InvalidRequest(
            f"{said}; nobody can be asked here, so say --yes-up-to EUR, or look first with "
            "--dry-run"
        )
    return typer.confirm(f"{said}. {question}", err=True)


# ------------------------------------------------------------------------------ the run


def _books_of(desk: Desk, agreed: Nanos | None) -> Any:  # noqa: ANN401 - `runner.Books`, imported late
    from packshot.studio.batch.runner import Books as RunBooks

    needs_engine = "engine" in desk.source.recipe.needs
    return RunBooks(
        desk.books.ledger,
        desk.books.book,
        desk.source.recipe.name,
        desk.name,
        Path(desk.engine.model).name if needs_engine else "",
        agreed,
    )


def _setup(desk: Desk, agreed: Nanos | None, beside: Beside | None) -> Setup:
    from packshot.cli.overflow import elsewhere_of
    from packshot.studio.batch.perform import FACTORY
    from packshot.studio.batch.planning import sizes_of
    from packshot.studio.batch.runner import Setup
    from packshot.studio.batch.supervise import Order
    from packshot.studio.settings import load_engine_settings, load_studio

    settings = {
        "recipe": desk.source.recipe.facts(),
        "embeddings": asdict(load_studio().embeddings),
        "buckets": load_engine_settings().sizes,
        "sizes": sizes_of(desk.state),
        **asdict(desk.engine),
    }
    order = Order(FACTORY, settings, desk.state.folder)
    elsewhere = elsewhere_of(
        desk.books, desk.source.recipe.name, desk.name, settings, desk.state.folder, beside
    )
    books = _books_of(desk, agreed)
    return Setup(order, desk.store, books, captions=_ahead(desk), elsewhere=elsewhere)


def _ahead(desk: Desk) -> Ahead | None:
    """Return who has captions written ahead, None where the worker's rules write them."""
    if desk.source.captions == "rules":
        return None
    from packshot.cli.batch_captions import RouteScribe
    from packshot.gateway.client import run
    from packshot.studio.batch.captions import Ahead

    def scribe() -> RouteScribe:
        return RouteScribe(desk.books, desk.engine.model, desk.source.recipe.name, desk.name)

    scribe()  # a route that is not there is said now, not in a thread
    return Ahead(desk.state, scribe, f"{desk.source.captions}\0{desk.source.model}", run)


def _sweep_up(store: Objects) -> None:
    """End uploads that a killed run left in the bucket; that it cannot be done stops nothing."""
    from packshot.studio.sweep import sweep

    try:
        ended = sweep(store).ended
    except PackshotError as error:
        terminal.warn(str(error))
        return
    if ended:
        terminal.note(
            f"{ended} uploads that a killed run had left in {store.place.shown} are ended"
        )


def _run(desk: Desk, agreed: Nanos | None, most: int | None, beside: Beside | None) -> bool:
    """Run, with progress; return whether the user stopped it."""
    from packshot.cli.batch_progress import shown
    from packshot.studio.batch.runner import Run

    _sweep_up(desk.store)
    run = Run(desk.state, _setup(desk, agreed, beside))
    with _interrupts(run), shown(run.tally) as tell:

        def tick(tally: Tally) -> None:
            tell(tally)
            desk.books.ledger.tick()

        tally = run.go(tick, most=most)
    if tally.problem:
        terminal.warn(f"some of the cost is not booked: {tally.problem}")
    if tally.not_taken:
        terminal.warn(f"pictures that were to be made elsewhere stayed here: {tally.not_taken}")
    return bool(run.stop.level)


@contextmanager
def _interrupts(run: Run) -> Generator[None]:
    """Have Ctrl-C end the run after what is in work, and a second one at once."""

    def heard(number: int, _frame: object) -> None:
        again = run.stop.level > 0
        run.stop.ask(2 if again else 1, signal.Signals(number).name)
        if not again:
            terminal.note("stopping after what is in work; Ctrl-C again stops at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before: list[Any] = [signal.signal(number, heard) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# ------------------------------------------------------------------------------ the end


def _end(desk: Desk, *, stopped: bool, as_json: bool) -> None:
    """Report; write the manifest where nothing is left, and say how to go on where something is."""
    from packshot.cli import batch_report
    from packshot.studio.batch.manifest import publish_manifest
    from packshot.studio.batch.report import report_of, sample_sheet

    with _ledger_store() as ledger:
        report = report_of(desk.state, ledger, desk.name)
    manifest = sheet = ""
    counts = report.counts
    if not counts.left:
        facts = desk.source.recipe.facts()
        manifest = publish_manifest(desk.state, desk.store, desk.name, facts, counts).key
        sheet = _sheet(desk, sample_sheet(desk.state, desk.store))
        content = json.dumps(report.facts(), indent=2).encode()
        desk.store.publish(f"reports/{desk.name}.json", content, replace=True)
    where = desk.store.place.shown.rstrip("/")
    if as_json:
        batch_report.print_facts(report, where, manifest, sheet)
    else:
        batch_report.show(report, where, manifest, sheet)
    _exit(report, stopped=stopped)


def _sheet(desk: Desk, content: bytes | None) -> str:
    if content is None:
        return ""
    return desk.store.publish(f"reports/{desk.name}.png", content, replace=True).key


def _exit(report: Report, *, stopped: bool) -> None:
    counts = report.counts
    if counts.left:
        terminal.note(f"left to do: {count_of(counts.left)}; run the same command again to go on")
        raise typer.Exit(130 if stopped else NOT_ALL)
    if counts.quarantined:
        raise typer.Exit(NOT_ALL)


def _show_plan(desk: Desk, counts: Counts, forecast: Forecast | None, *, as_json: bool) -> None:
    from packshot.cli import batch_report

    where = desk.store.place.shown
    show: Callable[..., None] = batch_report.print_plan if as_json else batch_report.show_plan
    show(desk.name, desk.source, where, counts, forecast, _out(desk, forecast))


def _out(desk: Desk, forecast: Forecast | None) -> Out | None:
    return out_of(desk.state, desk.source.recipe, forecast, desk.books.book)
