"""Which folder of journals a worker belongs to, where several of them lead to one store.

The store and the leases know a worker by its name and its life (epoch), and lives are counted in
each folder for itself, from the clock's seconds. Two gateways that start "gateway-0" in the same
second would be one worker to them: what one of them booked would be taken for a repetition of what
the other did. So each folder has a name of its own, which its workers carry.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.private import make_private_folder, write_private
from packshot.ledger.settings import Settings

__all__ = ["name_in"]

FILE = "home"


def name_in(settings: Settings, worker: str) -> str:
    """Return what ``worker`` is called in journals, store and leases.

    Raises:
        LedgerUnavailable: the folder cannot be written.
    """
    if settings.durability == "store":  # there the server counts the lives
        return worker
    try:
        return f"{worker}.{_home(settings.journal)}"
    except OSError as error:
        raise LedgerUnavailable(
            f"the journals' folder {settings.journal} cannot be used: {error.strerror}"
        ) from error


def _home(folder: Path) -> str:
    """Return the folder's own name; of several processes that make it at once, one wins."""
    path = folder / FILE
    if not path.exists():
        make_private_folder(folder)
        made = folder / f".{FILE}.{secrets.token_hex(8)}"
        try:
            write_private(made, secrets.token_hex(4).encode(), sync=True)
            with contextlib.suppress(FileExistsError):  # another process was faster
                path.hardlink_to(made)
        finally:
            made.unlink(missing_ok=True)
    name = path.read_text(encoding="ascii").strip()
    if not (name.isalnum() and len(name) == 8):
        raise LedgerUnavailable(f"{path} is not what packshot wrote there; remove it")
    return name
