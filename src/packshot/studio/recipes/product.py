"""Our steps for a customer's own product: background, white, shadow, verify.

Each is a few lines over `packshot.studio.background`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

import msgspec

from packshot.core.errors import InvalidRequest
from packshot.core.types import Usage
from packshot.engine.limits import default_size
from packshot.studio import defaults
from packshot.studio.background import (
    ATTEMPTS,
    MAX_ATTEMPTS,
    product_of,
    render_ground,
    verify,
    white_ground,
    with_shadow,
)
from packshot.studio.finish import parse_size
from packshot.studio.ground import Mode, caption_ground
from packshot.studio.lexicon import load_lexicon
from packshot.studio.plan import request_of
from packshot.studio.recipes.step import Need, Shot, Tools
from packshot.studio.recipes.steps import Made
from packshot.studio.render import metered, record_of, total

if TYPE_CHECKING:
    from packshot.studio.background import Product, Scene

__all__ = ["Background", "Shadow", "Verify", "White"]

PHOTO: frozenset[Need] = frozenset(("photo",))
PICTURE: frozenset[Need] = frozenset(("picture",))


class Background(msgspec.Struct, frozen=True, kw_only=True):
    """Puts the photo's product on a ground that is rendered from the brief.

    ``mode`` blend renders around the product, ground without it. A ground in which the product goes
    on beyond its outline is rendered again with another seed, ``attempts`` times in all. ``size``
    is the canvas: the product lies in its middle, shrunk where it would not fit, never enlarged; ""
    keeps the photo's own. ``raw`` takes the brief as the ground's caption. The rest as in `render`.
    """

    name: ClassVar[str] = "background"
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[Need]] = frozenset(("photo", "engine"))
    gives: ClassVar[frozenset[Need]] = frozenset(("picture", "caption"))
    mode: Mode = "blend"
    attempts: int = ATTEMPTS
    size: str = ""
    raw: bool = False
    steps: int = defaults.STEPS
    guidance: float = defaults.GUIDANCE
    negative: str = ""
    sampler: str = defaults.SAMPLER
    schedule: str = defaults.SCHEDULE
    spacing: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the engine would refuse, and what no picture could be."""
        request_of(self, "a table", (0,))
        if self.size:
            parse_size(self.size, (1, 1))
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise InvalidRequest(f"attempts is {self.attempts}, expected 1 to {MAX_ATTEMPTS}")

    def prepare(self, shot: Shot) -> tuple[str, ...]:
        """Refuse a photo that cannot be used, before money is held; tag the ledger's rows."""
        return _tags(_product(shot, self.size))

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with its product on a rendered ground."""
        engine, folder = tools.renderer()
        meter: list[Usage] = []
        with metered(meter, "caption"):
            lexicon = load_lexicon(folder.lexicon_path)
            caption = caption_ground(shot.brief, lexicon, raw=self.raw)
        start = perf_counter()
        product = _product(shot, self.size)
        request = request_of(self, caption.text, (shot.seed,), default_size(folder))
        made = render_ground(
            product,
            request,
            engine,
            mode=self.mode,
            attempts=self.attempts,
            on_step=tools.on_step,
        )
        picture = made.scene.picture()
        ours = perf_counter() - start - sum(part.seconds for part in made.usage)
        meter += [*made.usage, Usage("finish", max(0.0, ours), "cpu")]
        origin = Made(shot.brief, caption, folder, tools.vae_precision)
        facts = {
            **product.facts,
            "mode": self.mode,
            "seed": made.seed,
            "refused_seeds": list(made.refused),
            "checks": [check.facts for check in made.checks],
        }
        return shot.then(
            *total(meter),
            facts={"product": facts},
            warnings=(*product.notes, *caption.warnings, *made.result.warnings),
            caption=caption,
            picture=picture,
            scene=made.scene,
            record=record_of(origin, made.result, made.seed),
        )


class White(msgspec.Struct, frozen=True, kw_only=True):
    """Puts the photo's product on pure white; nothing is rendered. ``size`` as in `background`."""

    name: ClassVar[str] = "white"
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[Need]] = PHOTO
    gives: ClassVar[frozenset[Need]] = PICTURE
    size: str = ""

    def __post_init__(self) -> None:
        """Refuse what no picture could be."""
        if self.size:
            parse_size(self.size, (1, 1))

    def prepare(self, shot: Shot) -> tuple[str, ...]:
        """Refuse a photo that cannot be used, before money is held; tag the ledger's rows."""
        return _tags(_product(shot, self.size))

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with its product on white."""
        del tools
        meter: list[Usage] = []
        with metered(meter, "finish"):
            product = _product(shot, self.size)
            scene = white_ground(product)
            picture = scene.picture()
        return shot.then(
            *meter,
            facts={"product": {**product.facts, "mode": "white"}},
            warnings=product.notes,
            picture=picture,
            scene=scene,
        )


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """Lays the product's shadow on the ground, away from the light that the brief asks for."""

    name: ClassVar[str] = "shadow"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = PHOTO | PICTURE
    gives: ClassVar[frozenset[Need]] = PICTURE

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with a shadow."""
        del tools
        meter: list[Usage] = []
        with metered(meter, "finish"):
            scene, facts = with_shadow(_scene(shot, self.name), shot.brief)
            picture = scene.picture()
        return shot.then(*meter, facts={"shadow": facts}, picture=picture, scene=scene)


class Verify(msgspec.Struct, frozen=True, kw_only=True):
    """Reads the encoded file again: the product's pixels, its tone, the seam, the white border.

    What breaks a promise is an error, and is not delivered.
    """

    name: ClassVar[str] = "verify"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Need]] = frozenset(("photo", "file"))
    gives: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, shot: Shot, tools: Tools) -> Shot:
        """Return the shot with what was measured; `CheckFailed` where it is not good enough."""
        del tools
        meter: list[Usage] = []
        with metered(meter, "finish"):
            scene = _scene(shot, self.name)
            checks = verify(shot.file or b"", scene)
        return shot.then(*meter, facts={"verified": [check.facts for check in checks]})


def _product(shot: Shot, size: str) -> Product:
    """Return the product on its canvas: of the shot's size, else the step's, else the photo's."""
    if shot.photo is None:
        raise InvalidRequest(
            f"{shot.id}: this recipe puts a product on a new ground, and no photo of one is given"
        )
    asked = shot.size or size
    canvas = parse_size(asked, shot.photo.size) if asked else None
    return product_of(shot.photo, shot.mask, canvas)


def _tags(product: Product) -> tuple[str, ...]:
    return (f"core={product.cutout.digest}",)


def _scene(shot: Shot, step: str) -> Scene:
    if shot.scene is None:
        raise InvalidRequest(
            f"the step {step!r} needs a product on a ground: put `background` or `white` before it"
        )
    return shot.scene
