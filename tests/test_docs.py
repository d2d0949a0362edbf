"""What the pages say exists: commands, options, files, variables; and every option is on a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from packshot.cli.main import app

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "packshot"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "training/*.md", "packages/**/*.md")
    for page in ROOT.glob(pattern)
)
USER_PAGES = [ROOT / "README.md", ROOT / "docs" / "commands.md"]
# What the script does itself; `test` hands its options on to pytest, `python` to the interpreter.
SCRIPT_VERBS = {"check", "fix", "test", "python"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def commands() -> dict[str, set[str]]:
    """Return every command, "model show" too, with its options."""
    found: dict[str, set[str]] = {}

    def visit(command: Any, path: tuple[str, ...]) -> None:
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        found[" ".join(path)] = {o for o in options if o.startswith("-")} | {"--help", "-h"}
        for name, child in getattr(command, "commands", {}).items():
            visit(child, (*path, name))

    visit(get_command(app), ())
    return found


def code_of(text: str) -> Iterator[str]:
    """Yield the lines of code of a page: indented or fenced blocks, and `spans`."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (verb, further words) of each call of packshot on a page; a quoted brief is a word."""
    for line in code_of(read(page)):
        match = re.match(r"(?:\./)?packshot\s+(?!=)(.+)", line)
        if match:
            words = re.findall(r'"[^"]*"|\S+', match[1])
            yield words[0], words[1:]


CALLS = [(page, verb, words) for page in PAGES for verb, words in calls(page)]


def test_pages_and_calls_are_found() -> None:
    assert {name_of(page) for page in PAGES} >= {"README.md", "ARCHITECTURE.md", "CHANGELOG.md"}
    assert len(CALLS) > 10
    assert "--steps" in commands()["render"]


@pytest.mark.parametrize(
    ("page", "verb", "words"), CALLS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_call_on_a_page_can_be_made(page: Path, verb: str, words: list[str]) -> None:
    known = commands()
    if verb in SCRIPT_VERBS or verb in {"COMMAND", "…"}:
        return
    if verb.startswith("-"):
        assert verb in known[""], f"{name_of(page)}: packshot {verb}"
        return
    assert verb in known, f"{name_of(page)}: packshot {verb}"
    path = f"{verb} {words[0]}" if words and f"{verb} {words[0]}" in known else verb
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert options <= known[path] | known[""], f"{name_of(page)}: packshot {path}"


@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_an_option_on_a_user_s_page_exists(page: Path) -> None:
    named = {span for span in code_of(read(page)) if re.fullmatch(r"--?[a-z][a-z-]*", span)}
    assert named <= set().union(*commands().values())


def test_every_option_and_command_is_on_the_page_of_commands() -> None:
    page = read(ROOT / "docs" / "commands.md")
    options = set().union(*commands().values())
    assert not [option for option in options if f"`{option}`" not in page]
    for name in filter(None, commands()):
        assert f"./packshot {name}" in page, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = read(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(read(file)), f"{name_of(page)}: {target}"


def anchors(text: str) -> set[str]:
    """Return the headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A span with a slash and a known ending is a file of ours, from the root or in the package."""
    spans = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml|json|txt|yaml)|[\w-]+\.py)`", read(page))
    for span in spans:
        places = (ROOT, SOURCE, page.parent, *page.parent.glob("src/*/"), *SOURCE.glob("**/"))
        assert any((place / span).exists() for place in places), f"{name_of(page)}: {span}"


def test_variables_that_pages_name_are_read_somewhere() -> None:
    code = "".join(map(read, (ROOT / "packshot", *SOURCE.rglob("*.py"))))
    for page in PAGES:
        for name in set(re.findall(r"PACKSHOT_[A-Z_]+", read(page))):
            assert name in code, f"{name_of(page)}: {name}"


def test_architecture_fits_on_one_read() -> None:
    assert len(read(ROOT / "ARCHITECTURE.md").splitlines()) <= 220


def test_architecture_names_every_room() -> None:
    page = read(ROOT / "ARCHITECTURE.md")
    rooms = [file.parent for file in SOURCE.rglob("__init__.py") if file.parent != SOURCE]
    assert not [room.name for room in rooms if f"{room.name}`" not in page.replace("/`", "`")]
