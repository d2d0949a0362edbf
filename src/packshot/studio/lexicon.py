"""What a model was shown, by name: its ``lexicon.json``.

The file lies in the model folder and is written by the training; a folder without one (real SDXL)
has no lexicon, and its captions are then the brief as typed (`packshot.studio.caption`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from packshot.core.errors import ModelCorrupt, ModelNotFound

__all__ = ["Colour", "Defaults", "Lexicon", "Product", "Term", "load_lexicon"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class Product:
    """A thing that the model can draw.

    ``colours`` None means that every colour of the lexicon works, an empty tuple that the product
    comes in its own colours only. ``colour`` is the one meant by a brief that names none, as the
    model was never shown such a product without. ``materials`` are the words that were true of it
    in training.
    """

    name: str
    plural: bool = False
    category: str = ""
    synonyms: tuple[str, ...] = ()
    materials: tuple[str, ...] = ()
    colours: tuple[str, ...] | None = None
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour word and the sRGB value (0 to 255 each) that training painted for it."""

    name: str
    rgb: tuple[int, int, int]
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Term:
    """A ground, light, side or view: its name, and the ``phrase`` that captions use for it."""

    name: str
    phrase: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Defaults:
    """Names taken where a brief says nothing; an empty one leaves that part out of the caption."""

    ground: str = ""
    light: str = ""
    side: str = ""
    view: str = ""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All that a model knows by name, and the photographic ``suffix`` that ends its captions."""

    version: int
    products: tuple[Product, ...]
    colours: tuple[Colour, ...]
    grounds: tuple[Term, ...]
    lights: tuple[Term, ...]
    sides: tuple[Term, ...]
    views: tuple[Term, ...]
    default: Defaults = Defaults()
    suffix: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        """The products' categories, each once, in the order of the file."""
        return tuple(dict.fromkeys(p.category for p in self.products if p.category))

    @property
    def materials(self) -> tuple[str, ...]:
        """The products' materials, each once, in the order of the file."""
        return tuple(dict.fromkeys(m for p in self.products for m in p.materials))

    def product(self, name: str) -> Product:
        """Return the product called ``name`` (its name, not a synonym); `KeyError` if none is."""
        for product in self.products:
            if product.name == name:
                return product
        raise KeyError(name)


def load_lexicon(path: Path | None) -> Lexicon | None:
    """Read a ``lexicon.json``; None where the model has none.

    Raises:
        ModelNotFound: the file is there and cannot be read.
        ModelCorrupt: the file is not a lexicon of this version, or refers to a name it lacks.
    """
    if path is None:
        return None
    try:
        lexicon = msgspec.json.decode(path.read_bytes(), type=Lexicon)
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ModelCorrupt(f"{path} is not a lexicon: {error}") from error
    _check(lexicon, path)
    return lexicon


def _check(lexicon: Lexicon, path: Path) -> None:
    """Raise `ModelCorrupt` for another version, or a name that is used and not defined."""
    if lexicon.version != VERSION:
        raise ModelCorrupt(f"{path}: got version {lexicon.version}, expected {VERSION}")
    colours = {colour.name for colour in lexicon.colours}
    for product in lexicon.products:
        for name in {*(product.colours or ()), *filter(None, [product.colour])} - colours:
            raise ModelCorrupt(f"{path}: product {product.name!r} names no known colour: {name!r}")
    default = lexicon.default
    for what, name, terms in (
        ("ground", default.ground, lexicon.grounds),
        ("light", default.light, lexicon.lights),
        ("side", default.side, lexicon.sides),
        ("view", default.view, lexicon.views),
    ):
        if name and all(term.name != name for term in terms):
            raise ModelCorrupt(f"{path}: the default {what} {name!r} is not among its {what}s")
