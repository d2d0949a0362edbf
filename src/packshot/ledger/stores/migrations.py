"""The schema, as numbered steps that are never changed once released: a new need is a new step.

A step and the record that it was applied are one transaction, so that a process killed at any
instant leaves the database before the step or after it, never between.
"""

from __future__ import annotations

from packshot.core.errors import LedgerCorrupt, LedgerUnavailable
from packshot.ledger.stores.database import Database, Transaction

__all__ = ["STEPS", "apply_all", "drop_all", "migrate", "require_current"]

# The outcomes are compared one by one: for IN with so many, SQLite fills a table at every INSERT.
TABLES = """
CREATE TABLE entries (
  seq {int} PRIMARY KEY, worker {text}, epoch {int}, attempt {text} UNIQUE, number {int},
  held_at {int}, dispatched_at {int}, settled_at {int}, outcome {text}
    CHECK (outcome = 'succeeded' OR outcome = 'failed_free' OR outcome = 'failed_billed'
      OR outcome = 'unknown' OR outcome = 'correction' OR outcome = 'accrual'),
  reason {text}, render {text}, recipe {text}, stage {text}, provider {text}, model {text},
  route {text}, virtual_key {text}, team {text}, batch {text}, device {text}, tags {text},
  seconds_us {int}, input_tokens {int}, cached_tokens {int}, written_tokens {int},
  output_tokens {int}, images {int}, image_size {text}, image_quality {text}, stored_bytes {int},
  requests {int}, held {int}, account {text}, amount {int}, payable {int}, depreciation {int},
  storage {int}, priced {int} CHECK (priced IN (0, 1)), currency {text}, original {text},
  rate {text}, price {text}, corrects {text}, caps {text}, hash {blob},
  UNIQUE (worker, epoch, number),
  CHECK (amount = payable + depreciation + storage)
){strict};
CREATE TABLE head (
  one {int} PRIMARY KEY CHECK (one = 1), seq {int}, hash {blob}
){strict};
CREATE TABLE journals (
  worker {text}, epoch {int}, seq {int}, number {int}, PRIMARY KEY (worker, epoch)
){compact};
CREATE TABLE rollups (
  hour {int}, outcome {text}, account {text}, stage {text}, provider {text}, model {text},
  route {text}, virtual_key {text}, team {text}, recipe {text}, batch {text}, device {text},
  bucket {int}, attempts {int}, seconds_us {int}, input_tokens {int}, output_tokens {int},
  images {int}, stored_bytes {int}, amount {int}, unpriced {int},
  PRIMARY KEY (hour, outcome, account, stage, provider, model, route, virtual_key, team, recipe,
    batch, device, bucket)
){compact};
CREATE TABLE renders (
  render {text}, recipe {text}, team {text}, batch {text}, first_at {int}, last_at {int},
  amount {int}, waste {int}, seconds_us {int}, delivered {int} CHECK (delivered IN (0, 1)),
  PRIMARY KEY (render)
){compact}
"""

WORDS = {
    "sqlite": {
        "int": "INTEGER NOT NULL",
        "text": "TEXT NOT NULL",
        "blob": "BLOB NOT NULL",
        "strict": " STRICT",
        "compact": " STRICT, WITHOUT ROWID",
    },
    # In C order text sorts as in SQLite, and an index on it needs no locale.
    "postgresql": {
        "int": "BIGINT NOT NULL",
        "text": 'TEXT COLLATE "C" NOT NULL',
        "blob": "BYTEA NOT NULL",
        "strict": "",
        "compact": "",
    },
}

REFUSAL = "entries are never changed: append a correction"

AFTER = {
    "sqlite": [
        "INSERT INTO head (one, seq, hash) VALUES (1, 0, zeroblob(32))",
        *(
            f"CREATE TRIGGER entries_no_{verb.lower()} BEFORE {verb} ON entries BEGIN"
            f" SELECT RAISE(ABORT, '{REFUSAL}'); END"
            for verb in ("UPDATE", "DELETE")
        ),
    ],
    "postgresql": [
        "INSERT INTO head (one, seq, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'))",
        (
            "CREATE FUNCTION entries_refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
        ),
        (
            "CREATE TRIGGER entries_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON entries"
            " FOR EACH STATEMENT EXECUTE FUNCTION entries_refuse()"
        ),
    ],
}

INDEXES = [
    "CREATE INDEX entries_settled_at ON entries (settled_at)",
    "CREATE INDEX entries_render ON entries (render)",
    "CREATE INDEX entries_unpriced ON entries (settled_at) WHERE priced = 0",
    "CREATE INDEX entries_corrects ON entries (corrects) WHERE corrects <> ''",
]

# Kept by a restore, which takes all steps again: they are money under way, not entries.
NOTES = """
CREATE TABLE IF NOT EXISTS lives (
  worker {text}, epoch {int}, beat {int}, closed {int} CHECK (closed IN (0, 1)),
  PRIMARY KEY (worker, epoch)
);
CREATE TABLE IF NOT EXISTS notes (
  worker {text}, epoch {int}, seq {int}, event {blob}, PRIMARY KEY (worker, epoch, seq)
)
"""
"""The journals of workers in durability "store" (`packshot.ledger.notes`): PostgreSQL alone has
them, since a file dies with its machine."""


def _notes(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return []
    return [table.strip() for table in NOTES.format(**WORDS[dialect]).split(";")]


DAYS = """
CREATE TABLE days (
  day {int}, account {text}, outcome {text}, bucket {int}, attempts {int}, seconds_us {int},
  amount {int}, unpriced {int}, PRIMARY KEY (day, account, outcome, bucket)
){compact};
INSERT INTO days SELECT hour - hour % 86400000000, account, outcome, bucket, SUM(attempts),
  SUM(seconds_us), SUM(amount), SUM(unpriced) FROM rollups GROUP BY 1, 2, 3, 4;
CREATE INDEX entries_waste ON entries (settled_at) WHERE account = 'waste'
"""
"""What the table of stages and the report on waste read, instead of all sums and all entries."""


def _days(dialect: str) -> list[str]:
    return [step.strip() for step in DAYS.format(**WORDS[dialect]).split(";")]


AVOIDED = """
CREATE TABLE avoided (
  hour {int}, kind {text}, stage {text}, provider {text}, model {text}, route {text},
  virtual_key {text}, team {text}, recipe {text}, batch {text}, device {text},
  hits {int} CHECK (hits > 0), amount {int} CHECK (amount >= 0),
  PRIMARY KEY (hour, kind, stage, provider, model, route, virtual_key, team, recipe, batch, device)
){compact}
"""
"""What was not spent (`packshot.ledger.avoided`): the only sums that no entry stands behind."""


def _avoided(dialect: str) -> list[str]:
    return [AVOIDED.format(**WORDS[dialect]).strip()]


def _first(dialect: str) -> list[str]:
    tables = TABLES.format(**WORDS[dialect]).split(";")
    return [*(table.strip() for table in tables), *AFTER[dialect]]


STEPS: dict[str, list[list[str]]] = {
    dialect: [_first(dialect), INDEXES, _notes(dialect), _days(dialect), _avoided(dialect)]
    for dialect in ("sqlite", "postgresql")
}
"""By dialect: the statements of step 1, 2, …"""


def migrate(database: Database) -> None:
    """Bring a database to the newest step; many processes may try at once.

    Raises:
        LedgerCorrupt: it is of a newer packshot, or holds tables that are not ours.
    """
    for version in range(1, len(STEPS[database.dialect]) + 1):
        with database.snapshot() as look:
            found = database.version(look)
        _refuse_newer(database, found)
        if found < version:
            with database.transaction() as within:
                _apply(database, within, version)


def apply_all(database: Database, within: Transaction) -> None:
    """Apply every step that is missing in one transaction."""
    for version in range(1, len(STEPS[database.dialect]) + 1):
        _apply(database, within, version)


def require_current(database: Database) -> None:
    """Refuse a schema that a reader does not know, and cannot bring up to date."""
    with database.snapshot() as look:
        found = database.version(look)
    _refuse_newer(database, found)
    newest = len(STEPS[database.dialect])
    if found < newest:
        raise LedgerUnavailable(
            f"the store has schema {found}, this packshot reads {newest}:"
            " open it once for writing (`packshot ledger drain --once`) to bring it up to date"
        )


def drop_all(database: Database, within: Transaction) -> None:
    """Remove every table: what a forced restore does, in its own transaction."""
    for table in ("entries", "head", "journals", "rollups", "renders", "days", "avoided"):
        within.execute(f"DROP TABLE IF EXISTS {table}")
    if database.dialect == "postgresql":
        within.execute("DROP FUNCTION IF EXISTS entries_refuse")
    database.set_version(within, 0)


def _apply(database: Database, within: Transaction, version: int) -> None:
    # Asked again inside: somebody else may have been faster.
    if database.version(within) >= version:
        return
    for statement in STEPS[database.dialect][version - 1]:
        within.execute(statement)
    database.set_version(within, version)


def _refuse_newer(database: Database, found: int) -> None:
    newest = len(STEPS[database.dialect])
    if found > newest:
        raise LedgerCorrupt(
            f"the store has schema {found}, of a newer packshot; this one knows up to {newest}:"
            " update packshot, or restore a backup made with this version"
        )
