"""Which of a provider's keys makes a call: smooth weighted choice among those that are well.

The choice is nginx's smooth weighted round robin (commit 52327e0): exact over any length of time,
and never the same key several times in a row where another has weight, too. A session keeps its key
(weighted rendezvous hashing, so nothing is stored) for as long as that key is well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from hashlib import blake2b
from math import gcd, lcm, log

from packshot.gateway.health import Breaker

__all__ = ["OUT_S", "Key", "Keys", "turns_of"]

MAX_BREAKERS = 256
"""Models per key whose health is kept apart: the names come from callers. Then all share one."""

COOL_S = 1.0
"""Cooldown after a 429 that names no delay; doubled each time, at most `COOL_MAX_S`."""

COOL_MAX_S = 60.0
LONGEST_ROUND = 1000
"""Calls after which the smooth choice among keys that are well begins anew, where it is kept."""

OUT_S = 300.0
"""How long a key that was refused, or has no money, is left alone before it is tried once more."""


@dataclass(slots=True, eq=False)
class Key:
    """A credential, and what is known of its health. ``header`` is the line that carries it."""

    provider: str
    name: str
    header: bytes = field(repr=False)
    weight: float = 1.0
    models: tuple[str, ...] = ()
    current: float = 0.0
    ready_at: float = 0.0
    """Cooling down until then (monotonic seconds)."""
    cooled: int = 0
    out: str = ""
    """Why a person has to act: "auth", "quota"; "" while it is good."""
    in_flight: int = 0
    breakers: dict[str, Breaker] = field(default_factory=dict[str, Breaker])

    def breaker(self, model: str) -> Breaker:
        """Return the breaker of this key for a model."""
        found = self.breakers.get(model)
        if found is None:
            if len(self.breakers) >= MAX_BREAKERS:
                model = ""
            found = self.breakers.setdefault(model, Breaker())
        return found

    def may(self, model: str) -> bool:
        """Tell whether the operator lets this key be used for the model."""
        return not self.models or any(fnmatchcase(model, each) for each in self.models)

    def well(self, model: str, now: float) -> bool:
        """Tell whether a call may be made now."""
        if now < self.ready_at:
            return False
        found = self.breakers.get(model)
        return found is None or not found.open_until or found.allows(now)

    def cool(self, now: float, asked_s: float | None) -> None:
        """Leave the key alone for as long as the provider asked, or a little longer each time."""
        wait = asked_s if asked_s is not None else min(COOL_S * 2**self.cooled, COOL_MAX_S)
        self.cooled = min(self.cooled + 1, 8)
        self.ready_at = max(self.ready_at, now + wait)

    def take_out(self, now: float, why: str) -> None:
        """Leave the key alone: it is refused, or its account has no money."""
        self.out = why
        self.ready_at = now + OUT_S

    def succeeded(self) -> None:
        """Forget earlier trouble."""
        if self.cooled or self.out:
            self.cooled = 0
            self.out = ""


class Keys:
    """The keys of one provider."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        self._turns = turns_of(self._keys)
        """Whose turn it is, call by call, while all are well; then from the beginning again."""
        self._turn = 0

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def breakers(self, model: str) -> Iterator[Breaker]:
        """Yield the breakers of all keys that made a call of ``model``."""
        return (key.breakers[model] for key in self._keys if model in key.breakers)

    def remember(self, old: Keys | None) -> Keys:
        """Carry over what was learned of keys of the same name and credential; return self."""
        known = {(key.name, key.header): key for key in old or ()}
        for key in self._keys:
            before = known.get((key.name, key.header))
            if before is not None:
                key.ready_at, key.cooled, key.out = before.ready_at, before.cooled, before.out
                key.breakers = before.breakers
        return self

    def choose(
        self,
        model: str,
        now: float,
        *,
        allowed: Collection[str] | None = None,
        tried: Collection[Key] = (),
        session: bytes = b"",
    ) -> Key | None:
        """Return the key for the next call of ``model``, or None where none may be used now.

        ``allowed`` are the names that the virtual key is bound to (None: all), ``tried`` the keys
        that this call has had already.
        """
        if self._turns and not (tried or session) and allowed is None:
            key = self._turns[self._turn - 1]
            self._turn = (self._turn or len(self._turns)) - 1
            if key.well(model, now):
                return key  # else the others take its turn, by their weights
        best: Key | None = None
        total = 0.0
        well: list[Key] = []
        for key in self._keys:
            if (tried and key in tried) or not key.well(model, now):
                continue
            if (allowed is None or key.name in allowed) and (not key.models or key.may(model)):
                well.append(key)
        if session and len(well) > 1:
            return max(well, key=lambda key: _score(key, session))
        for key in well:
            key.current += key.weight
            total += key.weight
            if best is None or key.current > best.current:
                best = key
        if best is not None:
            best.current -= total
        return best

    def ready_in(
        self, model: str, now: float, allowed: Collection[str] | None = None
    ) -> float | None:
        """Return the seconds until the first key may be used; None where there is none at all."""
        waits = [
            max(key.ready_at, key.breaker(model).open_until) - now
            for key in self._keys
            if (allowed is None or key.name in allowed) and key.may(model)
        ]
        return max(0.0, min(waits)) if waits else None

    def all_out(self, model: str, allowed: Collection[str] | None = None) -> bool:
        """Tell whether every key that may be used is refused, or its account empty."""
        return all(
            key.out
            for key in self._keys
            if (allowed is None or key.name in allowed) and key.may(model)
        )


def turns_of(keys: Sequence[Key]) -> tuple[Key, ...]:
    """Return one round of the smooth weighted choice among keys that are all well, last turn first;
    nothing where a key is not for all models, or a round is longer than `LONGEST_ROUND`.
    """
    weights = [Fraction(repr(key.weight)) for key in keys]
    unit = lcm(*(weight.denominator for weight in weights))
    shares = [int(weight * unit) for weight in weights]
    total, one = sum(shares), gcd(*shares)
    if not total or total // one > LONGEST_ROUND or any(key.models for key in keys):
        return ()
    turns: list[Key] = []
    current = [0] * len(keys)
    for _ in range(total // one):
        current = [before + share for before, share in zip(current, shares, strict=True)]
        best = current.index(max(current))
        current[best] -= total
        turns.append(keys[best])
    return tuple(reversed(turns))


def _score(key: Key, session: bytes) -> float:
    """Return the weighted rendezvous score (Schindelhauer and Schomaker, SPAA 2005)."""
    digest = blake2b(session, key=key.name.encode()[:64], digest_size=7).digest()
    share = (int.from_bytes(digest) + 1) / (1 << 56)
    return -key.weight / log(share) if share < 1 else float("inf")
