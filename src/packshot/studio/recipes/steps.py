"""Our own steps: caption, render, finish, store. Each is a few lines over the studio's functions,
the same that `packshot render` calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.types import Precision, Usage
from packshot.engine.buckets import Size, buckets_of, nearest
from packshot.engine.limits import MAX_SIDE, MIN_SIDE, default_size
from packshot.studio import defaults
from packshot.studio.encoding import FORMATS, QUALITY, Encoding, encoded
from packshot.studio.finish import DEFAULT_SHARPEN, Sharpen, parse_size
from packshot.studio.plan import request_of, size_warning
from packshot.studio.recipes.step import Need, Shot, Tools
from packshot.studio.record import Making, Record, code_mark, metadata
from packshot.studio.render import finished, metered, record_of, total
from packshot.studio.store import slug

if TYPE_CHECKING:
    from packshot.engine.folder import ModelFolder
    from packshot.studio.caption import Caption

__all__ = ["Finish", "Put", "Render", "WriteCaption", "finished_size", "rendered_at"]

NONE: frozenset[Need] = frozenset()

EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}

LEAST_BYTES = 1024
"""Of a limit: below it there is no room for the metadata alone."""


class WriteCaption(msgspec.Struct, frozen=True, kw_only=True):
    """Rewrites the brief for the model, by rules or by a language model: as it is configured.

    ``raw`` takes the brief as it is.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = NONE
    gives: ClassVar[frozenset[Need]] = frozenset(("caption",))
    raw: bool = False

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with its caption."""
        caption, usage = tools.caption(shot.brief, shot.render, raw=self.raw)
        return shot.then(usage, warnings=caption.warnings, caption=caption)


class Render(msgspec.Struct, frozen=True, kw_only=True):
    """Makes a picture of the caption; named as `packshot render` names.

    It has the model's own size, or that of the bucket nearest to what the picture is finished at.
    """

    name: ClassVar[str] = "render"
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[Need]] = frozenset(("engine", "caption"))
    gives: ClassVar[frozenset[Need]] = frozenset(("picture",))
    steps: int = defaults.STEPS
    guidance: float = defaults.GUIDANCE
    negative: str = ""
    sampler: str = defaults.SAMPLER
    schedule: str = defaults.SCHEDULE
    spacing: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the engine would refuse."""
        request_of(self, "a mug", (0,))

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with the picture that the engine made."""
        from PIL.Image import fromarray

        engine, folder = tools.renderer()
        caption = shot.written()
        native = default_size(folder)
        buckets = buckets_of(native, tools.buckets)
        size = shot.size or finished_size(tools.recipe)
        wanted, made = rendered_at(size, native, buckets)
        request = request_of(self, caption.text, (shot.seed,), made)
        result = engine.render(request, on_step=tools.on_step)
        said = size_warning(made, wanted, buckets) if buckets else ()
        origin = Made(shot.brief, caption, folder, tools.vae_precision)
        return shot.then(
            *result.usage,
            warnings=(*said, *result.warnings),
            picture=fromarray(result.images[0]),
            record=record_of(origin, result, shot.seed),
        )


def rendered_at(size: str, native: Size, buckets: tuple[Size, ...]) -> tuple[Size, Size]:
    """Return what ``size`` says ("" is the model's own), and the size that it is rendered at."""
    wanted = parse_size(size, native) if size else native
    return wanted, nearest(wanted, native, buckets)


def finished_size(recipe: Mapping[str, Any]) -> str:
    """Return the size that a recipe (`Recipe.facts`) finishes its pictures at, "" for their own."""
    rows = (row["with"] for row in recipe.get("steps", ()) if row["step"] == Finish.name)
    return str(next((row.get("size", "") for row in rows), ""))


@dataclass(frozen=True, slots=True)
class Made:
    """What a rendered picture comes from (`packshot.studio.render.Origin`)."""

    brief: str
    caption: Caption
    folder: ModelFolder
    vae_precision: Precision

    @property
    def raw(self) -> bool:
        """Whether the brief itself was the caption."""
        return self.caption.writer.by == "none"


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """Brings the picture to its size, sharpens it, and encodes it with its metadata.

    ``size`` "WxH", or "S" for the longer side; "" keeps the picture's own. ``max_side`` shrinks
    what is larger, in its own shape. ``sharpen`` null leaves it as it is. ``profile`` embeds the
    ICC profile of sRGB. ``quality`` is of jpeg and webp, and is lowered to ``least_quality`` at the
    most where the file would be longer than ``max_bytes`` (0: no limit).
    """

    name: ClassVar[str] = "finish"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = frozenset(("picture",))
    gives: ClassVar[frozenset[Need]] = frozenset(("picture", "file"))
    size: str = ""
    max_side: int = MAX_SIDE
    sharpen: Sharpen | None = DEFAULT_SHARPEN
    format: Literal["png", "jpeg", "webp"] = "png"
    profile: Literal["none", "srgb"] = "none"
    quality: int = QUALITY
    least_quality: int = 60
    max_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what no picture could be."""
        if self.size:
            parse_size(self.size, (1, 1))
        if not MIN_SIDE <= self.max_side <= MAX_SIDE:
            raise InvalidRequest(
                f"max_side is {self.max_side}, expected {MIN_SIDE} to {MAX_SIDE} pixels"
            )
        if not 1 <= self.least_quality <= self.quality <= 100:
            raise InvalidRequest(
                f"quality is {self.quality} and least_quality {self.least_quality}, expected "
                "1 to 100, and the second no higher than the first"
            )
        if self.max_bytes < 0 or 0 < self.max_bytes < LEAST_BYTES:
            raise InvalidRequest(
                f"max_bytes is {self.max_bytes}, expected 0 (no limit) or {LEAST_BYTES} and more"
            )

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with its file."""
        meter: list[Usage] = []
        source = shot.shown()
        size = self._size(shot, source.size)
        picture = source
        if size != source.size or self.sharpen is not None or source.mode != "RGB":
            picture = finished(source, size, self.sharpen, meter)
        record = shot.record and replace(shot.record, size=size, sharpen=self.sharpen)
        encoding = Encoding(
            FORMATS[self.format],
            self.quality,
            self.least_quality,
            self.max_bytes,
            self.profile == "srgb",
        )
        with metered(meter, "finish"):
            made = _making(shot, record, tools)
            extra = metadata(encoding.format, made, shot.brief)
            file, quality = encoded(picture, encoding, extra)
        return shot.then(
            *total(meter),
            facts={"finish": {"size": list(size), "quality": quality, "bytes": len(file)}},
            picture=picture,
            record=record,
            file=file,
            format=encoding.format,
        )

    def _size(self, shot: Shot, native: tuple[int, int]) -> tuple[int, int]:
        asked = shot.size or self.size
        size = parse_size(asked, native) if asked else native
        # A product's picture is as large as its photograph, unless the recipe says otherwise.
        if max(size) <= self.max_side or (shot.scene and self.max_side == MAX_SIDE):
            return size
        scale = self.max_side / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _making(shot: Shot, record: Record | None, tools: Tools) -> Making:
    return Making(
        recipe=tools.recipe,
        brief=shot.brief,
        caption=shot.caption.text if shot.caption else "",
        seed=shot.seed,
        photo=shot.photo.sha256 if shot.photo else "",
        facts=shot.facts,
        render=record,
        code=code_mark(),
    )


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Hands the file to the store."""

    name: ClassVar[str] = "store"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = frozenset(("file", "store"))
    gives: ClassVar[frozenset[Need]] = NONE

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with where it is kept."""
        if tools.store is None or shot.file is None:
            raise InvalidRequest("this recipe stores a file, and was given none, or no store")
        start = perf_counter()
        ending = EXTENSIONS[shot.format]
        kept = tools.store.put(shot.file, f"{slug(shot.brief or shot.id)}-{shot.seed}{ending}")
        seconds = perf_counter() - start
        used = Usage("store", seconds, "cpu", stored_bytes=kept.size, requests=kept.requests)
        return shot.then(used, kept=kept)
