"""A batch in a folder of its own: a state, a store of files, a real ledger, a stub that renders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from packshot.core.clock import wall_us
from packshot.core.errors import OutputError
from packshot.core.types import Usage
from packshot.ledger.ledger import Ledger
from packshot.ledger.prices.book import PriceBook, book_of
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in, local_ledger
from packshot.studio.batch.items import Item
from packshot.studio.batch.runner import Books, Rules, Run, Setup
from packshot.studio.batch.state import RunState
from packshot.studio.batch.supervise import Order, Watch
from packshot.studio.recipes.step import Kept
from tests.studio.batch.stub import FACTORY, Truth, read_truth

CONFIG = "ledger:\n  store: ledger.db\n  journal: journal\n  gpu_eur_per_hour: {cpu: 0.05}\n"

QUICK = Watch(
    silent_s=2.0,
    stall_s=1.5,
    least_s=1.5,
    item_s=30.0,
    load_s=30.0,
    backoff_s=0.01,
    backoff_most_s=0.05,
)
"""Short, and yet longer than a busy machine keeps a process from running."""


RULES = Rules()


@dataclass
class Shelf:
    """A store of files by content; ``fails`` is how often it refuses what it is given."""

    folder: Path
    fails: int = 0
    puts: Counter[str] = field(default_factory=Counter)

    def put(self, data: bytes, name: str, /) -> Kept:
        digest = sha256(data).hexdigest()
        if self.fails:
            self.fails -= 1
            raise OutputError("503 SlowDown")
        self.puts[digest] += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{digest}{Path(name).suffix}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return Kept(path.name, digest, len(data), new=False, requests=1)
        os.write(file, data)
        os.close(file)
        return Kept(path.name, digest, len(data), requests=1)

    def read(self, key: str, most: int = 0) -> bytes:
        return (self.folder / key).read_bytes()


def work_of(item: Item) -> bytes:
    """Return what stands for all that an item asks for, whatever it is called."""
    return sha256(msgspec.msgpack.encode((item.brief, item.seed, item.parameters))).digest()


def items_of(briefs: Sequence[str]) -> list[Item]:
    return [Item(f"i{seed}", brief, seed) for seed, brief in enumerate(briefs)]


class World:
    """Everything of a run; `run` makes what is left of ``briefs``."""

    def __init__(
        self, folder: Path, briefs: Sequence[str], store: Any = None, **settings: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.truth = folder / "truth.jsonl"
        self.settings = {"truth": str(self.truth), **settings}
        self.shelf = Shelf(folder / "out")
        self.store = store or self.shelf
        config = folder / "packshot.yaml"
        if not config.exists():
            config.write_text(CONFIG)
        self.ledger_settings = load_settings(config)
        object.__setattr__(self.ledger_settings, "journal", folder / "journal")
        self.book: PriceBook = book_of(self.ledger_settings)
        self.state = RunState(folder / "run")
        self.plan(items_of(briefs))

    def plan(self, items: Sequence[Item]) -> None:
        rows = ((n, work_of(item), item) for n, item in enumerate(items, 1))
        self.state.replan(rows, "here")

    def setup(
        self,
        ledger: Ledger,
        watch: Watch = QUICK,
        rules: Rules = RULES,
        agreed: int | None = None,
    ) -> Setup:
        order = Order(FACTORY, self.settings, self.folder / "run")
        books = Books(ledger, self.book, "stub", "batch-1", "stub-model", agreed)
        return Setup(order, self.store, books, watch, rules)

    def run(
        self,
        watch: Watch = QUICK,
        rules: Rules = RULES,
        agreed: int | None = None,
        **how: Any,
    ) -> Run:
        """Run to the end, and bring the ledger's journal into its store."""
        ledger = local_ledger(self.ledger_settings, self.book)
        try:
            run = Run(self.state, self.setup(ledger, watch, rules, agreed))
            run.go(**how)
        finally:
            ledger.close()
            self.drain()
        return run

    def drain(self) -> None:
        store = open_store(self.ledger_settings.store)
        bring_in(self.ledger_settings, store)
        store.close()

    def truths(self) -> list[Truth]:
        return read_truth(self.truth)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        store = open_store(self.ledger_settings.store)
        try:
            yield store
        finally:
            store.close()

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.opened() as store:
            return store.query(sql, values)

    def check_books(self) -> Counter[str]:
        """Hold the ledger against the truth log; return how its denoising attempts ended."""
        finished = {truth.render: truth.usage for truth in self.truths() if truth.usage}
        entries = self.query(
            "SELECT render, stage, outcome, seconds_us, amount FROM entries"
            " WHERE render <> '' AND provider = ''"
        )
        seen = Counter((row[0], row[1]) for row in entries if row[2] == "succeeded")
        assert all(count == 1 for count in seen.values()), "a stage succeeded twice"
        for render, stage, outcome, seconds_us, amount in entries:
            used = Usage("denoise", seconds_us / 1e6, "cpu")
            assert amount == self.book.charge(used, "", "", wall_us()).amount
            if outcome == "succeeded" and stage in {"encode", "denoise"}:
                (used,) = [part for part in finished[render] if part.stage == stage]
                assert seconds_us == round(used.seconds * 1e6), "not what the truth log says"
        begun = {truth.render for truth in self.truths()}
        booked = {row[0] for row in entries}
        assert begun <= booked, "an attempt is in no book"
        return Counter(row[2] for row in entries if row[1] == "denoise")

    def check_delivered(self) -> dict[str, str]:
        """Hold the store against the state; return the state of each item by its id."""
        states: dict[str, str] = {}
        for row in self.state.rows():
            states[row.item.id] = row.state
            if row.state == "delivered":
                assert row.made is not None
                assert row.delivered is not None
                data = self.store.read(row.delivered.key)
                assert sha256(data).hexdigest() == row.made.sha256
            if row.state == "quarantined":
                assert row.reason
        return states
