"""CLIP's text transformer (arXiv:2103.00020) in both of SDXL's forms: CLIP-L and OpenCLIP-bigG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packshot.core.errors import ModelCorrupt
from packshot.engine.networks.base import Network, parse

__all__ = ["CLIPEncoder", "CLIPText", "CLIPTextConfig", "EncoderConfig", "HiddenAct", "TextStates"]

HiddenAct = Literal["quick_gelu", "gelu"]

# Published configs mostly say eos_token_id 2, which is "#": wrong from the start, it stands for
# "the largest id of the row", which in CLIP's vocabulary is the end token.
_LEGACY_EOS = 2


class CLIPTextConfig(msgspec.Struct, frozen=True):
    """The keys of ``text_encoder/config.json``; files leave out what equals these defaults."""

    architectures: tuple[Literal["CLIPTextModel", "CLIPTextModelWithProjection"]]
    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: HiddenAct = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


class TextStates(NamedTuple):
    """What a caption becomes: ``hidden`` [B,T,C] of the last layer but one, ``pooled`` [B,P]."""

    hidden: Tensor
    pooled: Tensor


class CLIPText(Network):
    """The text encoder, with a projection of the pooled state where ``architectures`` says so."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        if config.architectures == ("CLIPTextModelWithProjection",):
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        else:
            self.text_projection = nn.Identity()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of ``text_encoder/config.json``; ``ModelCorrupt`` if not supported."""
        return cls(parse(config, CLIPTextConfig, {}))

    @staticmethod
    def adapt_key(key: str) -> str | None:
        """Return the name here of a published weight.

        Libraries differ in whether CLIP-L's names start with ``text_model.``, and old files hold
        the positions 0…76 as a weight.
        """
        if key.endswith(".position_ids"):
            return None
        return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the states [B,T,C] of the last layer but one for token ids [B,T].

        They are what SDXL's cross-attention reads; the last layer's work is saved.
        """
        *layers, _ = self.text_model.encoder.layers
        x = self.text_model.embeddings(ids)
        for layer in layers:
            x = layer(x)
        return x

    def forward(self, ids: Tensor) -> TextStates:
        """Return ``hidden`` and the pooled (and projected) state at the end token for ids [B,T]."""
        hidden = self.hidden(ids)
        x = self.text_model.final_layer_norm(self.text_model.encoder.layers[-1](hidden))
        eos = self.config.eos_token_id
        end = (ids if eos == _LEGACY_EOS else (ids == eos).int()).argmax(dim=-1)
        pooled = x[torch.arange(len(ids), device=ids.device), end]
        return TextStates(hidden, self.text_projection(pooled))


class TextTransformer(nn.Module):
    """What the published names call ``text_model``."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = CLIPEncoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class TextEmbeddings(nn.Module):
    """Token and position embeddings, added."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B,T] to [B,T,C]."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class EncoderConfig(Protocol):
    """The settings that CLIP's two transformers share."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> HiddenAct: ...
    @property
    def layer_norm_eps(self) -> float: ...


class CLIPEncoder(nn.Module):
    """A pre-norm transformer; ``causal`` for text, not for pictures."""

    def __init__(self, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(config, causal=causal) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,C] to the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each after a LayerNorm and added on."""

    def __init__(self, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, causal=causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,C] to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SelfAttention(nn.Module):
    """Multi-head attention; causal: each token sees itself and those before it."""

    def __init__(self, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__()
        width, self.heads, self.causal = config.hidden_size, config.num_attention_heads, causal
        if width % self.heads:
            raise ModelCorrupt(f"hidden_size {width} is not a multiple of {self.heads} heads.")
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,C] to the same shape."""
        b, t, c = x.shape
        q, k, v = (
            proj(x).reshape(b, t, self.heads, c // self.heads).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with the model's activation between them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,T,C] to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


def _quick_gelu(x: Tensor) -> Tensor:
    """Return OpenAI's approximation of GELU, with which CLIP-L was trained."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[HiddenAct, Callable[[Tensor], Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
}
