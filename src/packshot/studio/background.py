"""A product on a new ground: the flow from a photograph to a `Scene`, and to its file's checks.

`product_of` → `render_ground` or `white_ground` → `with_shadow` → `Scene.picture` → encode →
`verify`. The steps of recipes (`packshot.studio.recipes.product`) are these functions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from packshot.core.errors import BadPhoto, CheckFailed
from packshot.core.types import Original, RenderRequest, Usage
from packshot.engine.limits import MAX_SEED
from packshot.studio.checks import Check, check_file, check_ground, refuse
from packshot.studio.composite import Cutout, composite, cutout_of, placed, shaded
from packshot.studio.ground import Mode, cleaned, enlarged, stage_of, white
from packshot.studio.light import light_of
from packshot.studio.matte import Matte, matte_of
from packshot.studio.shadow import shadow_layer

if TYPE_CHECKING:
    from PIL.Image import Image

    from packshot.engine.results import OnStep, RenderResult
    from packshot.studio.colour import Bytes
    from packshot.studio.photo import Photo
    from packshot.studio.render import Renderer

__all__ = [
    "ATTEMPTS",
    "MAX_ATTEMPTS",
    "Ground",
    "Product",
    "Scene",
    "product_of",
    "render_ground",
    "verify",
    "white_ground",
    "with_shadow",
]

ATTEMPTS, MAX_ATTEMPTS = 3, 10
"""Seeds that are tried for a ground, where nobody says; and the most that may be said."""

NEXT_SEED = 1_000_003
"""How far the next seed to try is: so far that it is no other picture's of the same batch."""

KEPT_PRODUCTS = 2
"""Products that are kept ready: the steps of a recipe, and the variants of an item, ask again."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A customer's product: its cutout on the canvas, and where the matte came from."""

    cutout: Cutout
    matte: Matte
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What the metadata keep: enough to check the promise against the customer's photo."""
        return {
            "core_sha256": self.cutout.digest,
            "core_pixels": int(self.cutout.core.sum()),
            "core_margin": self.cutout.margin,
            "scale": round(self.cutout.scale, 6),
            "size": list(self.cutout.size),
            "matte": self.matte.source,
            "confidence": round(self.matte.confidence, 4),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A product and its ground [height, width, 3], shadow and all; ``white`` is a promise."""

    product: Product
    ground: Bytes = field(repr=False)
    white: bool = False

    def picture(self) -> Image:
        """Return the product on its ground."""
        from PIL.Image import fromarray

        return fromarray(composite(self.product.cutout, self.ground))


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What rendering a ground came to: its scene, the seed that was taken, and every attempt."""

    scene: Scene
    result: RenderResult
    seed: int
    usage: tuple[Usage, ...]
    checks: tuple[Check, ...]
    refused: tuple[int, ...] = ()


_ready: OrderedDict[tuple[str, str, tuple[int, int] | None], Product] = OrderedDict()


def product_of(
    photo: Photo, mask: Bytes | None = None, size: tuple[int, int] | None = None
) -> Product:
    """Return the product of a photograph, on a canvas of ``size`` (None: the photograph's own).

    Raises:
        MaskNeeded: it has neither mask nor alpha, and where the product is, is not certain.
        BadPhoto: no pixel of it is product alone.
    """
    key = (
        photo.sha256,
        hashlib.sha256(mask.tobytes()).hexdigest() if mask is not None else "",
        size,
    )
    if key not in _ready:
        if mask is not None and mask.shape != photo.pixels.shape[:2]:
            raise BadPhoto(
                f"the mask is {mask.shape[1]}x{mask.shape[0]} pixels, and {photo.name} is "
                f"{photo.size[0]}x{photo.size[1]}"
            )
        matte = matte_of(photo, mask)
        cutout = cutout_of(photo, matte)
        cutout = placed(cutout, size) if size else cutout
        _ready[key] = Product(cutout, matte, photo.notes)
        while len(_ready) > KEPT_PRODUCTS:
            _ready.popitem(last=False)
    return _ready[key]


def render_ground(
    product: Product,
    request: RenderRequest,
    engine: Renderer,
    *,
    mode: Mode = "blend",
    attempts: int = ATTEMPTS,
    on_step: OnStep | None = None,
) -> Ground:
    """Render a ground for ``product``: the first seed whose ground passes its check.

    ``request`` has the ground's caption, one seed, and the model's own size, which is a square.

    Raises:
        CheckFailed: none of ``attempts`` seeds gave a ground without a product of its own.
        RenderFailed: the network produced no picture.
    """
    cutout = product.cutout
    stage = stage_of(cutout, request.width)
    original = Original(stage.picture, 1.0, stage.free) if mode == "blend" else None
    usage: list[Usage] = []
    refused: list[int] = []
    check = None
    for attempt in range(attempts):
        seed = (request.seeds[0] + attempt * NEXT_SEED) % (MAX_SEED + 1)
        asked = replace(request, seeds=(seed,), original=original)
        result = engine.render(asked, on_step=on_step)
        usage += result.usage
        ground, strange = cleaned(result.images[0], stage)
        check = check_ground(strange)
        if check.passed:
            full = enlarged(ground, stage, cutout.size, seed)
            scene = Scene(product, full)
            return Ground(scene, result, seed, tuple(usage), (check,), tuple(refused))
        refused.append(seed)
    raise CheckFailed(f"none of {attempts} seeds ({', '.join(map(str, refused))}) will do: {check}")


def white_ground(product: Product) -> Scene:
    """Return ``product`` on pure white."""
    return Scene(product, white(product.cutout.size), white=True)


def with_shadow(scene: Scene, brief: str) -> tuple[Scene, dict[str, Any]]:
    """Return a scene with the shadow that the light of ``brief`` casts, and what the light is."""
    light = light_of(brief)
    layer = shadow_layer(scene.product.cutout.alpha, light)
    facts = {"side": light.side.name, "kind": light.kind.name}
    return replace(scene, ground=shaded(scene.ground, layer)), facts


def verify(file: bytes, scene: Scene) -> tuple[Check, ...]:
    """Read the encoded picture of a scene again and check it; return what was measured.

    Raises:
        CheckFailed: a promise is broken; the picture is not to be delivered.
    """
    checks = check_file(file, scene.product.cutout, scene.ground, white=scene.white)
    refuse(checks)
    return checks
