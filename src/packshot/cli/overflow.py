"""Where renders overflow to: what packshot.yaml says of it, put together with a command's books."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from packshot.cli.booking import Books
    from packshot.core.money import Nanos
    from packshot.gateway.client import Client
    from packshot.gateway.plan import Plan
    from packshot.ledger.caps import Cap
    from packshot.ledger.settings import Settings
    from packshot.studio.batch.elsewhere import Beside, Elsewhere, OnCall
    from packshot.studio.hosted import HostedProvider
    from packshot.studio.overflow import Overflow, Pool, Why
    from packshot.studio.settings import OverflowEntry, StudioSettings

__all__ = ["caps_with", "check_overflow", "elsewhere_of", "hosted_of", "overflow_of", "rendered"]

T = TypeVar("T")


def check_overflow(plan: Plan, settings: StudioSettings) -> list[str]:
    """Return what is to be warned of where renders overflow to.

    Raises:
        InvalidRequest: a route or model there is none, or makes no pictures.
    """
    from packshot.gateway.client import check_route
    from packshot.gateway.pictures import check_pictures

    entry = settings.overflow
    if entry is None or settings.gateway_url:
        return []
    for route in filter(None, (entry.to, entry.ground_to)):
        check_route(plan, route)
        check_pictures(plan, route)
    if entry.budget is not None:
        return []
    return ["studio.overflow has no budget: only the caps under ledger: bound what it may cost"]


def caps_with(settings: Settings, entry: OverflowEntry | None) -> Sequence[Cap] | None:
    """Return the ledger's caps with the overflow's own budget; None where it has none."""
    if entry is None or entry.budget is None:
        return None
    from packshot.core.money import nanos_of
    from packshot.ledger.caps import Cap
    from packshot.ledger.ledger import caps_of
    from packshot.studio.hosted import ACCOUNT

    budget = entry.budget
    own = Cap("virtual_key", ACCOUNT, nanos_of(budget.eur), budget.per, "refuse")
    return [*caps_of(settings), own]


def overflow_of(entry: OverflowEntry, pool: Pool) -> Overflow:
    """Return who decides for each render of a pool."""
    from packshot.studio.overflow import Limits, Overflow

    limits = Limits(entry.when_wait_exceeds_s, entry.back_below_s, entry.dwell_s)
    return Overflow(limits, pool)


def rendered(
    books: Books, recipe: str, own: Callable[[], T], hosted: Callable[[HostedProvider, Why], T]
) -> T:
    """Return what ``own`` rendered; or ``hosted``, where no device is there and renders overflow.

    Raises:
        PackshotError: see `packshot.studio.overflow.Overflow.go`.
    """
    from packshot.studio.overflow import Gauge
    from packshot.studio.settings import load_studio

    settings = load_studio()
    entry = settings.overflow
    if entry is None:
        return own()
    provider = hosted_of(settings, entry, books, recipe)
    try:
        return overflow_of(entry, Gauge()).go(own, lambda why: hosted(provider, why))
    finally:
        provider.close()


def elsewhere_of(
    books: Books,
    recipe: str,
    batch: str,
    settings: dict[str, Any],
    folder: Path,
    beside: Beside | None,
) -> Elsewhere | None:
    """Return who makes works of a batch that are not made here; None where nobody does.

    ``settings`` are the worker's, ``folder`` is the run's, ``beside`` says what goes though a
    worker is well.
    """
    from packshot.studio.batch.elsewhere import Elsewhere
    from packshot.studio.batch.perform import with_engine
    from packshot.studio.overflow import Limits
    from packshot.studio.settings import load_studio

    studio = load_studio()
    entry = studio.overflow
    if entry is None:
        return None
    return Elsewhere(
        Limits(entry.when_wait_exceeds_s, entry.back_below_s, entry.dwell_s),
        lambda on_call: hosted_of(studio, entry, books, recipe, batch, on_call),
        lambda engine: with_engine(settings, folder, engine),
        beside=beside,
    )


def hosted_of(
    settings: StudioSettings,
    entry: OverflowEntry,
    books: Books,
    recipe: str,
    batch: str = "",
    on_call: OnCall | None = None,
) -> HostedProvider:
    """Return the hosted provider of a command; nothing of the gateway is made before it is used.

    Close it before the books. ``on_call`` hears what its pictures cost; None puts it on the
    keeper's bill.
    """
    from packshot.studio.hosted import HostedOrder, HostedProvider

    def client() -> Client:
        from packshot.gateway.client import LocalClient, RemoteClient
        from packshot.gateway.settings import load_gateway
        from packshot.ledger.settings import CONFIG_NAME

        if settings.gateway_url:
            return RemoteClient(settings.gateway_url, settings.gateway_key)
        made = LocalClient(load_gateway(Path(CONFIG_NAME)), books.ledger, books.book)
        made.check_pictures(entry.to)
        if entry.ground_to:
            made.check_pictures(entry.ground_to)
        return made

    order = HostedOrder(entry.to, entry.ground_to, entry.deadline_s, recipe, batch)

    def on_bill(name: str, cost: Nanos, priced: bool) -> None:
        books.keeper.bill.add_call(name, cost, priced=priced, stage="denoise")

    return HostedProvider(client, order, on_call or on_bill)
