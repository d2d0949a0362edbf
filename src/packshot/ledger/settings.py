"""The ``ledger:`` section of packshot.yaml, and where the ledger lives without one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from packshot.core.config import read
from packshot.core.errors import InvalidRequest

__all__ = [
    "CONFIG_NAME",
    "SECTIONS",
    "CapRow",
    "Durability",
    "Settings",
    "StorageRow",
    "load_settings",
    "state_folder",
]

CONFIG_NAME = "packshot.yaml"
"""The configuration file, looked for in the working directory."""

SECTIONS = frozenset(
    (
        "access",
        "engine",
        "fallbacks",
        "ledger",
        "mcp",
        "network",
        "object_store",
        "providers",
        "response_cache",
        "routes",
        "semantic_cache",
        "server",
        "studio",
        "telemetry",
    )
)
"""What may stand at the top of the file. Only ``ledger`` is read here, the others by their own."""

Durability = Literal["process", "power", "store"]


@dataclass(frozen=True, slots=True)
class CapRow:
    """A limit on what may be spent: ``eur`` per calendar period, of one scope.

    ``name`` is the team, virtual key or batch that is meant; "" for the total.
    """

    scope: Literal["total", "team", "virtual_key", "batch"]
    eur: Decimal
    per: Literal["hour", "day", "month", "ever"] = "month"
    name: str = ""
    unpriced: Literal["allow", "refuse"] = "allow"

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if self.eur < 0:
            raise InvalidRequest(f"eur must not be negative, got {self.eur}")
        if self.scope == "total" and self.name:
            raise InvalidRequest(f"scope total has no name, got {self.name!r}; leave it out")
        if self.scope != "total" and not self.name:
            raise InvalidRequest(f"scope {self.scope} needs a name: which one is meant?")


@dataclass(frozen=True, slots=True)
class PriceEntry:
    """A dated price of the operator's own, as typed; the price book checks and reads it.

    ``price`` is the exact amount in ``currency`` per ``per`` units of ``unit``; ``since`` a day
    (UTC), from which it holds.
    """

    provider: str
    model: str
    unit: str
    price: Decimal
    since: str
    source: str
    per: Decimal = Decimal(1)
    currency: str = "EUR"
    size: str = ""
    quality: str = ""
    tier: str = "standard"


@dataclass(frozen=True, slots=True)
class RateEntry:
    """A dated exchange rate: ``eur`` for one unit of ``currency`` from the day ``since`` (UTC)."""

    currency: str
    eur: Decimal
    since: str
    source: str


@dataclass(frozen=True, slots=True)
class StorageRow:
    """A folder whose bytes cost by the month, at the ``gb_month`` price of ``provider``.

    ``bucket`` is what it is called in the ledger, the folder's own name where nothing is said;
    ``team`` who it is charged to.
    """

    folder: Path
    provider: str = "local"
    bucket: str = ""
    team: str = ""

    def __post_init__(self) -> None:
        """Name it."""
        if not self.bucket:
            object.__setattr__(self, "bucket", self.folder.absolute().name)
        if not self.provider or not self.bucket:
            raise InvalidRequest(f"storage needs a provider and a bucket's name, got {self}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The ledger's choices.

    ``store`` is a path of a SQLite file or a ``postgresql://`` URL, ``journal`` the folder of the
    journals. ``gpu_eur_per_hour`` is EUR per device-hour by device kind ("h100", "cpu"), exact.
    ``unpriced`` says what happens to a call without a known price where no cap decides.
    """

    store: str = field(default="", repr=False)  # the URL may hold a password
    journal: Path = Path()
    durability: Durability = "process"
    gpu_eur_per_hour: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    prices: tuple[PriceEntry, ...] = ()
    exchange_rates: tuple[RateEntry, ...] = ()
    caps: tuple[CapRow, ...] = ()
    storage: tuple[StorageRow, ...] = ()
    timezone: str = "UTC"
    unpriced: Literal["allow", "refuse"] = "allow"

    def __post_init__(self) -> None:
        """Fill in the places that were not named, and check what is more than a type."""
        home = state_folder()
        if not self.store:
            object.__setattr__(self, "store", str(home / "ledger.db"))
        if self.journal == Path():
            object.__setattr__(self, "journal", home / "journal")
        for kind, rate in self.gpu_eur_per_hour.items():
            if rate < 0:
                raise InvalidRequest(f"gpu_eur_per_hour.{kind} must not be negative, got {rate}")
        names = [(row.provider, row.bucket) for row in self.storage]
        if len(set(names)) < len(names):
            raise InvalidRequest(
                f"two folders of storage have one name: give each a bucket, {names}"
            )
        places = [(row.scope, row.name, row.per) for row in self.caps]
        for place in places:
            if places.count(place) > 1:
                scope, name, per = place
                raise InvalidRequest(f"two caps on {scope} {name} per {per}: keep one of them")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InvalidRequest(
                f"timezone {self.timezone!r} is not known; expected a name like Europe/Berlin"
            ) from error
        if self.durability == "store" and not self.store.startswith(("postgresql:", "postgres:")):
            raise InvalidRequest(
                "durability store commits to PostgreSQL before each call; expected a "
                "postgresql:// store, or durability power"
            )


def state_folder() -> Path:
    """Return the folder of this user's ledger: in $XDG_STATE_HOME, else ~/.local/state."""
    home = os.environ.get("XDG_STATE_HOME", "")
    # The standard says that a relative path there is to be ignored.
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state"
    return base / "packshot"


def load_settings(path: Path | None = None) -> Settings:
    """Return the ledger's settings from ``path``, else ./packshot.yaml, else all defaults.

    Relative paths in the file count from the folder that the file is in.

    Raises:
        OutputError: the file, or one that it names, cannot be read.
        InvalidRequest: the file has a mistake; the message has its line.
    """
    found = path or Path(CONFIG_NAME)
    if path is None and not found.exists():
        return Settings()
    settings = read(found, SECTIONS).section("ledger", Settings) or Settings()
    if "://" not in settings.store:
        store = found.parent / Path(settings.store).expanduser()
        object.__setattr__(settings, "store", str(store))
    return settings
