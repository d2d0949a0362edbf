"""Idempotency keys: the same key and body gets the first answer again, and nothing is spent."""

from __future__ import annotations

from hashlib import sha256

from packshot.core.clock import HOUR_US, SECOND_US
from packshot.core.errors import IdempotencyError, InvalidRequest
from packshot.ledger.leases import Shared, create_tables
from packshot.ledger.stores.database import Table

__all__ = ["Answers"]

KEEP_US = 24 * HOUR_US
"""How long an answer is replayed, as Stripe does (RELIABILITY §5.3)."""

IN_FLIGHT_US = 3900 * SECOND_US
"""A first call without an answer for so long died: its key may be used again. No call of the
gateway takes that long: an hour is the most that can be configured."""

MAX_ANSWER = 1 << 20
"""Bytes; a longer answer is not kept, and its key is refused rather than spent on twice."""

MAX_KEYS = 100_000
"""Kept answers; beyond, those that expire first go."""

MAX_KEY = 255
"""Characters of a key, as Stripe allows."""

ANSWERS = Table(
    "answers",
    ("key", "body", "state", "answer", "expires"),
    frozenset(("key", "state")),
    frozenset(("body", "answer")),
)
SCHEMA = {
    dialect: (
        f"""CREATE TABLE IF NOT EXISTS answers (key text PRIMARY KEY, body {binary} NOT NULL,
        state text NOT NULL, answer {binary} NOT NULL, expires bigint NOT NULL)""",
        "CREATE INDEX IF NOT EXISTS answers_expires ON answers (expires)",
    )
    for dialect, binary in (("sqlite", "blob"), ("postgresql", "bytea"))
}
"""``state`` is "in flight", "done", or "too long" for an answer above `MAX_ANSWER`."""


class Answers:
    """Answers by key, in a database that all workers share. Keys are stored as hashes only."""

    def __init__(self, database: Shared, *, max_keys: int = MAX_KEYS) -> None:
        self._database = database
        self._max_keys = max_keys
        create_tables(database, SCHEMA[database.dialect])

    def once(self, key: str, body: bytes, scope: str, at: int) -> bytes | None:
        """Return the first answer, or None and note that the first call is in flight.

        Raises:
            IdempotencyError: another body, a call in flight, or an answer too long to be kept.
        """
        name, print_ = _hash(key, scope), sha256(body).digest()
        with self._database.transaction() as within:
            within.execute("DELETE FROM answers WHERE expires <= ?", (at,))
            mine = within.query(
                "INSERT INTO answers VALUES (?, ?, 'in flight', ?, ?) ON CONFLICT DO NOTHING"
                " RETURNING key",
                (name, print_, b"", at + IN_FLIGHT_US),
            )
            if mine:
                return None
            ((kept, state, answer),) = within.query(
                "SELECT body, state, answer FROM answers WHERE key = ?", (name,)
            )
        if bytes(kept) != print_:
            raise IdempotencyError(
                "this idempotency key came before with another body: use a new key for a new call"
            )
        if state == "in flight":
            raise IdempotencyError(
                "the first call with this idempotency key is not done: wait, and ask again"
            )
        if state == "too long":
            raise IdempotencyError(
                f"the first call with this idempotency key was answered by more than {MAX_ANSWER} "
                "bytes, which are not kept: use a new key to spend again"
            )
        return bytes(answer)

    def remember(self, key: str, answer: bytes, scope: str, at: int) -> None:
        """Keep the answer of the first call."""
        long = len(answer) > MAX_ANSWER
        with self._database.transaction() as within:
            within.execute(
                "UPDATE answers SET state = ?, answer = ?, expires = ? WHERE key = ?",
                (
                    "too long" if long else "done",
                    b"" if long else answer,
                    at + KEEP_US,
                    _hash(key, scope),
                ),
            )
            ((count,),) = within.query("SELECT count(*) FROM answers")
            if count > self._max_keys:
                within.execute(
                    "DELETE FROM answers WHERE key IN (SELECT key FROM answers"
                    " WHERE state <> 'in flight' ORDER BY expires LIMIT ?)",
                    (count - self._max_keys,),
                )

    def forget(self, key: str, scope: str) -> None:
        """Let the key be used again."""
        with self._database.transaction() as within:
            within.execute("DELETE FROM answers WHERE key = ?", (_hash(key, scope),))

    def close(self) -> None:
        """Release the connection."""
        self._database.close()


def _hash(key: str, scope: str) -> str:
    """Return the stored name; nobody learns a key from the table, nor meets another's scope."""
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidRequest(f"an idempotency key has 1 to {MAX_KEY} characters, got {len(key)}")
    # The length in front keeps ("a", "bc") and ("ab", "c") apart.
    return sha256(f"{len(scope)}:{scope}{key}".encode()).hexdigest()
