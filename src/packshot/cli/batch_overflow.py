"""What of a batch goes to the hosted provider though a worker is well, and what that costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packshot.cli.batch_progress import count_of
from packshot.core.clock import SECOND_US, wall_us
from packshot.core.errors import LedgerError
from packshot.core.money import Nanos, nanos_of, show_eur

if TYPE_CHECKING:
    from packshot.ledger.prices.book import PriceBook
    from packshot.ledger.reports.forecast import Forecast
    from packshot.studio.batch.elsewhere import Beside
    from packshot.studio.batch.state import RunState
    from packshot.studio.recipes.recipe import Recipe
    from packshot.studio.settings import OverflowEntry, StudioSettings

__all__ = ["Out", "beside_of", "out_of"]


@dataclass(frozen=True, slots=True)
class Out:
    """What is expected to be made by ``to``, a route or "provider/model".

    ``works`` as the pace is foretold, None where nobody knows how long a picture takes here;
    ``each`` nano-EUR, None where no price is known; ``budget`` is that of the overflow, in its
    ``period``, None without one.
    """

    works: int | None
    to: str
    each: Nanos | None
    budget: Nanos | None
    period: str

    @property
    def cost(self) -> Nanos | None:
        """What they cost, in nano-EUR: never more than the budget; None: not known."""
        if self.works is None or self.each is None:
            return self.budget
        cost = self.works * self.each
        return cost if self.budget is None else min(cost, self.budget)

    def said(self) -> str:
        """Return it for people, without its cost."""
        if self.works is None:
            return f"to {self.to}: not known before a picture was measured"
        price = "without a known price"
        if self.each is not None:
            price = f"{show_eur(self.each, 4)} EUR each"
        return f"about {count_of(self.works)} to {self.to}, {price}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the plan."""
        rows = [("elsewhere", self.said())]
        if self.works and self.cost is not None:
            rows.append(("", f"about {show_eur(self.cost, 4)} EUR beside the cost here"))
        if self.budget is not None:
            bound = f"{show_eur(self.budget, 2)} EUR ({self.period})"
            rows.append(("", f"the overflow's budget: {bound}"))
        return rows

    def facts(self) -> dict[str, Any]:
        """Return it as values that JSON has."""
        return {**asdict(self), "cost_nano_eur": self.cost}


def beside_of(
    recipe: Recipe, forecast: Forecast | None, began: float | None, out: Out | None
) -> Beside | None:
    """Return how works go beside a worker; None where none does.

    ``began`` is when the command began to render, on the monotonic clock; ``out`` is what the plan
    expects to go.
    """
    from packshot.studio.batch.elsewhere import Beside
    from packshot.studio.settings import load_studio

    entry = load_studio().overflow
    if entry is None or not _route(recipe, entry):
        return None
    price = (out.each if out else None) or 0
    return Beside(_seconds(forecast), entry.batch, began, price)


def out_of(
    state: RunState, recipe: Recipe, forecast: Forecast | None, book: PriceBook
) -> Out | None:
    """Return what is expected to go beside a worker; None where nothing is.

    Raises:
        InvalidRequest: packshot.yaml has a mistake, or no such route.
    """
    from packshot.studio.batch.elsewhere import expected_out
    from packshot.studio.settings import load_studio

    settings = load_studio()
    entry = settings.overflow
    route = "" if entry is None else _route(recipe, entry)
    if entry is None or not route:
        return None
    dues, left = [due for _, due in state.dated()], state.counts().todo
    if not left or not (dues or entry.batch):
        return None
    seconds, works = _seconds(forecast), None
    if seconds:
        wait_s = (entry.when_wait_exceeds_s, entry.back_below_s) if entry.batch else None
        works = expected_out(dues, left, seconds, wait_s)
        if not works:
            return None
    budget = entry.budget
    bound, period = (nanos_of(budget.eur), budget.per) if budget else (None, "")
    return Out(works, route, _price(settings, route, book), bound, period)


def _route(recipe: Recipe, entry: OverflowEntry) -> str:
    """Return who makes this recipe's pictures elsewhere, "" where nobody can."""
    if "engine" not in recipe.needs:
        return ""
    return entry.ground_to if "photo" in recipe.needs else entry.to


def _seconds(forecast: Forecast | None) -> float:
    """Return what a picture is expected to take here; 0 where nobody knows."""
    return forecast.seconds_us / forecast.renders / SECOND_US if forecast else 0.0


def _price(settings: StudioSettings, route: str, book: PriceBook) -> Nanos | None:
    """Return the most that a picture costs there, None where a price is not known."""
    targets = [(route.partition("/")[0], route.partition("/")[2])]
    if not settings.gateway_url:
        from packshot.gateway.plan import build_plan
        from packshot.gateway.settings import load_gateway
        from packshot.ledger.settings import CONFIG_NAME

        plan = build_plan(load_gateway(Path(CONFIG_NAME)))
        found = plan.routes.get(route) or plan.route(route, "images")
        targets = [(each.provider.price_as, each.model) for each in found.targets]
    most: Nanos = 0
    for provider, model in targets:
        try:
            bound = book.bound(
                provider, model, wall_us(), body_bytes=0, max_output_tokens=0, images=1
            )
        except LedgerError:  # it has no upper bound
            bound = None
        if bound is None:
            return None
        most = max(most, bound)
    return most
