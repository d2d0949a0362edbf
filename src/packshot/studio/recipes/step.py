"""The contract of a step: what goes in and comes out, what it may use, what its result depends on.

A recipe is an ordered list of steps. A step is a msgspec Struct whose fields are its parameters,
with a name, a version, and one method::

    class Border(msgspec.Struct, frozen=True, kw_only=True):
        name: ClassVar[str] = "border"
        version: ClassVar[int] = 1              # one more whenever its pictures would differ
        needs: ClassVar[frozenset[Need]] = frozenset()
        gives: ClassVar[frozenset[Need]] = frozenset()
        width: int = 8                          # a parameter, with or without a default

        def __post_init__(self) -> None: ...    # InvalidRequest for what could never be meant

        def __call__(self, shot: Shot, tools: Tools) -> Shot: ...

Parameters are text, numbers, booleans, `Literal` names, structs of those, and tuples of those, so
that a recipe can be hashed and written out. A step takes a `Shot` and returns another: nothing is
changed in place, so a step that fails or is killed leaves the one before it as it was. What it
consumed it appends as `Usage` (`Shot.then`). In a batch, the steps behind the last one that needs
the engine run in other threads, while the next shot is rendered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.types import Precision, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from packshot.engine.buckets import Size
    from packshot.engine.folder import ModelFolder
    from packshot.engine.results import OnStep
    from packshot.studio.background import Scene
    from packshot.studio.caption import Caption
    from packshot.studio.photo import Photo
    from packshot.studio.record import Record
    from packshot.studio.render import Renderer

__all__ = [
    "NOTHING",
    "CaptionWriter",
    "Kept",
    "Need",
    "Preparing",
    "Shot",
    "Step",
    "Store",
    "Tools",
    "fingerprint",
    "marks",
]

Need = Literal["photo", "engine", "caption", "picture", "file", "store"]
"""What a step may need: of the shot a photo, a caption, a picture or its encoded file; of the tools
an engine or a store. A recipe is checked before anything runs: what a step needs, the caller has
(photo, engine, store) or a step before it gives (caption, picture, file)."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a file went: its ``key`` in the store, the SHA-256 and length of what was written.

    ``new`` is false where the store had it already; ``requests`` were made of the store.
    """

    key: str
    sha256: str
    size: int
    new: bool = True
    requests: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One picture on its way through a recipe, and all that is known of it so far.

    Given by the caller: ``id`` (the item's, unique in a batch), ``render`` (the picture's id in the
    ledger), ``brief``, ``seed``, ``photo`` and ``mask`` (the product's own photograph, and where in
    it the product is: `packshot.studio.photo`), ``size`` ("WxH"; "" takes what the recipe says).

    Made by the steps: ``caption``, ``picture`` (PIL, sRGB), ``scene`` (a product on its ground, of
    which the picture was made), ``file`` (the encoded picture, whole, with its metadata) of
    ``format`` ("PNG", "JPEG", "WEBP"), ``kept`` (where it was stored), ``record`` (what makes the
    same bits again), ``usage`` (in the order of the work), ``warnings`` (sentences for the user),
    and ``facts``: what else a step found, under its own name, as values that JSON has. Facts and
    record are written into the picture's metadata and its manifest row.
    """

    id: str
    render: str
    brief: str
    seed: int
    photo: Photo | None = None
    mask: NDArray[np.uint8] | None = None
    size: str = ""
    caption: Caption | None = None
    picture: Image | None = None
    scene: Scene | None = None
    file: bytes | None = field(default=None, repr=False)
    format: str = ""
    kept: Kept | None = None
    record: Record | None = None
    facts: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    usage: tuple[Usage, ...] = ()
    warnings: tuple[str, ...] = ()

    def then(
        self,
        *usage: Usage,
        facts: Mapping[str, Any] = NOTHING,
        warnings: tuple[str, ...] = (),
        **changed: Any,  # noqa: ANN401 - the fields of this class, each with its own type
    ) -> Self:
        """Return the shot after a step: ``usage``, ``facts`` and ``warnings`` are added."""
        return replace(
            self,
            usage=(*self.usage, *usage),
            facts={**self.facts, **facts},
            warnings=(*self.warnings, *warnings),
            **changed,
        )

    def written(self) -> Caption:
        """Return the caption, for a step that `needs` one."""
        if self.caption is None:
            raise InvalidRequest(f"{self.id}: no step before this one has written a caption")
        return self.caption

    def shown(self) -> Image:
        """Return the picture, for a step that `needs` one."""
        if self.picture is None:
            raise InvalidRequest(f"{self.id}: no step before this one has made a picture")
        return self.picture


@runtime_checkable
class Step(Protocol):
    """One step of a recipe: see the head of this file."""

    name: ClassVar[str]
    version: ClassVar[int]
    needs: ClassVar[frozenset[Need]]
    gives: ClassVar[frozenset[Need]]

    def __call__(self, shot: Shot, tools: Tools, /) -> Shot:
        """Return ``shot`` with this step done.

        Raises:
            InvalidRequest: the input cannot be used; another attempt would not help.
            RenderFailed: this attempt came to nothing; another one may.
            OutputError: the store cannot be written.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """A step that can look at what it is given before anything is paid for; few need to."""

    def prepare(self, shot: Shot, /) -> tuple[str, ...]:
        """Return tags for the ledger's rows of this picture, "name=value".

        Raises:
            InvalidRequest: what is given cannot be used.
        """
        ...


class CaptionWriter(Protocol):
    """Who writes captions: the rules, or a language model (which books its calls itself)."""

    def __call__(self, brief: str, render: str, /, *, raw: bool = False) -> tuple[Caption, Usage]:
        """Return the caption of a brief, for the picture ``render`` of the ledger.

        With ``raw`` it is the brief itself, and nobody is asked.
        """
        ...


class Store(Protocol):
    """Where finished files go; `packshot.studio.objects` has the real one."""

    def put(self, data: bytes, name: str, /) -> Kept:
        """Keep ``data`` and say where; ``name`` ("red-mug-7.png") tells its type, and what it is.

        Raises:
            OutputError: it could not be kept, for all that was tried.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """What the steps of a recipe may use. One for all the shots of a run.

    ``engine`` is None where no step needs it; ``folder`` is its model. ``recipe`` is what the
    picture's metadata says of how it was made (`Recipe.facts`; `run` puts it there). ``on_step``
    hears of every denoising step, and may raise to cancel. ``buckets`` are sizes to render at, as
    `packshot.engine.buckets.buckets_of` takes them.
    """

    caption: CaptionWriter
    recipe: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    store: Store | None = None
    folder: ModelFolder | None = None
    engine: Renderer | None = None
    on_step: OnStep | None = None
    vae_precision: Precision = "auto"
    buckets: tuple[Size, ...] | None = None

    def renderer(self) -> tuple[Renderer, ModelFolder]:
        """Return the engine and its model's folder, for a step that `needs` them."""
        if self.engine is None or self.folder is None:
            raise InvalidRequest("this recipe renders, and no engine was given to it")
        return self.engine, self.folder


OnStage = Callable[[str], None]
"""Called with the name of each step before it begins."""


@lru_cache(maxsize=64)
def marks(steps: tuple[Step, ...], model: str = "") -> tuple[bytes, ...]:
    """Return a digest for each step: of its name, version and parameters, and all those before it.

    ``model`` is the fingerprint of the model's folder; it counts from the first step that renders.
    """
    found: list[bytes] = []
    before = b""
    for step in steps:
        said = [step.name, step.version, msgspec.to_builtins(step)]
        if "engine" in step.needs:
            said.append(model)
        before = hashlib.sha256(before + msgspec.json.encode(said, order="sorted")).digest()
        found.append(before)
    return tuple(found)


def fingerprint(
    steps: tuple[Step, ...], given: Mapping[str, Any], upto: int | None = None, model: str = ""
) -> str:
    """Return what the result of step ``upto`` (counted from 0; None: the last) depends on.

    64 hex digits of SHA-256 over what was ``given`` (brief, seed, a digest of the photo and of the
    mask, size: values that JSON has) and over every step up to that one. A changed parameter
    changes this for its own step and those after it, and for none before: a batch goes on from
    there.
    """
    chain = marks(steps, model)
    chosen = chain[-1 if upto is None else upto]
    return hashlib.sha256(chosen + msgspec.json.encode(given, order="sorted")).hexdigest()
