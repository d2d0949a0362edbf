"""What a language model is asked for a caption with: a data file, whose name is its version."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from packshot.studio.lexicon import Lexicon

__all__ = ["VERSION", "Prompt", "load_prompt", "system_text"]

VERSION = "caption-1"
"""The version in use; it stands in each picture's record and in the tags of the call's cost."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a prompt. ``closed`` is for a model with a lexicon, ``open`` for one without,
    ``again`` follows an answer that could not be used. ``forbidden`` are words.
    """

    version: str
    system: str
    closed: str
    open: str
    again: str
    forbidden: frozenset[str]


@lru_cache(maxsize=4)
def load_prompt(version: str = VERSION) -> Prompt:
    """Return the prompt of a version that is shipped."""
    file = files("packshot.studio") / "prompts" / f"{version}.toml"
    parts = tomllib.loads(file.read_text(encoding="utf-8"))
    text = {name: str(parts[name]).strip() for name in ("system", "closed", "open", "again")}
    return Prompt(version, **text, forbidden=frozenset(str(parts["forbidden"]).split()))


def system_text(prompt: Prompt, lexicon: Lexicon | None) -> str:
    """Return the system message for a model: its words where it has few, else prose."""
    if lexicon is None:
        return f"{prompt.system}\n{prompt.open}"
    told = prompt.closed.format(
        grounds=_listed(term.phrase for term in lexicon.grounds),
        lights=_listed(term.phrase for term in lexicon.lights),
        sides=_listed(term.phrase for term in lexicon.sides),
        views=_listed(term.phrase for term in lexicon.views),
        colours=_listed(colour.name for colour in lexicon.colours),
    )
    return f"{prompt.system}\n{told}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "(any)"
