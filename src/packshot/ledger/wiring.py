"""From settings to a ledger that works: what every command needs, put together in one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packshot.core.clock import wall_us
from packshot.core.errors import LedgerUnavailable
from packshot.ledger.caps import Cap
from packshot.ledger.drain import Drain, DrainBusy, locked
from packshot.ledger.homes import name_in
from packshot.ledger.leases import leases_of
from packshot.ledger.ledger import Ledger, Prices, open_ledger
from packshot.ledger.settings import Settings
from packshot.ledger.stores.table_store import TableStore

__all__ = ["bring_in", "drain_of", "local_ledger"]

SLOTS = 256
"""How many commands may write journals in one folder at once."""


def drain_of(settings: Settings, store: TableStore) -> Drain:
    """Return the drain of the settings' journals into an open store; close it in the end.

    A PostgreSQL store's notes (durability ``store``, of any machine) are drained with them.
    """
    leases = leases_of(settings)
    if store.dialect != "postgresql":
        return Drain(settings.journal, store, leases, wall_us)
    from packshot.ledger.notes_drain import SharedDrain

    return SharedDrain(settings.journal, store, leases, wall_us)


def bring_in(settings: Settings, store: TableStore) -> int:
    """Drain once what the journals hold, unless another drain does; return how many were new.

    Raises:
        LedgerUnavailable: a journal cannot be read, or the store not written; nothing is lost.
    """
    drain = drain_of(settings, store)
    try:
        return drain.step()
    except DrainBusy:
        return 0
    finally:
        drain.close()


def local_ledger(settings: Settings, book: Prices, caps: Sequence[Cap] | None = None) -> Ledger:
    """Open a ledger for a command: under the first name, local-0 …, that nobody alive has.

    ``caps`` replace those of the settings; None keeps them.

    Raises:
        LedgerUnavailable: the journals' folder, or with durability ``store`` the store, cannot be
            written.
    """
    for slot in range(SLOTS):
        worker = f"local-{slot}"
        if not _is_taken(settings.journal / name_in(settings, worker) / "lock"):
            return open_ledger(settings, book, worker, caps=caps)
    raise LedgerUnavailable(
        f"{SLOTS} commands write journals in {settings.journal}; are they all alive?"
    )


def _is_taken(lock: Path) -> bool:
    if not lock.exists():
        return False
    with locked(lock) as free:
        return not free
