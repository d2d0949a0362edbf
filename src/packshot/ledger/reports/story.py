"""Everything that happened to one render, in the order in which it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packshot.core.errors import InvalidRequest
from packshot.core.money import Nanos
from packshot.ledger.reports.export import COLUMNS
from packshot.ledger.stores.base import Store

__all__ = ["Story", "story_of"]


@dataclass(frozen=True, slots=True)
class Story:
    """A render and its entries, each a mapping of the columns of ``entries``."""

    render: str
    amount: Nanos
    waste: Nanos
    seconds_us: int
    delivered: bool
    entries: tuple[dict[str, Any], ...]


def story_of(store: Store, render: str) -> Story:
    """Return the story of a render, named by its id or by a beginning that no other has.

    Raises:
        InvalidRequest: no render begins so, or several do.
    """
    # All ids that begin so are from the prefix to the prefix followed by the highest character.
    found = store.query(
        "SELECT render, amount, waste, seconds_us, delivered FROM renders"
        " WHERE render >= ? AND render < ? ORDER BY render LIMIT 3",
        (render, render + "\U0010ffff"),
    )
    exact = [row for row in found if row[0] == render]
    if not render or not found:
        raise InvalidRequest(f"no render {render!r} in the ledger; expected an id or its beginning")
    if len(found) > 1 and not exact:
        raise InvalidRequest(
            f"{render!r} is the beginning of several renders ({found[0][0]}, {found[1][0]}, …);"
            " give more of the id"
        )
    name, amount, waste, seconds, delivered = (exact or found)[0]
    rows = store.query(
        f"SELECT {', '.join(COLUMNS)} FROM entries WHERE render = ? ORDER BY held_at, seq",  # noqa: S608 - names of ours
        (name,),
    )
    entries = tuple(dict(zip(COLUMNS, row, strict=True)) for row in rows)
    return Story(name, int(amount), int(waste), int(seconds), bool(delivered), entries)
