"""The integrity check: everything that must be true of a store, and what is not, as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from packshot.ledger.stores.base import Finding
from packshot.ledger.stores.database import Database, Row, Table, Transaction
from packshot.ledger.stores.rollup import DAY_KEY, DAYS, ROLLUP_KEY, ROLLUPS, Sums, days_of
from packshot.ledger.stores.schema import COLUMNS, GENESIS, hash_of
from packshot.ledger.stores.table_store import pages

__all__ = ["MOST", "verify"]

MOST = 20
"""Findings of one kind that are listed: a damaged store has one cause and a million symptoms."""

LEGS = [COLUMNS.index(name) for name in ("amount", "payable", "depreciation", "storage")]
ATTEMPT = COLUMNS.index("attempt")

GAPS = """
SELECT e.worker, e.epoch, e.least, e.most, e.n, coalesce(j.number, -1)
FROM (
  SELECT worker, epoch, min(number) AS least, max(number) AS most, count(DISTINCT number) AS n
  FROM entries GROUP BY worker, epoch
) e LEFT JOIN journals j ON j.worker = e.worker AND j.epoch = e.epoch
WHERE e.least <> 1 OR e.most <> e.n OR j.number IS NULL OR j.number <> e.most
ORDER BY e.worker, e.epoch LIMIT ?
"""

EMPTY_JOURNALS = """
SELECT worker, epoch, number FROM journals j WHERE number > 0 AND NOT EXISTS
  (SELECT 1 FROM entries e WHERE e.worker = j.worker AND e.epoch = j.epoch)
ORDER BY worker, epoch LIMIT ?
"""

DUPLICATES = "SELECT attempt FROM entries GROUP BY attempt HAVING count(*) > 1 LIMIT ?"

ORPHANS = """
SELECT attempt, corrects FROM entries e WHERE corrects <> '' AND NOT EXISTS
  (SELECT 1 FROM entries o WHERE o.attempt = e.corrects AND o.seq < e.seq)
ORDER BY seq LIMIT ?
"""

RENDERS_BY_ENTRIES = """
SELECT render, min(CASE WHEN held_at > 0 THEN held_at ELSE settled_at END), max(settled_at),
  sum(amount), sum(CASE WHEN account = 'waste' THEN amount ELSE 0 END), sum(seconds_us),
  max(CASE WHEN stage = 'store' AND outcome = 'succeeded' THEN 1 ELSE 0 END)
FROM entries WHERE render <> '' GROUP BY render
"""
RENDERS_AS_STORED = (
    "SELECT render, first_at, last_at, amount, waste, seconds_us, delivered FROM renders"
)
RENDERS = f"""
SELECT DISTINCT render FROM (
  SELECT * FROM ({RENDERS_BY_ENTRIES} EXCEPT {RENDERS_AS_STORED}) a
  UNION ALL SELECT * FROM ({RENDERS_AS_STORED} EXCEPT {RENDERS_BY_ENTRIES}) b
) c ORDER BY render LIMIT ?
"""  # noqa: S608 - constants of ours


def verify(database: Database) -> list[Finding]:
    """Check files, sums, hashes, gaps, duplicates, orphans and derived tables on one snapshot."""
    found = [Finding("files", "database", message) for message in database.damage()[:MOST]]
    with database.snapshot() as look:
        sums = Sums()
        found += _entries(look, sums)
        found += _gaps(look)
        found += [
            Finding("duplicates", row[0], "the attempt has more than one entry")
            for row in look.query(DUPLICATES, (MOST,))
        ]
        found += [
            Finding("orphans", row[0], f"corrects {row[1]}, which has no earlier entry")
            for row in look.query(ORPHANS, (MOST,))
        ]
        found += _rollups(look, sums)
        found += [
            Finding("renders", row[0], "differs from its entries: `packshot ledger rebuild`")
            for row in look.query(RENDERS, (MOST,))
        ]
    return found


def _entries(look: Transaction, sums: Sums) -> list[Finding]:
    """Walk the chain over all entries, and gather their sums on the way."""
    found: dict[str, list[Finding]] = {"balance": [], "chain": [], "sequence": []}
    seq, before = 0, GENESIS
    for row in (row for page in pages(look) for row in page):
        for finding in _entry(row, seq, before):
            found[finding.check].append(finding)
            del found[finding.check][MOST:]
        seq, before = row[0], row[-1]
        sums.add(row)
        sums.renders.clear()  # compared in the database, which has room for them
    ((head, hash_there),) = look.query("SELECT seq, hash FROM head") or [(0, GENESIS)]
    if (head, hash_there) != (seq, before):
        found["chain"].append(
            Finding("chain", "head", f"the head is entry {head}, the last entry is {seq}")
        )
    return [finding for findings in found.values() for finding in findings]


def _entry(row: Row, seq: int, before: bytes) -> Iterator[Finding]:
    amount, payable, depreciation, storage = (row[place] for place in LEGS)
    if row[0] != seq + 1:
        yield Finding("sequence", f"entry {row[0]}", f"follows entry {seq}: entries are missing")
    if amount != payable + depreciation + storage:
        yield Finding("balance", row[ATTEMPT], f"{amount} is not the sum of its legs")
    if hash_of(before, row[:-1]) != row[-1]:
        yield Finding(
            "chain", f"entry {row[0]}", "its hash does not follow: it or the one before was altered"
        )


def _gaps(look: Transaction) -> Iterable[Finding]:
    for worker, epoch, least, most, count, mark in look.query(GAPS, (MOST,)):
        yield Finding(
            "gaps",
            f"{worker}/{epoch}",
            f"numbers {least} to {most}, {count} of them; the journal's mark is {mark}",
        )
    for worker, epoch, number in look.query(EMPTY_JOURNALS, (MOST,)):
        yield Finding("gaps", f"{worker}/{epoch}", f"none of its {number} entries is there")


def _rollups(look: Transaction, sums: Sums) -> list[Finding]:
    return [
        *_compared(look, ROLLUPS, len(ROLLUP_KEY), sums.rollups),
        *_compared(look, DAYS, len(DAY_KEY), days_of(sums.rollups)),
    ]


def _compared(
    look: Transaction, table: Table, keys: int, expected: dict[Row, list[int]]
) -> list[Finding]:
    """Hold a table of sums against what the entries say."""
    names = ", ".join(table.columns)
    stored = {
        row[:keys]: list(row[keys:])
        for row in look.query(f"SELECT {names} FROM {table.name}")  # noqa: S608 - names of ours
    }
    wrong = [key for key in expected.keys() | stored.keys() if expected.get(key) != stored.get(key)]
    return [
        Finding(
            "rollups",
            " ".join((table.name, *filter(None, map(str, key)))),
            f"is {stored.get(key)}, the entries say {expected.get(key)}: `packshot ledger rebuild`",
        )
        for key in sorted(wrong)[:MOST]
    ]
