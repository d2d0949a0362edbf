"""Which size a request is rendered at."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest
from packshot.engine.buckets import SDXL, buckets_of, nearest, parse_bucket

NATIVE = (1024, 1024)


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        ((1024, 1024), (1024, 1024)),
        ((512, 512), (1024, 1024)),
        ((1000, 704), (1216, 832)),
        ((1200, 960), (1152, 896)),
        ((896, 1152), (896, 1152)),
        ((1920, 1080), (1344, 768)),
        ((4096, 512), (1536, 640)),
    ],
)
def test_the_nearest_shape_of_sdxl_is_taken(wanted, made):
    assert nearest(wanted, NATIVE, buckets_of(NATIVE)) == made


def test_of_one_shape_the_nearest_area_is_taken():
    sizes = ((768, 768), (1024, 1024), (1280, 1280))
    assert nearest((800, 800), NATIVE, sizes) == (768, 768)
    assert nearest((1024, 1024), NATIVE, sizes[::-1]) == (1024, 1024)
    assert nearest((4096, 4096), NATIVE, sizes) == (1280, 1280)


@given(st.tuples(*[st.integers(8, 512).map(lambda n: 8 * n)] * 2))
def test_no_other_bucket_is_nearer_in_shape(wanted):
    def off(size: tuple[int, int]) -> Fraction:
        ratio = Fraction(wanted[0] * size[1], wanted[1] * size[0])
        return max(ratio, 1 / ratio)

    assert off(nearest(wanted, NATIVE, SDXL)) == min(map(off, SDXL))


def test_what_a_model_was_not_trained_near_is_left_out():
    assert buckets_of(NATIVE) == SDXL
    assert buckets_of((256, 256)) == ()
    assert buckets_of((256, 256), SDXL) == ()
    assert buckets_of(NATIVE, ((256, 256), (1216, 832), (724, 724), (2048, 2048))) == ((1216, 832),)
    assert nearest((640, 512), (256, 256), ()) == (256, 256)


def test_sdxl_s_are_about_a_megapixel_each():
    assert all(0.9 < w * h / 2**20 <= 1 and w % 64 == h % 64 == 0 for w, h in SDXL)
    assert {(h, w) for w, h in SDXL} == {*SDXL}


@pytest.mark.parametrize("text", ["1024", "1000x1001", "32x1024", "4096x4096", "ax8", "", "8x"])
def test_what_is_no_bucket_is_refused(text):
    with pytest.raises(InvalidRequest, match="no size to render at; expected WxH"):
        parse_bucket(text)
    assert parse_bucket(" 1216×832") == (1216, 832)
