"""Prompt similarity, against transformers' CLIP on the same folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from packshot.core.errors import InvalidRequest, ModelNotFound
from packshot.engine.engine import Engine
from packshot.engine.similarity import CLIP_MEAN, CLIP_STD, preprocess
from tests.engine.test_engine import copy_without

TEXTS = ["white sneakers on a sandy beach", "a red canvas backpack", "soft light"]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    sizes = [(64, 64), (48, 80), (100, 41)]
    coarse = [noise.integers(0, 256, (5, 5, 3), dtype=np.uint8) for _ in sizes]
    return [
        np.asarray(Image.fromarray(c).resize((w, h)))
        for c, (h, w) in zip(coarse, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def processor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the reference library deprecates
        from transformers import CLIPImageProcessorPil

        return CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=32, image_mean=CLIP_MEAN, image_std=CLIP_STD
        )


def test_pictures_are_prepared_as_clip_prepares_them(pictures, processor):
    for picture in pictures:
        theirs = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
        ours = preprocess(picture, 32, {})
        assert ours.shape == theirs.shape == (3, 32, 32)
        assert (ours - theirs).abs().max().item() <= 1e-5


def test_cosines_are_those_of_transformers(tiny_sdxl: Path, pictures, processor):
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    engine = Engine.load(tiny_sdxl, device="cpu")
    ids = torch.tensor([engine.model.readers[1].tokenizer.encode(t).ids for t in TEXTS])
    pixels = torch.cat([processor(p, return_tensors="pt")["pixel_values"] for p in pictures])
    vision = CLIPVisionModelWithProjection.from_pretrained(tiny_sdxl / "image_encoder").eval()
    text = CLIPTextModelWithProjection.from_pretrained(tiny_sdxl / "text_encoder_2").eval()
    with torch.inference_mode():
        seen, read = vision(pixels).image_embeds, text(ids).text_embeds
    theirs = torch.cosine_similarity(seen[:, None], read[None], dim=-1).numpy()

    ours = engine.similarity(pictures, TEXTS)
    assert ours.shape == (3, 3)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-5
    assert np.ptp(ours) > 1e-3


def test_normalisation_is_read_from_the_folder(pictures):
    plain = preprocess(pictures[0], 32, {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    assert 0 <= plain.min() < plain.max() <= 1
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    assert torch.allclose(preprocess(pictures[0], 32, {}), (plain - mean) / std, atol=1e-6)


def test_nothing_to_compare_is_refused(tiny_sdxl, pictures):
    engine = Engine.load(tiny_sdxl, device="cpu")
    for images, texts in (([], TEXTS), (pictures, [])):
        with pytest.raises(InvalidRequest, match="one picture and one text"):
            engine.similarity(images, texts)


def test_a_folder_without_an_image_encoder_says_so(tiny_sdxl, tmp_path, pictures):
    bare = Engine.load(copy_without(tiny_sdxl, tmp_path / "model", "image_encoder"), device="cpu")
    with pytest.raises(ModelNotFound, match="image_encoder"):
        bare.similarity(pictures, TEXTS)
