"""``packshot recipe``: which recipes there are, what is in them, and whether a file is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.core.errors import PackshotError

if TYPE_CHECKING:
    from packshot.studio.recipes.recipe import Recipe

__all__ = ["app"]

app = typer.Typer(help="List, show and check recipes.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)

Name = Annotated[
    str, typer.Argument(metavar="NAME | FILE", help="A recipe's name, or a .yaml file.")
]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME | FILE…", help="Recipes' names, or .yaml files.")
]


@app.command("list")
def list_(*, as_json: o.AsJson = False) -> None:
    """List the recipes that come with packshot, and the steps that are installed."""
    from packshot.studio.recipes.recipe import SHIPPED, load_recipe
    from packshot.studio.recipes.registry import known_steps

    recipes = [load_recipe(name) for name in SHIPPED]
    if as_json:
        _print({"recipes": [_facts(each) for each in recipes], "steps": sorted(known_steps())})
        return
    table = _table("recipe", "needs", "of each item", "what it does")
    for each in recipes:
        table.add_row(each.name, _needs(each), _count(each), each.about)
    terminal.out().print(table)
    terminal.out().print(f"\nSteps: {', '.join(sorted(known_steps()))}", soft_wrap=True)


@app.command()
def show(name: Name, *, as_json: o.AsJson = False) -> None:
    """Show a recipe: every step and parameter, those that it leaves to their defaults too."""
    from packshot.studio.recipes.recipe import load_recipe

    recipe = load_recipe(name)
    if as_json:
        _print(_facts(recipe))
        return
    console = terminal.out()
    console.print(f"{recipe.name}, version {recipe.version}. {recipe.about}", soft_wrap=True)
    console.print(f"Needs: {_needs(recipe)}. Makes of each item: {_count(recipe)}.\n")
    table = _table("step", "parameter", "value")
    for step in recipe.facts()["steps"]:
        rows = list(step["with"].items()) or [("", "")]
        for number, (parameter, value) in enumerate(rows):
            table.add_row(step["step"] if number == 0 else "", parameter, _shown(value))
    console.print(table)
    if recipe.variants.grounds or recipe.variants.sizes:
        console.print()
    for what in ("grounds", "sizes"):
        for chosen in getattr(recipe.variants, what):
            console.print(f"{what.removesuffix('s')}: {chosen}", soft_wrap=True)


@app.command()
def check(names: Names, *, as_json: o.AsJson = False) -> None:
    """Check recipes as a run would; exit 2 where one has a mistake, and name its line."""
    from packshot.studio.recipes.recipe import load_recipe

    good: list[dict[str, Any]] = []
    wrong: list[PackshotError] = []
    for name in names:
        try:
            recipe = load_recipe(name)
        except PackshotError as error:
            wrong.append(error)
            continue
        good.append(_facts(recipe))
        if not as_json:
            steps = " > ".join(step.name for step in recipe.steps)
            terminal.out().print(f"{name}: ok: {steps}", soft_wrap=True)
    if as_json:
        _print({"recipes": good, "errors": [str(error) for error in wrong]})
    for error in wrong:
        if not as_json:
            terminal.error(str(error))
    if wrong:
        raise typer.Exit(max(error.exit_code for error in wrong))


def _facts(recipe: Recipe) -> dict[str, Any]:
    return {
        **recipe.facts(),
        "about": recipe.about,
        "needs": sorted(recipe.needs),
        "count": recipe.variants.count,
    }


def _needs(recipe: Recipe) -> str:
    """Return what a user must bring or have; a store is always there."""
    said = {"photo": "a photo", "engine": "a model"}
    return ", ".join(text for need, text in said.items() if need in recipe.needs) or "-"


def _count(recipe: Recipe) -> str:
    number = recipe.variants.count
    return "1 picture" if number == 1 else f"{number} pictures"


def _shown(value: Any) -> str:  # noqa: ANN401 - a parameter may be of any type that JSON has
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value)
        return ", ".join(f"{name} {_shown(each)}" for name, each in pairs.items())
    if isinstance(value, list):
        return "; ".join(_shown(each) for each in cast("list[Any]", value)) or "-"
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(*columns: str) -> Any:  # noqa: ANN401 - rich is imported where it is used
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(facts: dict[str, Any]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)
