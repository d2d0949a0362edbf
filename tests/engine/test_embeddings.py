"""Texts' embeddings from the cache: the same bits, found only under all that decides them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from packshot.core.types import EmbeddingUse, RenderRequest
from packshot.engine.conditioning import EncodedTexts, encode_texts
from packshot.engine.embeddings import TextReader, pack, unpack
from packshot.engine.engine import Engine
from packshot.engine.folder import ModelFolder, make_manifest
from packshot.engine.model import Model
from tests.tiny import CORPUS

REQUEST = RenderRequest(CORPUS[0], (7,), 64, 64, 2, 4.0, negative_prompt="blurred")
CPU = torch.device("cpu")


@dataclass
class Kept:
    """A cache that is a dictionary."""

    values: dict[str, bytes] = field(default_factory=dict)
    total: EmbeddingUse = field(default_factory=EmbeddingUse)
    problem: str = ""

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def count(self, use: EmbeddingUse) -> None:
        self.total += use


def model_of(folder: Path, precision="fp32") -> Model:
    return Model(ModelFolder.open(folder), CPU, precision, "auto")


@pytest.fixture(scope="module")
def model(tiny_sdxl: Path) -> Model:
    return model_of(tiny_sdxl)


def reader(model: Model, cache: Kept | None = None, way: str = "plain") -> TextReader:
    return TextReader(model, partial(encode_texts, *model.readers), way, cache)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def bits(encoded: EncodedTexts) -> tuple[bytes, bytes, tuple[int, ...]]:
    tokens, pooled = encoded.tokens, encoded.pooled
    return (
        tokens.contiguous().view(torch.uint8).numpy().tobytes(),
        pooled.contiguous().view(torch.uint8).numpy().tobytes(),
        encoded.dropped,
    )


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_kept_is_what_was_read_bit_for_bit(tiny_sdxl: Path, kept: Kept, precision) -> None:
    model = model_of(tiny_sdxl, precision)
    texts = [*CORPUS, CORPUS[0] * 9, "", "café \U0001f45f"]
    with torch.inference_mode():
        plain, none = reader(model).read(texts)
        first, made = reader(model, kept).read(texts)
        second, found = reader(model, kept).read(texts)
    assert bits(plain) == bits(first) == bits(second)
    assert plain.dropped[len(CORPUS)] > 0
    assert (none.hits, none.misses, none.saved_s) == (0, len(texts), 0.0)
    assert (made.hits, made.misses, made.saved_s) == (0, len(texts), 0.0)
    assert (found.hits, found.misses) == (len(texts), 0)
    assert kept.total == made + found


@pytest.mark.parametrize("changes", [{}, {"guidance": 1.0}, {"negative_prompt": ""}])
def test_pictures_are_the_same_with_and_without(tiny_sdxl: Path, model, kept, changes) -> None:
    request = replace(REQUEST, **changes)
    plain = Engine(model).render(request)
    caching = Engine(model, kept)
    first, second = caching.render(request), caching.render(request)
    for result in (first, second):
        assert np.array_equal(result.images[0], plain.images[0])
        assert result.warnings == plain.warnings == ()
    texts = 1 if changes else 2
    assert (first.embeddings.hits, first.embeddings.misses) == (0, texts)
    assert (second.embeddings.hits, second.embeddings.misses) == (texts, 0)
    assert (first.embeddings.rate, second.embeddings.rate) == (0.0, 1.0)
    assert kept.total == first.embeddings + second.embeddings


def test_a_text_means_the_same_bits_beside_any_other(model: Model) -> None:
    with torch.inference_mode():
        alone, _ = reader(model).read(CORPUS[:1])
        last, _ = reader(model).read([*CORPUS[1:], CORPUS[0]])
    assert torch.equal(alone.tokens[0], last.tokens[-1])
    assert torch.equal(alone.pooled[0], last.pooled[-1])


def test_a_hit_runs_no_encoder(model: Model, kept: Kept, monkeypatch) -> None:
    engine = Engine(model, kept)
    before = engine.render(REQUEST).images[0]
    for reader in model.readers:
        monkeypatch.setattr(reader.network, "forward", None)
        monkeypatch.setattr(reader.network, "hidden", None)
    assert np.array_equal(engine.render(REQUEST).images[0], before)
    with pytest.raises(TypeError):
        engine.render(replace(REQUEST, prompt="another"))


def test_the_time_that_a_hit_saves_is_what_it_took_less_the_look(model: Model, kept: Kept) -> None:
    ours = reader(model, kept)
    with torch.inference_mode():
        encoded = ours.encode(["a shoe"])
    kept.put(ours.key("a shoe"), pack(encoded, 100.0))
    _, use = ours.read(["a shoe"])
    assert 50 < use.saved_s < 100
    kept.put(ours.key("a shoe"), pack(encoded, 0.0))
    _, use = ours.read(["a shoe"])
    assert use.saved_s < 0  # what it cost to look is not left out


# ---------------------------------------------------------------- the key


def test_another_text_precision_way_or_number_of_threads_is_another_key(tiny_sdxl, model) -> None:
    ours = reader(model)
    keys = {ours.key(text) for text in ("a shoe", "A shoe", "a shoe ", "")}
    keys.add(reader(model_of(tiny_sdxl, "bf16")).key("a shoe"))
    keys.add(reader(model, way="fused").key("a shoe"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.add(ours.key("a shoe"))
    torch.set_num_threads(threads)
    assert len(keys) == 7
    assert all(len(key) == 64 for key in keys)
    assert ours.key("a shoe") in keys


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("text_encoder/model.safetensors", True),
        ("text_encoder_2/model.safetensors", True),
        ("tokenizer/merges.txt", True),
        ("tokenizer_2/tokenizer_config.json", True),
        ("unet/diffusion_pytorch_model.safetensors", False),
        ("vae/config.json", False),
    ],
)
@pytest.mark.parametrize("manifest", [False, True])
def test_one_other_byte_in_an_encoder_is_another_key(
    tiny_sdxl: Path, model: Model, tmp_path: Path, file: str, changes: bool, manifest: bool
) -> None:
    folder = shutil.copytree(tiny_sdxl, tmp_path / "model")
    path = folder / file
    if path.suffix == ".safetensors":
        weights = load_file(path)
        name = sorted(weights)[len(weights) // 3]
        weights[name].view(-1)[weights[name].numel() // 3] += 1
        save_file(weights, path)
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    if manifest:
        made = make_manifest(folder, name="x", version="1")
        (folder / "manifest.json").write_text(json.dumps(made))
    changed = ModelFolder.open(folder).content_sum(
        "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"
    )
    assert (changed != model.text_sum) == changes


# ---------------------------------------------------------------- damage


def test_what_is_damaged_is_read_anew_and_kept_again(model: Model, kept: Kept) -> None:
    engine = Engine(model, kept)
    before = engine.render(REQUEST).images[0]
    whole = dict(kept.values)
    for spoil in (lambda v: v[:-1], lambda v: b"", lambda v: v[:100] + b"\x01" + v[101:]):
        kept.values = {key: spoil(value) for key, value in whole.items()}
        assert kept.values != whole
        result = engine.render(REQUEST)
        assert result.embeddings.hits == 0
        assert np.array_equal(result.images[0], before)
        assert [unpack(value, 77, CPU) is None for value in kept.values.values()] == [False, False]


def test_what_cannot_be_kept_is_a_warning_and_no_failure(model: Model) -> None:
    engine = Engine(model, Kept(problem="the disk is full"))
    assert engine.render(REQUEST).warnings == (
        "text embeddings are kept in memory only: the disk is full",
    )
