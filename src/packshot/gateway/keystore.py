"""Where issued virtual keys live, and who changed them: tables in, or beside, the ledger's store.

``virtual_keys`` has a row per id, which is never used for another key again: the HMAC of its secret
(after a rotation also the old one's, for a while), what the key may do, and when it was revoked.
``key_audit`` is append-only and chained by hashes: who did what to which key, before and after.
Each change adds a row to it, so its last number tells whether anything changed.

`KeyWatch` asks for that number every half second, in a thread of each worker.
"""

from __future__ import annotations

import dataclasses
import hmac
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, cast

import msgspec

from packshot.core.clock import SECOND_US, Clock, wall_us
from packshot.core.databases import POSTGRES
from packshot.core.errors import (
    InvalidRequest,
    LedgerCorrupt,
    LedgerUnavailable,
    UnknownVirtualKey,
    unknown_name,
)
from packshot.gateway.access import Hasher, Issued, new_secret
from packshot.gateway.virtual_key import (
    DefaultsEntry,
    VirtualKey,
    VirtualKeyEntry,
    micros_of,
    virtual_key_of,
)
from packshot.ledger.leases import create_tables
from packshot.ledger.private import make_private_file, make_private_folder
from packshot.ledger.stores.database import Database, Row, Transaction

__all__ = [
    "AuditRow",
    "KeyRow",
    "KeyStore",
    "KeyWatch",
    "entry_of",
    "open_key_store",
    "settings_of",
    "with_defaults",
]

POLL_S = 0.5
"""Seconds between two looks at the store: a change holds everywhere within a second."""

KEEP_S = 60.0
"""Seconds for which known keys hold while the store is away (RELIABILITY §4)."""

CLOSE_S = 2.0
"""Seconds to wait for the thread at the end: a look takes milliseconds, or as long as a server is
silent."""

MAX_GRACE_S = 30 * 86_400
MAX_KEYS = 100_000
"""Issued keys that are not revoked: all of them are in each worker's memory."""

LOCK = 0x6B657973
"""Advisory lock ("keys") that lets one process at a time change keys in PostgreSQL."""

REFUSAL = "the audit trail of keys is append-only"

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS virtual_keys (
        id text PRIMARY KEY, digest text NOT NULL UNIQUE, old_digest text NOT NULL,
        old_until bigint NOT NULL, settings text NOT NULL, created_at bigint NOT NULL,
        rotated_at bigint NOT NULL, revoked_at bigint NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS key_audit (
        seq bigint PRIMARY KEY, at bigint NOT NULL, actor text NOT NULL, action text NOT NULL,
        key_id text NOT NULL, before text NOT NULL, after text NOT NULL, hash text NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS key_pepper (one bigint PRIMARY KEY, proof text NOT NULL)",
)
GUARDS = {
    "sqlite": tuple(
        f"CREATE TRIGGER IF NOT EXISTS key_audit_no_{verb.lower()} BEFORE {verb} ON key_audit"
        f" BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    "postgresql": (
        f"""CREATE OR REPLACE FUNCTION key_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$""",
        """CREATE OR REPLACE TRIGGER key_audit_no_change
            BEFORE UPDATE OR DELETE OR TRUNCATE ON key_audit
            FOR EACH STATEMENT EXECUTE FUNCTION key_audit_refuse()""",
    ),
}

COLUMNS = "id, digest, old_digest, old_until, settings, created_at, rotated_at, revoked_at"
AUDIT = "seq, at, actor, action, key_id, before, after, hash"

pack = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An issued key as it is listed. Times are microseconds since 1970; 0: never."""

    entry: VirtualKeyEntry
    created_at: int
    rotated_at: int
    revoked_at: int

    @property
    def id(self) -> str:
        """The key's id."""
        return self.entry.id


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who did what to a key; ``before`` and ``after`` are JSON, "" where there is none."""

    seq: int
    at: int
    actor: str
    action: str
    key_id: str
    before: str
    after: str


def open_key_store(url: str, hasher: Hasher, clock: Clock = wall_us) -> KeyStore:
    """Open the key store that belongs to a ledger's store: its PostgreSQL, or ``keys.db`` beside.

    Raises:
        LedgerUnavailable: it cannot be reached or written.
        InvalidRequest: it was made with another pepper.
    """
    if url.startswith(POSTGRES):
        from packshot.ledger.stores.postgres import PostgresDatabase

        database: Database = PostgresDatabase(url)
    else:
        from packshot.ledger.leases_sqlite import LeaseFile

        path = Path(url).with_name("keys.db")
        try:
            make_private_folder(path.parent)
            make_private_file(path)
        except OSError as error:
            raise LedgerUnavailable(f"cannot make {path}: {error.strerror}") from error
        database = LeaseFile(path)
    try:
        return KeyStore(database, hasher, clock)
    except BaseException:
        database.close()
        raise


class KeyStore:
    """Issues, lists and ends virtual keys. All methods raise `LedgerUnavailable`."""

    def __init__(self, database: Database, hasher: Hasher, clock: Clock = wall_us) -> None:
        self._database = database
        self._hasher = hasher
        self._clock = clock
        create_tables(database, (*SCHEMA, *GUARDS[database.dialect]))
        self._check_pepper()

    def create(self, entry: VirtualKeyEntry, actor: str) -> str:
        """Issue a key and return its secret, which nobody can be shown again.

        Raises:
            InvalidRequest: the id is, or was, another key's, or there are too many; or it would be
                over already.
        """
        secret, now = new_secret(), self._clock()
        if entry.expires and micros_of(entry.expires) <= now:
            raise InvalidRequest(
                f"a key that expires {entry.expires} is over already: name a later day"
            )
        with self._changing() as within:
            for row in self._rows(within, "WHERE id = ?", (entry.id,)):
                raise InvalidRequest(
                    f"the id {entry.id!r} was that of a key that is revoked, for ever: take another"
                    if row[7]
                    else f"there is a key {entry.id!r} already: take another id, or `packshot keys"
                    f" rotate {entry.id}` for a new secret"
                )
            ((count,),) = within.query("SELECT count(*) FROM virtual_keys WHERE revoked_at = 0")
            if count >= MAX_KEYS:
                raise InvalidRequest(f"there are {count} keys, the most that there may be")
            settings = _json(settings_of(entry))
            within.execute(
                f"INSERT INTO virtual_keys ({COLUMNS}) VALUES (?, ?, '', 0, ?, ?, 0, 0)",  # noqa: S608 - names of ours
                (entry.id, self._digest(secret), settings, now),
            )
            self._note(within, (now, actor, "create", entry.id, "", settings))
        return secret

    def rotate(self, key_id: str, actor: str, grace_s: float = 0.0) -> str:
        """Give a key a new secret and return it; the old one holds for ``grace_s`` more seconds.

        Raises:
            InvalidRequest: there is no such key, it is revoked, or the grace is over 30 days.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidRequest(f"grace is 0 to {MAX_GRACE_S} seconds, got {grace_s:g}")
        secret = new_secret()
        with self._changing() as within:
            row = self._living(within, key_id)
            now = self._clock()
            old, until = (row[1], now + int(grace_s * SECOND_US)) if grace_s else ("", 0)
            within.execute(
                "UPDATE virtual_keys SET digest = ?, old_digest = ?, old_until = ?, rotated_at = ?"
                " WHERE id = ?",
                (self._digest(secret), old, until, now, key_id),
            )
            after = _json({"rotated_at": now, "old_until": until})
            self._note(within, (now, actor, "rotate", key_id, row[4], after))
        return secret

    def revoke(self, key_id: str, actor: str) -> None:
        """End a key for ever, old secret and new.

        Raises:
            InvalidRequest: there is no such key, or it is revoked already.
        """
        with self._changing() as within:
            row = self._living(within, key_id)
            now = self._clock()
            within.execute("UPDATE virtual_keys SET revoked_at = ? WHERE id = ?", (now, key_id))
            self._note(within, (now, actor, "revoke", key_id, row[4], _json({"revoked_at": now})))

    def rows(self, *, revoked: bool = False) -> list[KeyRow]:
        """Return the keys by id; those that were revoked only if wanted."""
        where = "" if revoked else "WHERE revoked_at = 0"
        with self._database.snapshot() as look:
            return [_key_row(row) for row in self._rows(look, f"{where} ORDER BY id")]

    def row(self, key_id: str) -> KeyRow:
        """Return one key, revoked or not.

        Raises:
            UnknownVirtualKey: there is none.
        """
        with self._database.snapshot() as look:
            return _key_row(self._found(look, key_id))

    def audit(self, key_id: str = "", limit: int = 100) -> list[AuditRow]:
        """Return the last entries of the trail, of all keys or of one, newest first."""
        named = (_storable(key_id), limit)
        where, values = ("WHERE key_id = ?", named) if key_id else ("", (limit,))
        sql = f"SELECT {AUDIT} FROM key_audit {where} ORDER BY seq DESC LIMIT ?"  # noqa: S608 - names of ours
        with self._database.snapshot() as look:
            return [AuditRow(*row[:-1]) for row in look.query(sql, values)]

    def check_audit(self) -> int | None:
        """Return the number of the first entry that was changed, or follows one that is gone.

        None: the trail is whole.
        """
        before, expected = "", 1
        with self._database.snapshot() as look:
            for row in look.query(f"SELECT {AUDIT} FROM key_audit ORDER BY seq"):  # noqa: S608
                if row[0] != expected or row[-1] != _hash(before, row[:-1]):
                    return expected
                before, expected = row[-1], expected + 1
        return None

    def version(self) -> int:
        """Return a number that is another one after every change."""
        with self._database.snapshot() as look:
            return look.query("SELECT coalesce(max(seq), 0) FROM key_audit")[0][0]

    def load(self) -> tuple[int, dict[bytes, VirtualKey]]:
        """Return the version, and by digest all keys that are not revoked."""
        keys: dict[bytes, VirtualKey] = {}
        with self._database.snapshot() as look:
            ((version,),) = look.query("SELECT coalesce(max(seq), 0) FROM key_audit")
            for row in self._rows(look, "WHERE revoked_at = 0"):
                digest, old = bytes.fromhex(row[1]), bytes.fromhex(row[2])
                key = virtual_key_of(_entry_in(row), digest)
                keys[digest] = key
                if old:
                    until = min(key.expires_at or row[3], row[3])
                    keys[old] = dataclasses.replace(key, digest=old, expires_at=until)
        return version, keys

    def close(self) -> None:
        """Release the connections."""
        self._database.close()

    @contextmanager
    def _changing(self) -> Generator[Transaction]:
        """Write, one process at a time: the trail has one end."""
        with self._database.transaction() as within:
            if self._database.dialect == "postgresql":
                within.query("SELECT pg_advisory_xact_lock(?)", (LOCK,))
            yield within

    def _digest(self, secret: str) -> str:
        return self._hasher.digest(secret.encode()).hex()

    def _check_pepper(self) -> None:
        """Refuse a pepper with which no key of the store could be found any more."""
        proof = self._hasher.digest(b"the pepper of this key store").hex()
        with self._changing() as within:
            within.execute("INSERT INTO key_pepper VALUES (1, ?) ON CONFLICT DO NOTHING", (proof,))
            ((stored,),) = within.query("SELECT proof FROM key_pepper")
        if not hmac.compare_digest(stored, proof):
            raise InvalidRequest(
                "the keys in the store were made with another pepper, and none of them would work:"
                " restore access.pepper, or the pepper file, on this machine"
            )

    def _rows(self, within: Transaction, where: str, values: Sequence[Any] = ()) -> list[Row]:
        return within.query(f"SELECT {COLUMNS} FROM virtual_keys {where}", values)  # noqa: S608 - text of ours

    def _found(self, within: Transaction, key_id: str) -> Row:
        rows = self._rows(within, "WHERE id = ?", (_storable(key_id),))
        if not rows:
            names = within.query("SELECT id FROM virtual_keys WHERE revoked_at = 0 ORDER BY id")
            known = unknown_name("virtual key", key_id[:80], [name for (name,) in names[:20]])
            raise UnknownVirtualKey(str(known))
        return rows[0]

    def _living(self, within: Transaction, key_id: str) -> Row:
        row = self._found(within, key_id)
        if row[7]:
            raise InvalidRequest(f"the virtual key {row[0]!r} is revoked, for ever; create another")
        return row

    def _note(self, within: Transaction, what: tuple[int, str, str, str, str, str]) -> None:
        last = within.query("SELECT seq, hash FROM key_audit ORDER BY seq DESC LIMIT 1")
        seq, before = last[0] if last else (0, "")
        at, actor, *rest = what
        row = (seq + 1, at, _storable(actor)[:200], *rest)
        within.execute(
            f"INSERT INTO key_audit ({AUDIT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*row, _hash(before, row)),
        )


class KeyWatch:
    """Keeps `Issued` as the store is, in a thread; ``on_change`` is called there after a change.

    The store is closed with it. ``failures`` counts looks in a row that failed: the store's, or
    ``on_change``'s, which is called again then.

    Raises:
        LedgerUnavailable: at the start, where the keys cannot be read even once.
    """

    def __init__(
        self,
        store: KeyStore,
        issued: Issued,
        on_change: Callable[[], None] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self.failures = 0
        self._store = store
        self._issued = issued
        self._on_change = on_change
        self._poll_s = poll_s
        self._version = -1
        self._stop = threading.Event()
        self.look()
        self._thread = threading.Thread(target=self._run, name="packshot-keys", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Read the keys if they have changed."""
        asked = monotonic()
        if self._store.version() != self._version:
            version, keys = self._store.load()
            self._take(version, keys)
            self._version = version  # not before: who failed to hear of it is told again
        # From before the question: what is known is as old as that.
        self._issued.stale_at = asked + KEEP_S

    def _take(self, version: int, keys: Mapping[bytes, VirtualKey]) -> None:
        """Take the keys as they are now: what was revoked is gone at once, and what is new may
        spend only once its budget is in force.
        """
        issued = self._issued
        issued.ever = version > 0
        if self._version != -1 and self._on_change is not None:
            issued.keys = {digest: keys[digest] for digest in issued.keys if digest in keys}
            issued.coming = keys
            self._on_change()
        issued.keys, issued.coming = keys, None

    def close(self) -> None:
        """End the thread, and close the store; one that waits for a silent server is left behind,
        to end with the process.
        """
        self._stop.set()
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._store.close()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.look()
                self.failures = 0
            except Exception:  # noqa: BLE001 - whatever it is, the next look may see better
                self.failures += 1  # `stale_at` stands: once it has passed, keys are refused


# ---------------------------------------------------------------- records
def settings_of(entry: VirtualKeyEntry) -> dict[str, Any]:
    """Return what an entry says, without its secret and without what is as by default."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if field.name == "value":
            continue
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if value != default:
            found[field.name] = _plain(value)
    return found


def entry_of(settings: Mapping[str, Any]) -> VirtualKeyEntry:
    """Return the entry of such settings: strict, for they may come from a caller.

    Raises:
        InvalidRequest: a name is unknown, or a value is not what it must be.
    """
    names = [each.name for each in dataclasses.fields(VirtualKeyEntry) if each.name != "value"]
    _check_names(settings, names)
    for name, inner in (
        ("limits", ("requests_per_minute", "tokens_per_minute")),
        ("budget", ("eur", "per", "unpriced")),
    ):
        value: object = settings.get(name)
        if isinstance(value, dict):
            _check_names(cast("dict[str, object]", value), inner)
    if "id" not in settings:
        raise InvalidRequest("id must be given")
    try:
        return msgspec.convert(dict(settings), VirtualKeyEntry)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"not a virtual key: {error}") from error


def with_defaults(
    settings: Mapping[str, Any], defaults: DefaultsEntry
) -> tuple[VirtualKeyEntry, tuple[str, ...]]:
    """Return the entry of such settings, and what it got of the defaults ("budget", "limits").

    What is named is as it is named: a budget of None, or limits that are empty, are none.

    Raises:
        InvalidRequest: see `entry_of`.
    """
    entry = entry_of(settings)
    given: dict[str, Any] = {}
    if "budget" not in settings and defaults.budget is not None:
        given["budget"] = defaults.budget
    if "limits" not in settings and defaults.limits != entry.limits:
        given["limits"] = defaults.limits
    return dataclasses.replace(entry, **given), tuple(given)


def _check_names(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in settings:
        if name not in names:
            raise unknown_name("key", name[:80], names)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a setting
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {
            name: _plain(part)
            for name, part in parts.items()
            if part is not None and (name, part) != ("unpriced", "refuse")
        }
    return str(value) if isinstance(value, Decimal) else value


def _json(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _entry_in(row: Row) -> VirtualKeyEntry:
    try:
        return entry_of(msgspec.json.decode(row[4]))
    except (InvalidRequest, msgspec.DecodeError) as error:
        raise LedgerCorrupt(f"the virtual key {row[0]!r} in the store: {error}") from error


def _key_row(row: Row) -> KeyRow:
    return KeyRow(_entry_in(row), *row[5:8])


def _storable(text: str) -> str:
    """Return a text as PostgreSQL takes it: without NUL."""
    return text.replace("\0", "\ufffd")


def _hash(before: str, row: Row) -> str:
    return sha256(before.encode() + pack(row)).hexdigest()
