"""Backup and restore. A backup of either store is a SQLite store in one file; it restores into
either, and can be asked and verified where it lies.
"""

from __future__ import annotations

import os
from pathlib import Path

from packshot.core.errors import LedgerCorrupt, OutputError
from packshot.ledger.private import make_private_file
from packshot.ledger.stores import open_store
from packshot.ledger.stores.database import Database, Transaction
from packshot.ledger.stores.migrations import apply_all, drop_all, migrate
from packshot.ledger.stores.rollup import Sums
from packshot.ledger.stores.schema import AVOIDED, ENTRIES, JOURNALS
from packshot.ledger.stores.sqlite import SqliteDatabase
from packshot.ledger.stores.table_store import TableStore, head_of, pages

__all__ = ["backup", "restore"]


def backup(store: TableStore, file: Path) -> int:
    """Write the store as it is at this instant to a new file; return the number of its entries.

    Others may write meanwhile. The file appears whole, and on the disk, or not at all.

    Raises:
        OutputError: the file exists, or its folder cannot be written.
    """
    if file.exists():
        raise OutputError(f"{file} exists: a backup is never overwritten, name another file")
    part = file.with_name(f".{file.name}.part")
    try:
        _forget(part)
        make_private_file(part)
        if isinstance(store.database, SqliteDatabase):
            store.database.copy_to(part)
        else:
            _export(store.database, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(f"the backup {file} cannot be written: {error}") from error
    finally:
        _forget(part)
    copy = SqliteDatabase(file, read_only=True)
    try:
        with copy.snapshot() as look:
            return _count(look)
    finally:
        copy.close()


def restore(file: Path, url: str, *, force: bool = False) -> int:
    """Put the entries of a backup into the store at ``url``; return how many they are.

    The backup is verified first. What is replaced, is in one transaction: killed at any instant,
    the store is as before or restored.

    Raises:
        OutputError: the store has entries, and ``force`` was not given; or there is no such file.
        LedgerCorrupt: the backup does not verify.
    """
    if not file.is_file():
        raise OutputError(f"there is no backup {file}")
    source = open_store(str(file), read_only=True)
    try:
        found = source.verify()
        if found:
            raise LedgerCorrupt(
                f"{file} is damaged, nothing was restored: {len(found)} findings, the first:"
                f" {found[0].check}, {found[0].where}: {found[0].message}"
            )
        target = open_store(url)
        try:
            with source.database.snapshot() as look:
                return _replace(target.database, look, force=force)
        finally:
            target.close()
    finally:
        source.close()


def _replace(database: Database, look: Transaction, *, force: bool) -> int:
    with database.transaction() as within:
        head_of(within)  # keeps writers out
        there = _count(within)
        if there and not force:
            raise OutputError(
                f"the store has {there} entries: restore into an empty one, or say --force"
                " to replace them (make a backup first)"
            )
        drop_all(database, within)
        apply_all(database, within)
        return _copy(look, within)


def _copy(look: Transaction, into: Transaction) -> int:
    """Copy entries, avoided costs, marks and head as they are; make the derived tables anew."""
    sums = Sums()
    for rows in pages(look):
        into.insert(ENTRIES, rows)
        for row in rows:
            sums.add(row)
        sums.flush(into)
    marks = look.query("SELECT worker, epoch, seq, number FROM journals")
    if marks:
        into.insert(JOURNALS, marks)
    avoided = look.query(f"SELECT {', '.join(AVOIDED.columns)} FROM avoided")  # noqa: S608 - names of ours
    if avoided:
        into.insert(AVOIDED, avoided)
    ((seq, before),) = look.query("SELECT seq, hash FROM head")
    into.execute("UPDATE head SET seq = ?, hash = ?", (seq, before))
    return _count(into)


def _export(database: Database, file: Path) -> None:
    target = SqliteDatabase(file)
    try:
        migrate(target)
        with database.snapshot() as look, target.transaction() as into:
            _copy(look, into)
        target.seal()
    finally:
        target.close()


def _count(look: Transaction) -> int:
    return look.query("SELECT count(*) FROM entries")[0][0]


def _forget(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
