"""``packshot ledger``: check the store, back it up, restore it, and bring the journals into it."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.cli.metrics import metrics
from packshot.core.errors import InvalidRequest, LedgerUnavailable, PackshotError
from packshot.core.money import show_eur

if TYPE_CHECKING:
    from packshot.ledger.settings import Settings
    from packshot.ledger.stores.table_store import TableStore

__all__ = ["app"]

FINDINGS = 5
"""Exit code where something was found, that of every error of the ledger."""

app = typer.Typer(help="Check, back up, restore or fill the ledger's store.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)
app.command()(metrics)

Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="FILE | URL",
        help="A SQLite file or a postgresql:// address.",
        show_default="that of packshot.yaml",
    ),
]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup: a SQLite file.")]


@app.command()
def verify(store: Store = "", *, as_json: o.AsJson = False) -> None:
    """Check sums, the chain of hashes, gaps, orphans and derived tables; exit 5 on findings."""
    with _opened(store, read_only=True) as opened:
        found = opened.verify()
        ((entries,),) = opened.query("SELECT count(*) FROM entries")
    if as_json:
        _json({"entries": entries, "findings": [dataclasses.asdict(each) for each in found]})
    else:
        for each in found:
            typer.echo(f"{each.check}: {each.where}: {each.message}")
        typer.echo(f"{'damaged' if found else 'ok'}: {entries} entries, {len(found)} findings")
    if found:
        raise typer.Exit(FINDINGS)


@app.command()
def backup(file: BackupFile, store: Store = "", *, as_json: o.AsJson = False) -> None:
    """Write the store, as it is at this instant, to a new file; others may go on writing."""
    from packshot.ledger.stores.backup import backup as write

    with _opened(store, read_only=True) as opened:
        entries = write(opened, file)
    _say(as_json, f"{file}: {entries} entries", file=str(file), entries=entries)


@app.command()
def restore(
    file: BackupFile,
    store: Store = "",
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the entries that the store has.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Verify a backup of either kind of store, and put it into either."""
    from packshot.ledger.stores.backup import restore as read

    entries = read(file, _url(store), force=force)
    _say(as_json, f"restored {entries} entries of {file}", file=str(file), entries=entries)


@app.command()
def rebuild(store: Store = "") -> None:
    """Make the sums by hour and by render anew from the entries."""
    with _opened(store) as opened:
        opened.rebuild()
    typer.echo("rebuilt: rollups, renders")


@app.command()
def drain(
    store: Store = "",
    *,
    once: Annotated[bool, typer.Option("--once", help="Bring in what is there, and end.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Bring settled attempts from the journals into the store, until Ctrl-C."""
    from packshot.ledger.settings import load_settings
    from packshot.ledger.wiring import drain_of

    settings = load_settings()
    with _opened(store) as opened:
        drain = drain_of(settings, opened)
        if not once:
            terminal.note(f"draining {settings.journal}; Ctrl-C ends it")
            stop = threading.Event()
            for asked in (signal.SIGINT, signal.SIGTERM):
                signal.signal(asked, lambda _number, _frame: stop.set())
            drain.run(stop, _daily(settings, opened))
            return
        moved = 0
        while step := drain.step():
            moved += step
    _say(as_json, f"{moved} settled attempts moved into the store", moved=moved)


@app.command()
def accrue(
    store: Store = "",
    *,
    scan: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="This folder.", show_default="those of packshot.yaml"),
    ] = None,
    provider: Annotated[str, typer.Option(help="Whose GB-month price; with --scan.")] = "local",
    bucket: Annotated[
        str, typer.Option(help="Its name; with --scan.", show_default="the folder's")
    ] = "",
    team: Annotated[str, typer.Option(help="Who pays; with --scan.")] = "",
    since: Annotated[
        str,
        typer.Option(metavar="DATE", help="The first run's first day.", show_default="yesterday"),
    ] = "",
    as_json: o.AsJson = False,
) -> None:
    """Book what stored pictures cost, for each day that is over; each day once."""
    from packshot.core.clock import wall_us
    from packshot.ledger.accrual import book_days, writing
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import StorageRow, load_settings

    settings = load_settings()
    rows = settings.storage if scan is None else (StorageRow(scan, provider, bucket, team),)
    if not rows:
        raise InvalidRequest(
            "no folder is named: give --scan DIR, or ledger.storage in packshot.yaml"
        )
    first, book = _day(since), book_of(settings)
    days = amount = 0
    with _opened(store) as opened, writing(settings.journal):
        for row in rows:
            while booked := book_days(opened, book, row, wall_us(), first):
                days += len(booked)
                amount += sum(entry.amount for entry in booked)
    said = f"{days} days of {len(rows)} folders booked: {show_eur(amount, 9)} EUR"
    _say(as_json, said, days=days, amount=amount)


def _day(since: str) -> date | None:
    try:
        return date.fromisoformat(since) if since else None
    except ValueError as error:
        raise InvalidRequest(f"--since must be a day like 2026-11-25, got {since!r}") from error


def _daily(settings: Settings, store: TableStore) -> Callable[[], None] | None:
    """Return what books storage once a day, where packshot.yaml names folders."""
    from packshot.ledger.accrual import Daily
    from packshot.ledger.prices.book import book_of

    if not settings.storage:
        return None
    daily = Daily(settings, book_of(settings), store)

    def beside() -> None:
        try:
            daily.due()
        except PackshotError as error:  # the drain goes on: journals must not wait for a folder
            terminal.warn(f"storage is not booked yet, in an hour again: {error}")

    return beside


def _url(store: str) -> str:
    from packshot.ledger.settings import load_settings

    return store or load_settings().store


@contextmanager
def _opened(store: str, *, read_only: bool = False) -> Generator[TableStore]:
    from packshot.ledger.stores import open_store

    url = _url(store)
    if read_only and "://" not in url and not Path(url).exists():
        raise LedgerUnavailable(
            f"there is no ledger {url}: nothing has been booked there yet, or another is meant "
            "(--store, or ledger.store in packshot.yaml)"
        )
    opened = open_store(url, read_only=read_only)
    try:
        yield opened
    finally:
        opened.close()


def _say(as_json: bool, line: str, **facts: object) -> None:
    if as_json:
        _json(facts)
    else:
        typer.echo(line)


def _json(facts: dict[str, object]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)
