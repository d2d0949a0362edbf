"""What a run of a batch is given: its worker, its store, its books, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from packshot.core.money import Nanos
from packshot.studio.accounts import Ledger, Prices
from packshot.studio.batch.captions import Ahead
from packshot.studio.batch.elsewhere import Elsewhere
from packshot.studio.batch.supervise import Order, Watch
from packshot.studio.recipes.step import Store

__all__ = ["Books", "Rules", "Setup"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of a run.

    ``attempts``: tries at a work, of making and of storing it, before it is quarantined.
    ``in_a_row``: works that fail at their first try, one after the other, before the run stops:
    then it is not the works. ``senders``: pictures that are stored at once. ``waiting``: made
    pictures that may wait to be stored before making waits, too. ``resend_s``: before a picture is
    sent again, doubled each time. ``in_hand``: works in the worker at once: one on the device, the
    others, which are through with it, being finished.
    """

    attempts: int = 3
    in_a_row: int = 10
    senders: int = 4
    waiting: int = 64
    resend_s: float = 1.0
    in_hand: int = 2


@dataclass(frozen=True, slots=True)
class Books:
    """Where the run books: a ledger, its prices, and on what.

    ``model`` is the name that costs are booked on, ``agreed`` the nano-EUR that the run may cost
    before it stops; None: no limit but those of the ledger.
    """

    ledger: Ledger
    book: Prices
    recipe: str
    batch: str
    model: str = ""
    agreed: Nanos | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run needs: the worker, the store, the books, and its limits.

    ``captions`` are written ahead; None leaves them to the worker's rules. ``elsewhere`` makes
    works while no worker can be started, and those that would be late here; None ends the run
    where no worker can be started.
    """

    order: Order
    store: Store
    books: Books
    watch: Watch = field(default_factory=Watch)
    rules: Rules = field(default_factory=Rules)
    captions: Ahead | None = None
    elsewhere: Elsewhere | None = None
