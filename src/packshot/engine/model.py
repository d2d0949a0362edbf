"""A model folder's networks on a device; those that few renders need are loaded on first use."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from packshot.engine.conditioning import TextEncoder
from packshot.engine.cpu import prepare
from packshot.engine.devices import DTYPES, pick_precision, pick_vae_precision
from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE
from packshot.engine.schedule import NoiseConfig
from packshot.engine.tokenizer import Tokenizer
from packshot.engine.weights import Network, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from packshot.core.types import Precision
    from packshot.engine.folder import ModelFolder
    from packshot.engine.networks.clip_vision import CLIPVision
    from packshot.engine.networks.tiny_vae import TinyVAE

__all__ = ["Model"]

N = TypeVar("N", bound=Network)


class Model:
    """The networks of ``folder`` on ``device``, and what its JSON files say of their use."""

    def __init__(
        self,
        folder: ModelFolder,
        device: torch.device,
        precision: Precision,
        vae_precision: Precision,
    ) -> None:
        self.folder = folder
        self.device = device
        self.precision: Precision = pick_precision(precision, device)
        upcast = bool(folder.config("vae").get("force_upcast", True))
        self.vae_precision: Precision = pick_vae_precision(
            vae_precision, self.precision, force_upcast=upcast
        )
        self.noise = NoiseConfig.from_json(folder.config("scheduler"))
        index = json.loads((folder.path / "model_index.json").read_bytes())
        self.zeros_mean_no_text = bool(index.get("force_zeros_for_empty_prompt", True))
        self.readers = (
            TextEncoder(
                Tokenizer.open(folder.directory("tokenizer")),
                self._load(CLIPText, "text_encoder", self.precision),
            ),
            TextEncoder(
                Tokenizer.open(folder.directory("tokenizer_2")),
                self._load(CLIPText, "text_encoder_2", self.precision),
            ),
        )
        self.unet = self._load(UNet, "unet", self.precision)
        self.vae = self._load(VAE, "vae", self.vae_precision)

    @cached_property
    def text_sum(self) -> str:
        """A sum over the text encoders and tokenizers: what a text's embedding depends on."""
        return self.folder.content_sum("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @cached_property
    def vae_fp32(self) -> VAE:
        """The VAE in full precision: the same network where it has it already."""
        return self.vae if self.vae_precision == "fp32" else self._load(VAE, "vae", "fp32")

    @cached_property
    def tiny_vae(self) -> TinyVAE | VAE:
        """The autoencoder for previews, or the VAE where the folder has no small one."""
        from packshot.engine.networks.tiny_vae import TinyVAE

        if not self.folder.has("tiny_vae"):
            return self.vae
        return self._load(TinyVAE, "tiny_vae", self.precision)

    @property
    def processor(self) -> Mapping[str, Any]:
        """How the image encoder wants its pictures; empty for CLIP's own way."""
        has = self.folder.has("feature_extractor")
        return self.folder.config("feature_extractor") if has else {}

    @cached_property
    def vision(self) -> CLIPVision:
        """The image encoder beside the second text encoder; ModelNotFound if there is none."""
        from packshot.engine.networks.clip_vision import CLIPVision

        return self._load(CLIPVision, "image_encoder", self.precision)

    def _load(self, network: type[N], component: str, precision: Precision) -> N:
        loaded = load(
            network,
            self.folder,
            component,
            device=self.device,
            dtype=DTYPES[precision],
            channels_last=True,
        )
        if self.device.type == "cpu":
            prepare(loaded)
        return loaded
