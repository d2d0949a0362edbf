"""The manifest of a batch: one line of JSON for each item, written once, and whole.

The first line says which batch it is and what came of it; a row says what became of an item::

    {"id": "a1", "state": "delivered", "key": "objects/3f/3f9a….png", "sha256": "3f9a…", …}

It is published under a name that its own content decides, by a conditional write: nobody ever sees
a half of it, and the same outcome is published once.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from packshot.core.errors import OutputError
from packshot.studio.batch.state import Counts, Row, RunState
from packshot.studio.recipes.step import Kept

__all__ = ["Publisher", "publish_manifest", "row_facts"]

FORMAT = 1


class Publisher(Protocol):
    """A store that takes a file under a name of ours; `packshot.studio.objects.Objects` does."""

    def publish(self, key: str, data: bytes, /, *, replace: bool = False) -> Kept:
        """Write ``data`` at ``key``, whole or not at all; what is there must be the same."""
        ...


def row_facts(row: Row) -> dict[str, Any]:
    """Return what the manifest says of an item; costs are nano-EUR, of all attempts at its work.

    Items that share a work share its cost: it was paid once.
    """
    facts: dict[str, Any] = {
        "id": row.item.id,
        "state": row.state,
        "key": row.delivered.key if row.delivered else None,
        "sha256": row.made.sha256 if row.made and row.delivered else None,
        "bytes": row.made.size if row.made and row.delivered else None,
        "cost_nano_eur": row.cost,
        "seed": row.item.seed,
        "fingerprint": row.work.hex(),
        "render": row.made.render if row.made else None,
        "brief": row.item.brief,
        "caption": row.made.caption if row.made else None,
        "facts": row.made.facts if row.made else {},
    }
    if row.item.parameters:
        facts["parameters"] = row.item.parameters
    if row.copies > 1:
        facts["copies"] = row.copies
    if row.reason:
        facts["reason"] = row.reason
    return facts


def publish_manifest(
    state: RunState, store: Publisher, batch: str, recipe: dict[str, Any], counts: Counts
) -> Kept:
    """Write the manifest of the plan in force, and return where it is.

    Raises:
        OutputError: it could not be written.
    """
    head = {
        "manifest": FORMAT,
        "batch": batch,
        "items": counts.items,
        "works": counts.works,
        "delivered": counts.delivered,
        "quarantined": counts.quarantined,
        "recipe": recipe,
    }
    with _written(state, head) as (data, digest):
        return store.publish(f"manifests/{batch}-{digest[:16]}.jsonl", data)


@contextmanager
def _written(state: RunState, head: dict[str, Any]) -> Generator[tuple[bytes, str]]:
    """Yield the manifest's content, which lies in a file rather than in memory, and its digest."""
    encode = msgspec.json.Encoder().encode
    digest = hashlib.sha256()
    try:
        with tempfile.TemporaryFile(dir=state.folder) as file:
            for facts in chain((head,), map(row_facts, state.rows())):
                line = encode(facts) + b"\n"
                digest.update(line)
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield cast("bytes", mapped), digest.hexdigest()
    except OSError as error:
        where = Path(state.folder)
        raise OutputError(f"cannot write in {where}: {error.strerror or error}") from error
