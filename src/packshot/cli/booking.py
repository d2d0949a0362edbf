"""The ledger around a command that renders: opened before, drained into the store after it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packshot.cli import terminal
from packshot.core.errors import LedgerError

if TYPE_CHECKING:
    from packshot.ledger.ledger import Ledger
    from packshot.ledger.prices.book import PriceBook
    from packshot.ledger.settings import Settings
    from packshot.studio.booking import Bookkeeper
    from packshot.studio.session import DeviceSession

__all__ = ["Books", "bookkeeping", "drain"]


@dataclass(frozen=True, slots=True)
class Books:
    """Who books a command's renders and its device's time, and what they book in."""

    keeper: Bookkeeper
    session: DeviceSession
    ledger: Ledger
    book: PriceBook


@contextmanager
def bookkeeping(recipe: str) -> Generator[Books]:
    """Yield who books this command's renders and its device; say what could not be booked.

    Raises:
        InvalidRequest: packshot.yaml has a mistake.
        LedgerUnavailable: the journal cannot be written: there is to be no render.
    """
    from packshot.cli.overflow import caps_with
    from packshot.core.clock import wall_us
    from packshot.ledger.prices.book import book_of
    from packshot.ledger.settings import load_settings
    from packshot.ledger.signs import tick_us
    from packshot.ledger.wiring import local_ledger
    from packshot.studio.booking import Bookkeeper
    from packshot.studio.session import DeviceSession
    from packshot.studio.settings import load_studio

    settings = load_settings()
    book = book_of(settings)
    ledger = local_ledger(settings, book, caps_with(settings, load_studio().overflow))
    session = DeviceSession(ledger, book, recipe, wall_us, tick_us)
    try:
        keeper = Bookkeeper(ledger, book, recipe, "cpu", wall_us, session)
        yield Books(keeper, session, ledger, book)
        if keeper.bill.problem:
            terminal.warn(f"the cost of this render is not booked: {keeper.bill.problem}")
    finally:
        try:
            session.close()
        except LedgerError as error:
            terminal.warn(f"the device's time beside the renders is not booked: {error}")
        ledger.close()
        drain(settings)


def drain(settings: Settings) -> None:
    """Move what the journals hold into the store, where no other process does so already."""
    from packshot.ledger.private import make_private_folder
    from packshot.ledger.stores import open_store
    from packshot.ledger.wiring import bring_in

    try:
        if "://" not in settings.store:
            make_private_folder(Path(settings.store).parent)
        store = open_store(settings.store)
        try:
            bring_in(settings, store)
        finally:
            store.close()
    except (LedgerError, OSError) as error:
        terminal.warn(f"the cost is in the journal, and not in the store yet: {error}")
