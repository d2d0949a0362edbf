"""The sections ``studio:`` and ``engine:`` of packshot.yaml.

How captions are written, where renders overflow to; at which sizes a model renders.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from packshot.core.config import Secret, read
from packshot.core.errors import InvalidRequest
from packshot.engine.buckets import MAX_BUCKETS, Size, parse_bucket
from packshot.ledger.settings import CONFIG_NAME, SECTIONS
from packshot.studio.embeddings import EmbeddingSettings
from packshot.studio.objects import check_place

__all__ = [
    "BudgetEntry",
    "EngineSettings",
    "OverflowEntry",
    "StudioSettings",
    "load_engine_settings",
    "load_studio",
]

NO_SECRET = Secret()
KEPT = EmbeddingSettings()

LONGEST_S = 60.0
"""Of a deadline: nobody waits longer for a caption that the rules write at once."""


LONGEST_RENDER_S = 3600.0
"""Of a hosted picture's deadline, a wait, and a stay."""


@dataclass(frozen=True, slots=True)
class BudgetEntry:
    """What all overflowed renders may cost: ``eur`` per calendar period.

    Within it a model without a known price is refused.
    """

    eur: Decimal
    per: Literal["hour", "day", "month", "ever"] = "month"

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 0 <= self.eur <= Decimal(10**9):
            raise InvalidRequest(f"eur is 0 to 1000000000, got {self.eur}")


@dataclass(frozen=True, slots=True)
class OverflowEntry:
    """Where renders go that our own devices cannot make, or not in time.

    ``to`` is a route, or "provider/model"; ``ground_to`` one for renders that keep a part of a
    picture (Stability's replace-background-and-relight), "" for none. Renders go there when they
    would wait longer than ``when_wait_exceeds_s``, and return when that is ``back_below_s`` or less
    (0: half of it), ``dwell_s`` after the last change at the earliest. ``deadline_s`` is how long a
    hosted picture may take. ``budget`` None leaves them to the caps of the ledger. ``batch`` has
    the length of a batch's own line count as a wait, too, which then needs a budget.
    """

    to: str
    ground_to: str = ""
    when_wait_exceeds_s: float = 20.0
    back_below_s: float = 0.0
    dwell_s: float = 30.0
    deadline_s: float = 120.0
    budget: BudgetEntry | None = None
    batch: bool = False

    def __post_init__(self) -> None:
        """Refuse what could never be meant, and fill in the threshold to return at."""
        if not self.to:
            raise InvalidRequest("to is a route, or provider/model, got nothing")
        for name in ("when_wait_exceeds_s", "deadline_s"):
            if not 0 < getattr(self, name) <= LONGEST_RENDER_S:
                raise InvalidRequest(
                    f"{name} is above 0, at most {LONGEST_RENDER_S:g}, got {getattr(self, name):g}"
                )
        if not 0 <= self.dwell_s <= LONGEST_RENDER_S:
            raise InvalidRequest(f"dwell_s is 0 to {LONGEST_RENDER_S:g}, got {self.dwell_s:g}")
        if not 0 <= self.back_below_s <= self.when_wait_exceeds_s:
            raise InvalidRequest(
                "back_below_s is 0 (half of when_wait_exceeds_s) to when_wait_exceeds_s, got "
                f"{self.back_below_s:g}"
            )
        if not self.back_below_s:
            object.__setattr__(self, "back_below_s", self.when_wait_exceeds_s / 2)


@dataclass(frozen=True, slots=True)
class StudioSettings:
    """The studio's choices.

    ``caption_route`` is a route of the gateway, or "provider/model"; "" leaves captions to the
    rules. ``caption_deadline_s`` is how long a caption may take, all tries together. With
    ``gateway_url`` that gateway is asked, with the virtual key ``gateway_key``; without, the call
    is made in this process, by the providers and routes of the same file. ``store`` is where
    batches put their pictures where nothing else is said: a folder, or s3://bucket/prefix.
    ``overflow`` None renders here alone. ``embeddings`` says what is kept of texts that were
    encoded before.
    """

    caption_route: str = ""
    caption_deadline_s: float = 8.0
    gateway_url: str = ""
    gateway_key: Secret = NO_SECRET
    embeddings: EmbeddingSettings = KEPT
    store: str = ""
    overflow: OverflowEntry | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 0 < self.caption_deadline_s <= LONGEST_S:
            raise InvalidRequest(
                f"caption_deadline_s is above 0, at most {LONGEST_S:g}, "
                f"got {self.caption_deadline_s:g}"
            )
        if self.gateway_key and not self.gateway_url:
            raise InvalidRequest("gateway_key is for a gateway elsewhere: give its gateway_url")
        check_place(self.store)
        if self.overflow is not None and self.overflow.batch:
            _check_bounded(self.overflow, self.gateway_url)
        if self.gateway_url and self.overflow is not None and self.overflow.budget is not None:
            raise InvalidRequest(
                "overflow.budget cannot bound what a gateway elsewhere spends: give the virtual "
                "key that it knows us by a budget, and leave this one out"
            )


def _check_bounded(entry: OverflowEntry, gateway_url: str) -> None:
    if entry.budget is None and not gateway_url:
        raise InvalidRequest(
            "overflow.batch sends works of every long batch to the hosted provider: say what they "
            "may cost, such as overflow.budget: {eur: 50, per: month}"
        )


def load_studio(path: Path | None = None) -> StudioSettings:
    """Return the studio's settings from ``path``, else ./packshot.yaml, else all defaults.

    Raises:
        OutputError: the file, or one that it names, cannot be read.
        InvalidRequest: the file has a mistake; the message has its line.
    """
    found = path or Path(CONFIG_NAME)
    if path is None and not found.exists():
        return StudioSettings()
    return read(found, SECTIONS).section("studio", StudioSettings) or StudioSettings()


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine's choices.

    ``buckets`` are sizes to render at ("1216x832"); None takes SDXL's for a model of its size.
    """

    buckets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        sizes = self.sizes
        if sizes is None:
            return
        if not 1 <= len(sizes) <= MAX_BUCKETS:
            raise InvalidRequest(
                f"buckets are 1 to {MAX_BUCKETS}, got {len(sizes)}; leave the key out for SDXL's"
            )
        if len({*sizes}) < len(sizes):
            raise InvalidRequest(f"a bucket stands twice in {', '.join(self.buckets or ())}")

    @property
    def sizes(self) -> tuple[Size, ...] | None:
        """The buckets, as `packshot.engine.buckets.buckets_of` takes them."""
        return None if self.buckets is None else tuple(map(parse_bucket, self.buckets))


def load_engine_settings(path: Path | None = None) -> EngineSettings:
    """Return the engine's settings; as for `load_studio`."""
    found = path or Path(CONFIG_NAME)
    if path is None and not found.exists():
        return EngineSettings()
    return read(found, SECTIONS).section("engine", EngineSettings) or EngineSettings()
