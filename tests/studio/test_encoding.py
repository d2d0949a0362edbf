"""Encoding within limits: the best file that fits, or an error that says how long it would be."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from packshot.core.errors import InvalidRequest
from packshot.studio.encoding import Encoding, encoded
from packshot.studio.store import encode

NOISE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def picture(smooth: int) -> Image.Image:
    """Return noise, the coarser the higher ``smooth``."""
    small = Image.fromarray(NOISE[::smooth, ::smooth])
    return small.resize((64, 48), Image.Resampling.BICUBIC)


@given(
    kind=st.sampled_from(["JPEG", "WEBP"]),
    smooth=st.integers(1, 8),
    share=st.floats(0.05, 1.2),
    quality=st.integers(20, 95),
    note=st.sampled_from([b"", b"x" * 300]),
)
@settings(max_examples=60)
def test_the_best_that_fits(
    kind: str, smooth: int, share: float, quality: int, note: bytes
) -> None:
    image = picture(smooth)
    extra = {"exif": note} if note else {}
    free, _ = encoded(image, Encoding(kind, quality), extra)
    limit = max(1, round(len(free) * share))
    chosen = Encoding(kind, quality, least_quality=5, max_bytes=limit)
    try:
        file, got = encoded(image, chosen, extra)
    except InvalidRequest:
        assert len(encode(image, kind, {**extra, "quality": 5})) > limit
        return
    assert len(file) <= limit
    assert 5 <= got <= quality
    assert file == encode(image, kind, {**extra, "quality": got})
    if got < quality:
        assert len(encode(image, kind, {**extra, "quality": got + 1})) > limit
    with Image.open(BytesIO(file)) as again:
        assert again.size == image.size
        assert again.format == kind


def test_what_cannot_be_says_how_long_it_is() -> None:
    with pytest.raises(InvalidRequest, match=r"JPEG of 64x48 pixels has \d+ bytes at quality 60"):
        encoded(picture(1), Encoding("JPEG", max_bytes=100), {})
    with pytest.raises(InvalidRequest, match=r"a PNG of 64x48 .*choose format jpeg or webp"):
        encoded(picture(1), Encoding("PNG", max_bytes=100), {})


def test_the_same_picture_is_the_same_file() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        chosen = Encoding(kind, profile=True)
        assert encoded(picture(2), chosen, {}) == encoded(picture(2), chosen, {})
