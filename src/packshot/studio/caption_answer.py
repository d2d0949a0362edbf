"""A language model's answer, checked and made into a caption, or a complaint that it can act on.

For a model with a lexicon the answer's phrases go through the rules, as a brief does: the caption
comes out in the words and the order of the training captions, and what the brief says in the
lexicon's words must still be said. For a model that reads prose the phrases are the caption.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import msgspec

from packshot.studio.caption import Caption, caption_brief
from packshot.studio.caption_prompt import Prompt
from packshot.studio.lexicon import Defaults, Lexicon
from packshot.studio.phrases import stem, words
from packshot.studio.reading import find_subject, read

__all__ = ["Complaint", "Fits", "read_answer"]

MAX_PHRASE = 160
"""Characters of one phrase of an answer."""

MAX_PROSE = 420
"""Characters of a caption in prose; 77 tokens of CLIP are some 350 characters of English."""

PLAIN = re.compile(r"[^\W_]|[ ,.'’&%/\-–]")
"""What a caption may be made of: no markup, weights, addresses or other people's syntax."""

NOTHING = Lexicon(1, (), (), (), (), (), ())
ADDED = ("colour", "material")
"""What the brief alone decides, since it is what is sold."""

Fits = Callable[[str], bool]
"""Tells whether the text encoder reads the whole of a text."""


class Complaint(Exception):
    """Why an answer cannot be used, in words that the language model is told."""


class _Answer(msgspec.Struct):
    product: str
    ground: str
    lighting: str
    framing: str
    lens: str = ""


@dataclass(frozen=True, slots=True)
class _Said:
    """What the lexicon understands of a text, and nothing that it takes by default."""

    slots: dict[str, str | None]
    unknown: str | None
    ignored: tuple[str, ...]


def read_answer(
    text: str, brief: str, lexicon: Lexicon | None, prompt: Prompt, fits: Fits
) -> Caption:
    """Return the caption that an answer comes to.

    Raises:
        Complaint: it is no such JSON, lost the product, says what is forbidden, or is too long.
    """
    answer = _decoded(text)
    _check_words(answer, brief, prompt)
    if lexicon is None:
        return Caption(_prose(answer, brief, fits), None)
    return _in_words_of(lexicon, answer, brief)


def _decoded(text: str) -> _Answer:
    """Decode the object, also where the model wrapped it in a fence of Markdown."""
    start, stop = text.find("{"), text.rfind("}")
    try:
        answer = msgspec.json.decode(text[start : stop + 1].encode(), type=_Answer)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise Complaint(f"it is not the JSON object that was asked for ({error})") from error
    phrases = {name: _tidy(value) for name, value in msgspec.structs.asdict(answer).items()}
    for name, phrase in phrases.items():
        if len(phrase) > MAX_PHRASE:
            raise Complaint(f"{name} has {len(phrase)} characters, at most {MAX_PHRASE} are taken")
        if not phrase and name != "lens":
            raise Complaint(f"{name} is empty")
    return _Answer(**phrases)


def _tidy(phrase: str) -> str:
    return " ".join(phrase.split()).strip(" ,.")


def _check_words(answer: _Answer, brief: str, prompt: Prompt) -> None:
    """Refuse characters and words that no caption should have, and that the brief has not."""
    asked = {stem(word) for word in words(brief)}
    barred = {stem(word) for word in prompt.forbidden} - asked
    for name, phrase in msgspec.structs.asdict(answer).items():
        strange = sorted({c for c in phrase if not PLAIN.fullmatch(c)} - set(brief))
        if strange:
            raise Complaint(f"{name} has characters that are not plain text: {' '.join(strange)}")
        found = [word for word in words(phrase) if stem(word) in barred]
        if found:
            raise Complaint(f"{name} says {found[0]!r}, which is not to be in the picture")


def _check_named(named: str, product: str) -> None:
    """Refuse an answer in which the words that name the brief's product are not all there."""
    said = {stem(word) for word in words(product)}
    lost = [word for word in words(named) if stem(word) not in said]
    if lost:
        raise Complaint(f"product has lost {' '.join(lost)!r}")


def _prose(answer: _Answer, brief: str, fits: Fits) -> str:
    subject = find_subject(read(brief, NOTHING))
    _check_named(" ".join(subject.unknown) if subject else "", answer.product)
    phrases = (f"{answer.product} {answer.ground}", answer.lighting, answer.framing, answer.lens)
    text = ", ".join(phrase for phrase in phrases if phrase)
    if len(text) > MAX_PROSE or not fits(text):
        raise Complaint(f"all together it is too long ({len(text.split())} words); 45 words fit")
    return text


def _in_words_of(lexicon: Lexicon, answer: _Answer, brief: str) -> Caption:
    """Return the rules' caption of the answer, if it still says all that the brief says."""
    text = ", ".join((f"{answer.product}, {answer.ground}", answer.lighting, answer.framing))
    bare = _without_defaults(lexicon)
    asked, said = _understood(brief, bare), _understood(text, bare)
    for name, wanted in asked.slots.items():
        got = said.slots[name]
        if name == "product" and asked.unknown is not None and got != wanted:
            _check_named(asked.unknown, answer.product)
        elif wanted is not None and got != wanted:
            raise Complaint(f"the brief's {name} is {wanted!r}; the answer's is {got or 'none'!r}")
        elif name in ADDED and wanted is None and got is not None and not asked.ignored:
            raise Complaint(f"the brief names no {name}, and the answer adds {got!r}")
    for name in ("ground", "light", "view"):
        if said.slots[name] is None and getattr(lexicon, f"{name}s"):
            raise Complaint(f"it names no {name} that the model knows")
    made = caption_brief(text, lexicon)
    # What the rules leave out of the ground or the light was the language model's own idea.
    customers = set(words(brief)) & set(words(answer.product))
    return replace(made, ignored=tuple(word for word in made.ignored if word in customers))


def _without_defaults(lexicon: Lexicon) -> Lexicon:
    products = tuple(replace(product, colour="") for product in lexicon.products)
    return replace(lexicon, products=products, default=Defaults())


def _understood(text: str, bare: Lexicon) -> _Said:
    caption = caption_brief(text, bare)
    slots = asdict(caption.slots) if caption.slots else {}
    return _Said(slots, caption.unknown, caption.ignored)
