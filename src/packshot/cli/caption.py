"""Who writes captions: what ``--caption`` and packshot.yaml come to, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from packshot.cli import terminal
from packshot.core.errors import InvalidRequest, unknown_name
from packshot.core.money import show_eur

if TYPE_CHECKING:
    from packshot.cli.booking import Books
    from packshot.gateway.client import Client
    from packshot.studio.plan import Plan
    from packshot.studio.rewrite import Rewritten
    from packshot.studio.settings import StudioSettings

__all__ = ["CAPTIONS", "ELSEWHERE", "Choice", "caption_facts", "choose", "client_of", "written"]

Choice: TypeAlias = Literal["rules", "llm", "none"]
CAPTIONS: tuple[Choice, ...] = ("rules", "llm", "none")

PLACES = 9

ELSEWHERE = "a gateway elsewhere"
"""What a call is named of which only that gateway knows what became of it."""


def choose(asked: str | None, *, raw: bool) -> Choice:
    """Return who writes the captions: as asked, else a language model where one is configured.

    Raises:
        InvalidRequest: there is no such choice, it contradicts ``--raw``, or no route is configured
            for "llm".
    """
    if asked is not None and asked not in CAPTIONS:
        raise unknown_name("caption", asked, CAPTIONS)
    if raw and asked not in {None, "none"}:
        raise InvalidRequest(f"--raw means --caption none, got --caption {asked}: leave out one")
    if raw or asked == "none":
        return "none"
    if asked == "rules":
        return "rules"
    from packshot.studio.settings import load_studio

    if load_studio().caption_route:
        return "llm"
    if asked == "llm":
        raise InvalidRequest(
            "--caption llm needs a route to ask, and packshot.yaml names none: write "
            "`studio: {caption_route: prompt-rewrite}` and a route of that id, or leave it to "
            "--caption rules"
        )
    return "rules"


def written(
    plans: Sequence[Plan], choice: Choice, books: Books, recipe: Literal["render", "sheet"]
) -> tuple[Plan, ...]:
    """Return the plans with the captions of who was chosen; say in one line what came of it.

    Raises:
        InvalidRequest: the gateway's part of packshot.yaml has a mistake; nobody was asked.
    """
    if choice != "llm":
        return tuple(plans)
    from packshot.cli.progress import spinner
    from packshot.studio.settings import load_studio

    try:
        from packshot.studio.rewrite import Order, rewrite
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"captions by llm need {error.name}, which is not installed: "
            'pip install "packshot[gateway]", or --caption rules'
        ) from error
    settings = load_studio()
    client = client_of(settings, books)
    order = Order(settings.caption_route, settings.caption_deadline_s, recipe)
    with spinner(f"asking {settings.caption_route} for captions"):
        made = rewrite(plans, client, order)
    for one in made:
        if one.calls:
            books.keeper.bill.add_call(one.name or ELSEWHERE, one.cost, priced=one.priced)
    _tell(made)
    return tuple(one.plan for one in made)


def caption_facts(plan: Plan) -> dict[str, Any]:
    """Return who wrote a plan's caption, and why not the language model, for programs."""
    from dataclasses import asdict

    return {**asdict(plan.caption.writer), "problem": plan.caption.problem}


def client_of(settings: StudioSettings, books: Books) -> Client:
    """Return who is asked for captions: a gateway elsewhere, or the one in this process."""
    from packshot.gateway.client import LocalClient, RemoteClient
    from packshot.gateway.settings import load_gateway
    from packshot.ledger.settings import CONFIG_NAME

    if settings.gateway_url:
        return RemoteClient(settings.gateway_url, settings.gateway_key)
    client = LocalClient(load_gateway(Path(CONFIG_NAME)), books.ledger, books.book)
    client.check(settings.caption_route)
    return client


def _tell(made: Sequence[Rewritten]) -> None:
    """Say who wrote, with which prompt, for how much; and why not, where it was not done."""
    done = [one for one in made if one.plan.caption.writer.by == "llm"]
    failed = [one for one in made if one.plan.caption.writer.by != "llm"]
    many = len(made) > 1
    if done:
        writer = done[0].plan.caption.writer
        names = ", ".join(dict.fromkeys(one.name for one in done))
        count = _count(done) if many else "caption"
        terminal.note(f"{count} by {names} ({writer.prompt}), {_cost(done)}")
    if failed:
        caption = failed[0].plan.caption
        route, why = caption.writer.route, caption.problem
        count = _count(failed) if many else "caption"
        cost = f"; {_cost(failed)} all the same" if any(_costs(one) for one in failed) else ""
        terminal.warn(f"{count} by the rules, for nothing came of {route}: {why}{cost}")


def _count(made: Sequence[Rewritten]) -> str:
    return "1 caption" if len(made) == 1 else f"{len(made)} captions"


def _costs(one: Rewritten) -> bool:
    return one.cost > 0 or not one.priced


def _cost(made: Sequence[Rewritten]) -> str:
    amount = show_eur(sum(one.cost for one in made), PLACES)
    if all(one.priced for one in made):
        return f"{amount} EUR"
    return f"{amount} EUR and unpriced calls" if any(one.cost for one in made) else "unpriced"
