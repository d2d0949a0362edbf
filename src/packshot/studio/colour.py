"""Colours as numbers: sRGB, the linear light behind it, CIELAB distances, and ICC profiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from packshot.core.errors import BadPhoto

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Floats = NDArray[np.floating[Any]]
    Bytes = NDArray[np.uint8]

__all__ = ["difference", "in_srgb", "lab", "linear", "luminance", "srgb", "srgb_profile"]

SRGB_SLACK = 1
"""A profile that moves no colour by more than this, of 255, is sRGB's: its pixels stay as they are.
Editors write many different profiles that all mean sRGB."""

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of linear R, G, B in the luminance Y (IEC 61966-2-1)."""


@lru_cache(maxsize=1)
def _table() -> Floats:
    """Return linear light, 0 to 1, of each of the 256 values of sRGB (IEC 61966-2-1)."""
    import numpy as np

    value = np.arange(256, dtype=np.float64) / 255
    low = value <= 0.04045
    return np.where(low, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear(pixels: Bytes) -> Floats:
    """Return the linear light, 0 to 1, of 8-bit sRGB of any shape; exact, by a table."""
    return _table()[pixels]


def srgb(light: Floats) -> Bytes:
    """Return the nearest 8-bit sRGB of linear light; what is outside 0 to 1 is clipped.

    It gives back every value that `linear` was given.
    """
    import numpy as np

    x = np.clip(light, 0.0, 1.0)
    curve = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.power(x, 1 / 2.4) - 0.055)
    return (curve * 255 + 0.5).astype(np.uint8)


def luminance(light: Floats) -> Floats:
    """Return the luminance of linear RGB, whose last axis is the colour."""
    import numpy as np

    return light @ np.asarray(LUMINANCE, dtype=np.float32)


def lab(light: Floats) -> Floats:
    """Return CIELAB (D65, 2 degrees) of linear sRGB: L* 0 to 100, a* and b* about -100 to 100."""
    import numpy as np

    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], LUMINANCE, [0.0193339, 0.1191920, 0.9503041]]
    )
    scaled = to_xyz / to_xyz.sum(axis=1, keepdims=True)  # of the white point: its XYZ is 1, 1, 1
    xyz: Floats = light @ scaled.T.astype(np.float32)
    root: Floats = np.cbrt(xyz)
    f = np.where(xyz > 216 / 24389, root, (24389 / 27 * xyz + 16) / 116)  # CIE 15:2018
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1).astype(np.float32)


def difference(one: Floats, other: Floats) -> Floats:
    """Return the distance of CIELAB colours (CIE 1976): 1 is hardly seen, 2.3 just noticed."""
    import numpy as np

    return np.sqrt(((one - other) ** 2).sum(axis=-1))


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, the same bytes on every day: its date is set."""
    cms = _cms()
    made = bytearray(cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes())
    made[24:36] = bytes((7, 226, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))  # ICC.1:2010 §7.2.8: 2018-01-01
    return bytes(made)


def in_srgb(image: Image, profile: bytes | None, name: str) -> tuple[Image, str]:
    """Return the colours of a picture as sRGB, and what was done, "" for nothing.

    A profile that means sRGB changes no pixel; one that cannot be used is left out, but a CMYK
    picture has no colours without.

    Raises:
        BadPhoto: the picture is CMYK, and its profile cannot be used.
    """
    if not profile:
        return image.convert("RGB"), ""
    cms = _cms()

    def converted(picture: Image) -> Image:
        opened = cms.getOpenProfile(BytesIO(profile))
        intent, target = cms.Intent.RELATIVE_COLORIMETRIC, cms.createProfile("sRGB")
        return cms.profileToProfile(picture, opened, target, intent, outputMode="RGB")

    inks = image.mode == "CMYK"
    colour = image if inks else image.convert("RGB")
    try:
        if not inks and _moves_little(converted):
            return colour, ""
        return converted(colour), "its colours were converted to sRGB"
    except (cms.PyCMSError, OSError, ValueError) as error:
        if inks:
            raise BadPhoto(f"{name} is CMYK, and its profile cannot be used: {error}") from error
        return colour, f"its colour profile cannot be used ({error}); it is taken for sRGB"


def _cms() -> Any:  # noqa: ANN401 - Pillow's module of Little CMS, whose types are incomplete
    from PIL import ImageCms

    return ImageCms


def _moves_little(converted: Callable[[Image], Image]) -> bool:
    """Tell whether a conversion leaves a cube of 9 x 9 x 9 colours where they are."""
    import numpy as np
    from PIL.Image import fromarray

    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3)
    moved = np.asarray(converted(fromarray(cube))).astype(np.int16) - cube
    return int(np.abs(moved).max()) <= SRGB_SLACK
