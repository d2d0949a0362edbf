"""What a batch came to: costs by stage as the ledger has them, failures, a sheet of samples."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from packshot.core.errors import LedgerUnavailable, OutputError
from packshot.core.money import Nanos
from packshot.core.types import NOTHING_READ, EmbeddingUse, Usage
from packshot.ledger.stores.base import Store as LedgerStore
from packshot.studio.batch.runner import Books
from packshot.studio.batch.state import Counts, Row, RunState
from packshot.studio.booking import Bookkeeper

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Cost", "Report", "catch_up", "costs_of", "report_of", "sample_sheet", "true_costs"]

SAMPLES = 24
"""Pictures on the sheet, taken evenly over the batch."""

TILE = 192
"""Pixels of a sample's side; what is not square is shown whole on white."""

COLUMNS = 6
PAGE = 5_000
"""Renders whose costs are read at once."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An account of the ledger: a stage, or "waste". ``priced`` false: some of it has no price."""

    account: str
    attempts: int
    seconds: float
    amount: Nanos
    priced: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A batch, as its ledger and its state have it.

    ``hosted`` are the models of providers that made pictures of it, and how many each.
    """

    batch: str
    counts: Counts
    costs: tuple[Cost, ...]
    reasons: tuple[tuple[str, int], ...]
    embeddings: EmbeddingUse = NOTHING_READ
    hosted: tuple[tuple[str, int], ...] = ()

    @property
    def amount(self) -> Nanos:
        """All that the batch cost so far, in nano-EUR."""
        return sum(cost.amount for cost in self.costs)

    def facts(self) -> dict[str, Any]:
        """Return it as values that JSON has."""
        return {
            "batch": self.batch,
            "items": asdict(self.counts),
            "cost_nano_eur": self.amount,
            "costs": [asdict(cost) for cost in self.costs],
            "quarantined": [{"reason": why, "works": works} for why, works in self.reasons],
            "embeddings": {**asdict(self.embeddings), "hit_rate": round(self.embeddings.rate, 6)},
            "hosted": [{"model": model, "pictures": many} for model, many in self.hosted],
        }


class Reader(Protocol):
    """A store whose files can be read."""

    def read(self, key: str, most: int = 0) -> bytes:
        """Return a file's bytes."""
        ...


def costs_of(store: LedgerStore, batch: str) -> tuple[Cost, ...]:
    """Return what a batch cost, by account, the dearest first."""
    rows = store.query(
        "SELECT account, sum(attempts), sum(seconds_us), sum(amount), sum(unpriced) FROM rollups"
        " WHERE batch = ? GROUP BY account ORDER BY 4 DESC, 1",
        (batch,),
    )
    return tuple(
        Cost(str(account), int(attempts), int(micros) / 1e6, int(amount), not unpriced)
        for account, attempts, micros, amount, unpriced in rows
    )


def hosted_of(store: LedgerStore, batch: str) -> tuple[tuple[str, int], ...]:
    """Return which models of providers made pictures of a batch, and how many each."""
    rows = store.query(
        "SELECT provider, model, sum(attempts) FROM rollups WHERE batch = ?"
        " AND account = 'denoise' AND outcome = 'succeeded' AND provider <> ''"
        " GROUP BY provider, model ORDER BY 3 DESC, 1, 2",
        (batch,),
    )
    return tuple((f"{provider}/{model}", int(many)) for provider, model, many in rows)


def true_costs(store: LedgerStore, batch: str) -> Iterator[tuple[str, Nanos]]:
    """Yield what the ledger has of each render of a batch, also of those that a crash ended."""
    last = ""
    while rows := store.query(
        "SELECT render, amount FROM renders WHERE render > ? AND batch = ? ORDER BY render LIMIT ?",
        (last, batch, PAGE),
    ):
        for render, amount in rows:
            yield str(render), int(amount)
        last = str(rows[-1][0])


def catch_up(state: RunState, store: LedgerStore, books: Books) -> int:
    """Book the deliveries that a crash left out of the ledger; return how many those were.

    A run that dies between a picture's delivery and its booking leaves no trace of it in the
    ledger: what storing took is unknown then, and booked as nothing, so that the render counts as
    delivered, once.
    """
    added = 0
    for render in state.unbooked():
        known = store.query(
            "SELECT 1 FROM entries WHERE render = ? AND stage = 'store' AND outcome = 'succeeded'",
            (render,),
        )
        if not known:
            keeper = Bookkeeper(
                books.ledger,
                books.book,
                books.recipe,
                "cpu",
                batch=books.batch,
                stages=("store",),
            )
            with keeper.booked([books.model], [Usage("store", 0.0, "cpu")], (1,), [render]):
                added += 1
            if keeper.bill.problem:
                raise LedgerUnavailable(keeper.bill.problem)
        state.charge(render, 0, delivered=True)
    return added


def report_of(state: RunState, store: LedgerStore, batch: str) -> Report:
    """Return the report of a batch; the state takes over what the ledger says of each render."""
    state.settle(true_costs(store, batch))
    costs, reasons = costs_of(store, batch), tuple(state.reasons())
    hosted = hosted_of(store, batch)
    return Report(batch, state.counts(), costs, reasons, state.embeddings(), hosted)


def sample_sheet(state: RunState, store: Reader) -> bytes | None:
    """Return a PNG of samples with their briefs, None where nothing that is a picture is there."""
    from packshot.studio.sheet import compose

    tiles: list[tuple[Image, str]] = []
    for row in samples(state.rows(), state.counts().items):
        if row.delivered is None:
            continue
        try:
            tiles.append((_tile(store.read(row.delivered.key)), row.item.brief or row.item.id))
        except (OutputError, OSError):  # Pillow's, too: what is no picture is left out
            continue
    if not tiles:
        return None
    out = io.BytesIO()
    compose(tiles, COLUMNS).save(out, format="PNG", optimize=True)
    return out.getvalue()


def samples(rows: Iterator[Row], count: int) -> Sequence[Row]:
    """Return delivered rows, evenly over all ``count`` of them."""
    stride = max(1, count // SAMPLES)
    found: list[Row] = []
    for number, row in enumerate(rows):
        if row.state == "delivered" and number >= len(found) * stride:
            found.append(row)
        if len(found) == SAMPLES:
            break
    return found


def _tile(data: bytes) -> Image:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (TILE, TILE), "#ffffff")
    place = ((TILE - picture.width) // 2, (TILE - picture.height) // 2)
    tile.paste(picture, place, picture)
    return tile
