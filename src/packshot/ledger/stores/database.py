"""What the store's code asks of a database: transactions, snapshots, and bulk writes in them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

__all__ = ["Database", "Row", "Table", "Transaction"]

Row: TypeAlias = tuple[Any, ...]
"""Integers, text and bytes: the only kinds of value that the tables have."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it is written in bulk: its columns, which are text or bytes (the rest are
    integers), and what follows an INSERT that meets a row of the same key.
    """

    name: str
    columns: tuple[str, ...]
    text: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()
    on_conflict: str = ""


class Transaction(Protocol):
    """An open transaction; placeholders are ``?`` in either database."""

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a statement."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement."""
        ...

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write many rows: new ones, or merged by the table's ``on_conflict``."""
        ...


class Database(Protocol):
    """One database: every method raises `LedgerUnavailable` or `LedgerCorrupt`, nothing else."""

    dialect: str

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Write: committed and durable when the block ends, rolled back when it raises."""
        ...

    def snapshot(self) -> AbstractContextManager[Transaction]:
        """Read: what is seen does not change until the block ends, whoever writes meanwhile."""
        ...

    def version(self, within: Transaction) -> int:
        """Return the number of the last migration applied; 0 for an empty database."""
        ...

    def set_version(self, within: Transaction, version: int) -> None:
        """Record it, in the migration's own transaction."""
        ...

    def damage(self) -> list[str]:
        """Return what the database itself finds wrong with its files."""
        ...

    def close(self) -> None:
        """Release the connections."""
        ...
