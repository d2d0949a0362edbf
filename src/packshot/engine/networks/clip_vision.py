"""CLIP's vision transformer (arXiv:2103.00020 §2.4): a picture as a point beside its captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import msgspec
import torch
from torch import Tensor, nn

from packshot.core.errors import ModelCorrupt
from packshot.engine.networks.base import Network, parse
from packshot.engine.networks.clip_text import CLIPEncoder, HiddenAct

__all__ = ["CLIPVision", "CLIPVisionConfig"]


class CLIPVisionConfig(msgspec.Struct, frozen=True):
    """The keys of ``image_encoder/config.json``; files leave out what equals these defaults."""

    architectures: tuple[Literal["CLIPVisionModelWithProjection"]]
    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: HiddenAct = "quick_gelu"
    layer_norm_eps: float = 1e-5


class CLIPVision(Network):
    """The image encoder with its projection into the space that the text encoder shares."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of ``image_encoder/config.json``; ``ModelCorrupt`` if not supported."""
        return cls(parse(config, CLIPVisionConfig, {}))

    @staticmethod
    def adapt_key(key: str) -> str | None:
        """Return the name here of a published weight; old files hold the positions as one."""
        return None if key.endswith(".position_ids") else key

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings [B,P], not of unit length.

        ``pixels`` [B,3,S,S], S = ``config.image_size``, are normalised with the mean and standard
        deviation of ``feature_extractor/preprocessor_config.json``.
        """
        return self.visual_projection(self.vision_model(pixels))


class VisionTransformer(nn.Module):
    """What the published names call ``vision_model``."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        # The published name has lost an "e".
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the state [B,C] of the class token."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return self.post_layernorm(x[:, 0])


class VisionEmbeddings(nn.Module):
    """One token for the whole picture and one per patch, each with its position."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        if config.image_size % patch:
            raise ModelCorrupt(f"image_size {config.image_size} is not a multiple of {patch}.")
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [B,3,S,S] to tokens [B,1+N,C]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight
