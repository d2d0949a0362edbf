"""CLIP's two text encoders and its vision encoder against transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.clip_vision import CLIPVision
from packshot.engine.weights import load
from tests.tiny import TEXT, VISION

EOS = 652  # of the tiny vocabulary
SIZES = {**TEXT, "vocab_size": 99}


@pytest.fixture
def ids() -> Tensor:
    """Rows that end early, late and twice."""
    ids = torch.randint(0, EOS, (3, 77))
    ids[0, 5], ids[1, 76], ids[2, 30], ids[2, 31:] = EOS, EOS, EOS, EOS
    return ids


def test_clip_l_equals_the_reference(folder: ModelFolder, ids: Tensor) -> None:
    states = load(CLIPText, folder, "text_encoder")(ids)
    theirs = CLIPTextModel.from_pretrained(folder.path / "text_encoder").eval()
    expected = theirs(ids, output_hidden_states=True)
    assert expected.hidden_states[-2].std() > 0.5
    assert (states.hidden - expected.hidden_states[-2]).abs().max() <= 1e-5
    assert (states.pooled - expected.pooler_output).abs().max() <= 1e-5


def test_big_g_equals_the_reference(folder: ModelFolder, ids: Tensor) -> None:
    states = load(CLIPText, folder, "text_encoder_2")(ids)
    theirs = CLIPTextModelWithProjection.from_pretrained(folder.path / "text_encoder_2").eval()
    expected = theirs(ids, output_hidden_states=True)
    assert states.pooled.shape == (3, TEXT["projection_dim"])
    assert (states.hidden - expected.hidden_states[-2]).abs().max() <= 1e-5
    assert (states.pooled - expected.text_embeds).abs().max() <= 1e-5


@pytest.mark.parametrize("eos", [2, 7, 98])
def test_pooled_is_where_the_reference_looks_for_the_end(eos: int) -> None:
    """2 means the largest id; any other means its first place, or 0 if it is nowhere."""
    theirs = CLIPTextModel(CLIPTextConfig(**SIZES, eos_token_id=eos, hidden_act="gelu")).eval()
    config = {"architectures": ["CLIPTextModel"], "eos_token_id": eos, "hidden_act": "gelu"}
    ours = CLIPText.from_config(SIZES | config).eval()
    ours.load_state_dict({f"text_model.{k}": v for k, v in theirs.state_dict().items()})
    ids = torch.randint(8, 98, (3, 20))
    ids[0, 4], ids[0, 9], ids[1, 11], ids[1, 3] = 7, 7, 98, 2
    assert (ours(ids).pooled - theirs(ids).pooler_output).abs().max() <= 1e-5


def test_hidden_alone_is_the_hidden_of_all(folder: ModelFolder, ids: Tensor) -> None:
    encoder = load(CLIPText, folder, "text_encoder_2")
    assert torch.equal(encoder.hidden(ids), encoder(ids).hidden)


def test_a_token_does_not_see_those_after_it(folder: ModelFolder, ids: Tensor) -> None:
    encoder = load(CLIPText, folder, "text_encoder")
    changed = ids.clone()
    changed[:, 40:] = 3
    assert torch.equal(encoder.hidden(ids)[:, :40], encoder.hidden(changed)[:, :40])


def test_names_with_and_without_their_first_part() -> None:
    name = "encoder.layers.0.mlp.fc1.weight"
    assert CLIPText.adapt_key(name) == CLIPText.adapt_key(f"text_model.{name}")
    assert CLIPText.adapt_key("text_projection.weight") == "text_projection.weight"
    assert CLIPText.adapt_key("text_model.embeddings.position_ids") is None
    assert CLIPVision.adapt_key("vision_model.embeddings.position_ids") is None


def test_vision_equals_the_reference(folder: ModelFolder) -> None:
    ours = load(CLIPVision, folder, "image_encoder")
    theirs = CLIPVisionModelWithProjection.from_pretrained(folder.path / "image_encoder").eval()
    pixels = torch.randn(3, 3, VISION["image_size"], VISION["image_size"])
    expected = theirs(pixels).image_embeds
    assert expected.std() > 0.5
    assert (ours(pixels) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        (CLIPText, {"architectures": ["BertModel"]}, "BertModel"),
        (CLIPText, {}, "architectures"),
        (CLIPText, {"architectures": ["CLIPTextModel"], "hidden_act": "relu"}, "relu"),
        (CLIPText, {"architectures": ["CLIPTextModel"], "num_attention_heads": 7}, "7 heads"),
        (
            CLIPVision,
            {"architectures": ["CLIPVisionModelWithProjection"], "image_size": 33},
            "image_size 33 is not a multiple of 32",
        ),
    ],
)
def test_what_it_cannot_build_is_refused_by_name(
    network: type[CLIPText | CLIPVision], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelCorrupt, match=message):
        network.from_config(config)
