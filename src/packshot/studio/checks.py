"""What a finished picture must keep to: each a number with a limit, and what passing it means.

They look for the known failures of background replacement: pixels of the product changed, its tone
shifted, the product drawn on beyond its outline, a seam or a halo along it, a white that is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from packshot.core.errors import CheckFailed
from packshot.studio.colour import difference, lab, linear
from packshot.studio.filters import filled

if TYPE_CHECKING:
    from packshot.studio.colour import Bytes
    from packshot.studio.composite import Cutout
    from packshot.studio.filters import Mask

__all__ = ["LIMITS", "Check", "Limit", "check_file", "check_ground", "failures", "refuse"]

Name = Literal["core_max", "core_mean", "tone", "extension", "seam", "border"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A check as data: the most that its number may be, and what passing it means.

    ``lossy`` is the limit of a JPEG or WebP file, where it is another.
    """

    name: Name
    limit: float
    lossy: float
    unit: str
    means: str


LIMITS: dict[Name, Limit] = {
    row.name: row
    for row in (
        Limit("core_max", 0, 96, "of 255", "a pixel of the product was changed"),
        Limit("core_mean", 0, 6.0, "of 255", "the product's pixels were changed"),
        Limit("tone", 0, 0.5, "delta E", "the product's tone was shifted"),
        Limit("extension", 0.35, 0.35, "of the ring", "the product is drawn on beyond its outline"),
        Limit("seam", 4.0, 5.0, "delta E", "a seam or a halo runs along the product"),
        Limit("border", 0, 0.05, "not white", "the border is not pure white"),
    )
}
"""See docs/background.md for how they were chosen. ``border`` counts in a white ground only."""


INNER_SIDE = 1600
"""Longer side of the copy in which the product's colours along its rim are found."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was measured, and what it may be at most."""

    name: Name
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the picture may be delivered as far as this goes."""
        return self.value <= self.limit

    @property
    def facts(self) -> dict[str, Any]:
        """The check as JSON has it."""
        said = {"value": round(self.value, 6), "limit": self.limit, "passed": self.passed}
        return {"check": self.name, **said}

    def __str__(self) -> str:
        row = LIMITS[self.name]
        return f"{row.means} ({self.name} {self.value:.3g} {row.unit}, at most {self.limit:g})"


def failures(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Return those that a picture did not pass."""
    return tuple(check for check in checks if not check.passed)


def refuse(checks: tuple[Check, ...]) -> None:
    """Raise `CheckFailed`, naming every check that was not passed."""
    failed = failures(checks)
    if failed:
        raise CheckFailed("; ".join(map(str, failed)))


def check_ground(strange: float) -> Check:
    """Return the check of a ground: what share of a ring around the product is none.

    It is what `packshot.studio.ground.cleaned` found.
    """
    return _check("extension", strange, lossy=False)


def check_file(
    file: bytes, cutout: Cutout, ground: Bytes | None, *, white: bool
) -> tuple[Check, ...]:
    """Read an encoded picture again, and compare it with the product and the ground it was made of.

    ``ground`` [height, width, 3] is what the product was put on, shadow and all; None leaves the
    seam unmeasured. ``white`` asks for a border of pure white.

    Raises:
        CheckFailed: the file is not a picture of the size that it must be.
    """
    import numpy as np

    out, lossy = _reread(file, cutout)
    core = cutout.core
    apart = np.abs(out[core].astype(np.int16) - cutout.colours[core])
    tones = [lab(linear(part[core]).mean(axis=0)) for part in (out, cutout.colours)]
    found = [
        _check("core_max", float(apart.max()), lossy=lossy),
        _check("core_mean", float(apart.mean()), lossy=lossy),
        _check("tone", float(difference(tones[0], tones[1])), lossy=lossy),
    ]
    if ground is not None:
        found.append(_check("seam", _seam(out, cutout, ground), lossy=lossy))
    if white:
        found.append(_check("border", 1 - _white_share(out, cutout.alpha), lossy=lossy))
    return tuple(found)


def _reread(file: bytes, cutout: Cutout) -> tuple[Bytes, bool]:
    import numpy as np
    from PIL import Image

    with Image.open(BytesIO(file)) as image:
        lossy = image.format == "JPEG" or (image.format == "WEBP" and not _keeps_all(file))
        out = np.array(image.convert("RGB"), dtype=np.uint8)
    if out.shape != cutout.colours.shape:
        raise CheckFailed(
            f"the file has {out.shape[1]}x{out.shape[0]} pixels, expected "
            f"{cutout.size[0]}x{cutout.size[1]}: a step after the product was put on its ground "
            "changed the size"
        )
    return out, lossy


def _keeps_all(webp: bytes) -> bool:
    """Tell whether a WebP is lossless: it has a chunk VP8L (RFC 9649 §2.6)."""
    at = 12
    while at + 8 <= len(webp):
        if webp[at : at + 4] in {b"VP8L", b"VP8 "}:
            return webp[at : at + 4] == b"VP8L"
        length = int.from_bytes(webp[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return False


def _seam(out: Bytes, cutout: Cutout, ground: Bytes) -> float:
    """Return how far rim pixels lie outside what product and ground can mix to: the median.

    Between the colour of the nearest full pixels and the ground's there is a line in linear light;
    a halo, of the old ground or of a sharpening, lies beside it. Detail that ends at the rim does
    too, in places, so the median is taken. In CIELAB distances.
    """
    import numpy as np

    full = cutout.alpha == 255
    rim = (cutout.alpha > 0) & ~full
    if not rim.any():
        return 0.0
    a, b, c = linear(_inner(cutout, rim)), linear(ground[rim]), linear(out[rim])
    line = a - b
    share = ((c - b) * line).sum(-1) / np.maximum((line**2).sum(-1), 1e-6)
    nearest = b + np.clip(share, 0, 1)[:, None] * line
    return float(np.median(difference(lab(c), lab(nearest))))


def _inner(cutout: Cutout, rim: Mask) -> Bytes:
    """Return for each rim pixel [n, 3] the colour of the full pixels nearest to it.

    In a copy of at most `INNER_SIDE`, since filling a large picture takes long.
    """
    import numpy as np
    from PIL.Image import Resampling, fromarray

    height, width = rim.shape
    scale = min(1.0, INNER_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    colours = np.asarray(fromarray(cutout.colours).resize(size, Resampling.NEAREST))
    full = np.asarray(fromarray(cutout.alpha).resize(size, Resampling.NEAREST)) == 255
    inner = np.clip(filled(colours.astype(np.float32), ~full), 0, 255).astype(np.uint8)
    rows, columns = np.nonzero(rim)
    return inner[rows * size[1] // height, columns * size[0] // width]


def _white_share(out: Bytes, alpha: Bytes) -> float:
    """Return the share of the outermost pixels, where there is no product, that are 255 thrice."""
    border = alpha == 0
    border[1:-1, 1:-1] = False
    return float((out[border] == 255).all(axis=-1).mean()) if border.any() else 1.0


def _check(name: Name, value: float, *, lossy: bool) -> Check:
    row = LIMITS[name]
    return Check(name, value, row.lossy if lossy else row.limit)
