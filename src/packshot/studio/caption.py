"""brief -> caption, by rules: the embedded captioner.

A brief is what a customer typed; a caption is the text the model was trained on. The captioner
finds the product, colour, material, ground, light, side and view that the lexicon knows, and says
them in the order and the words of the training captions; what a brief leaves open takes the
lexicon's default. Words that the model was never shown stay out, and are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from packshot.core.errors import InvalidRequest, UnknownConcept
from packshot.studio.lexicon import Lexicon, Term
from packshot.studio.nearest import Nearest, nearest_product
from packshot.studio.phrases import BREAK, words
from packshot.studio.reading import Subject, find_subject, read
from packshot.studio.slots import Slots, fill

__all__ = [
    "RULES",
    "TEXT_LIMIT",
    "Caption",
    "Writer",
    "caption_brief",
    "caption_text",
    "check_brief",
    "check_length",
]

TEXT_LIMIT = 1000
"""Most characters in a brief: CLIP reads 77 tokens, and EXIF holds 64 kB."""

SHOW_HINT = "`packshot model show` lists what it knows."
GUESS = "it will guess"


@dataclass(frozen=True, slots=True)
class Writer:
    """Who wrote a caption: the rules, a language model ("llm"), or nobody: the brief as typed.

    ``prompt`` is the version of what the language model was asked with, ``route`` what the gateway
    was asked for, ``provider`` and ``model`` who answered. Where it was asked in vain the rules
    wrote, and ``why`` is one word for it: pictures are published, so what was said in full, which
    may tell of budgets and accounts, is in `Caption.problem` only.
    """

    by: Literal["rules", "llm", "none"] = "rules"
    prompt: str = ""
    route: str = ""
    provider: str = ""
    model: str = ""
    why: Literal["", "unanswered", "deadline", "budget", "unusable"] = ""


RULES, NOBODY = Writer(), Writer("none")


@dataclass(frozen=True, slots=True)
class Caption:
    """The text for the model, what was understood, and what was not.

    ``unknown`` is the product that was asked for and is not in the lexicon. ``ignored`` are the
    brief's words that had no effect. ``slots`` is None where the model has no lexicon. ``problem``
    says why a language model was asked in vain.
    """

    text: str
    slots: Slots | None
    unknown: str | None = None
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    writer: Writer = RULES
    problem: str = ""


def check_brief(brief: str) -> str:
    """Return the brief without outer space; `InvalidRequest` if it says nothing or too much."""
    stripped = brief.strip()
    if not any(word != BREAK for word in words(stripped)):
        raise InvalidRequest(
            'the brief is empty; say what to photograph, e.g. "white sneakers on a sandy beach"'
        )
    check_length("brief", stripped)
    return stripped


def check_length(what: str, text: str) -> None:
    """Raise `InvalidRequest` for more text than a picture's record has room for."""
    if len(text) > TEXT_LIMIT:
        raise InvalidRequest(
            f"the {what} has {len(text)} characters; at most {TEXT_LIMIT} are taken"
        )


def caption_brief(
    brief: str, lexicon: Lexicon | None, *, raw: bool = False, strict: bool = False
) -> Caption:
    """Return the caption of a brief; with ``raw``, the brief itself, still checked for its product.

    Raises:
        InvalidRequest: the brief is empty or too long.
        UnknownConcept: ``strict``, and the brief's product is not in the lexicon.
    """
    stripped = check_brief(brief)
    if lexicon is None:
        return Caption(stripped, None, writer=NOBODY)
    reading = read(stripped, lexicon)
    subject = find_subject(reading)
    product, fault = _product(subject, lexicon)
    if strict and fault is not None:
        raise UnknownConcept(f"{fault.fact}. {SHOW_HINT}")
    unknown = " ".join(subject.unknown) if subject and subject.unknown else None
    warnings = () if fault is None else (f"{fault.fact}; {fault.consequence}. {SHOW_HINT}",)
    filled = fill(reading, subject, product, lexicon)
    if raw:
        return Caption(stripped, filled.slots, unknown, (), warnings, NOBODY)
    return Caption(
        text=caption_text(filled.slots, lexicon),
        slots=filled.slots,
        unknown=unknown,
        ignored=filled.ignored,
        warnings=(*warnings, *filled.warnings),
    )


def caption_text(slots: Slots, lexicon: Lexicon) -> str:
    """Return the caption for ``slots``, in the words and the order of the training captions."""
    place = _phrase(slots.ground, lexicon.grounds)
    named = (slots.colour, slots.material, slots.product, place)
    subject = " ".join(part for part in named if part)
    terms = (
        _phrase(slots.light, lexicon.lights),
        _phrase(slots.side, lexicon.sides),
        _phrase(slots.view, lexicon.views),
        lexicon.suffix,
    )
    return ", ".join(part for part in (subject, *terms) if part)


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why the asked product cannot be had, and what is rendered all the same."""

    fact: str
    consequence: str


def _product(subject: Subject | None, lexicon: Lexicon) -> tuple[str | None, _Fault | None]:
    """Return the product to caption, and what is wrong with the one that was asked for."""
    if subject is None:
        return None, _Fault("the brief names no product", "the model will choose one")
    if subject.product is not None:
        return subject.product, None
    asked = " ".join(subject.unknown)
    near = nearest_product(subject.unknown, lexicon)
    if near is None:
        kinds = ", ".join(lexicon.categories) or f"{len(lexicon.products)} products"
        return asked, _Fault(f"the model was not shown {asked!r}; it knows {kinds}", GUESS)
    fact = f"the model was not shown {asked!r}; the nearest that it knows is {near.name!r}"
    if near.close:
        return near.name, _Fault(fact, "that is rendered instead")
    return asked, _Fault(fact + _further(near), GUESS)


def _further(near: Nearest) -> str:
    named = ", ".join(repr(name) for name in near.others[:3])
    return f" ({near.kind}; also {named})" if named else f" ({near.kind})"


def _phrase(name: str | None, terms: Sequence[Term]) -> str:
    """Return the phrase that captions use for the term called ``name``; nothing for None."""
    return next((term.phrase for term in terms if term.name == name), "")
