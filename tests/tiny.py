"""A random-weight SDXL folder for 64-pixel pictures, written by the reference libraries.

Everything about it is small (widths of 32, a few layers) except the layout, which is SDXL's own.
It needs diffusers and transformers (the dev extra).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "white sneakers on a sandy beach, bright daylight, light from the left, eye-level view",
    "tan leather wristwatch on white marble, soft light, product photo, 85 mm lens",
    "a red canvas backpack on a pink studio background, shallow depth of field",
    "it's the camera we're selling: they'll love it; don't wait",
)
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77

SDXL_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
MINI_SCHEDULER: dict[str, Any] = SDXL_SCHEDULER | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "projection_dim": 24,
    "initializer_factor": 4.0,  # the default leaves the states so small that errors would hide
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 6),
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "cross_attention_dim": 2 * TEXT["hidden_size"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": TEXT["projection_dim"] + 6 * 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 24, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "scaling_factor": 0.13025,
}
TINY_VAE: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": TEXT["projection_dim"],
    "initializer_factor": 4.0,
}


def make_tiny_sdxl(path: Path, scheduler: dict[str, Any] | None = None) -> Path:
    """Write the folder (fp32 safetensors, about 1 MB) and return its path.

    ``scheduler`` is the scheduler's config: ``SDXL_SCHEDULER`` by default, ``MINI_SCHEDULER`` for
    v-prediction on a zero-terminal-SNR schedule.
    """
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter(
            "ignore"
        )  # what the reference libraries deprecate is not our business
        torch.manual_seed(0)
        eos = _write_tokenizer(path / "tokenizer", pad=EOS)
        _write_tokenizer(path / "tokenizer_2", pad="!")
        _save_networks(path, eos)
        _save_scheduler(path, scheduler or SDXL_SCHEDULER)
    (path / "model_index.json").write_text(json.dumps(_index(), indent=2))
    return path


def _save_networks(path: Path, eos: int) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    ids = {"vocab_size": eos + 1, "bos_token_id": eos - 1, "pad_token_id": eos}
    # te1 has the published, wrong eos_token_id of 2 (pooled at the largest id); te2 the right one.
    text = CLIPTextConfig(**TEXT, **ids, eos_token_id=2, hidden_act="quick_gelu")
    text_2 = CLIPTextConfig(**TEXT, **ids, eos_token_id=eos, hidden_act="gelu")
    CLIPTextModel(text).save_pretrained(path / "text_encoder")
    CLIPTextModelWithProjection(text_2).save_pretrained(path / "text_encoder_2")
    vision = CLIPVisionConfig(**VISION, hidden_act="gelu")
    CLIPVisionModelWithProjection(vision).save_pretrained(path / "image_encoder")
    UNet2DConditionModel(**UNET).save_pretrained(path / "unet")
    AutoencoderKL(**VAE).save_pretrained(path / "vae")
    AutoencoderTiny(**TINY_VAE).save_pretrained(path / "tiny_vae")


def _save_scheduler(path: Path, config: dict[str, Any]) -> None:
    from diffusers import EulerDiscreteScheduler

    EulerDiscreteScheduler(**config).save_pretrained(path / "scheduler")
    (path / "feature_extractor").mkdir()
    processor = {
        "size": {"shortest_edge": VISION["image_size"]},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (path / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(processor))


def _index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_tokenizer(path: Path, pad: str) -> int:
    """Train a small BPE vocabulary, write it in CLIP's files and return the id of the eos token."""
    merges = _train_merges()
    alphabet = _byte_alphabet()
    words = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *("".join(pair) for pair in merges),
        BOS,
        EOS,
    ]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad, "unk_token": EOS}
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (path / "special_tokens_map.json").write_text(json.dumps(special))
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return vocab[EOS]


def _byte_alphabet() -> list[str]:
    """Return the 256 printable stand-ins for bytes in CLIP's order, where "!" has id 0."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _train_merges() -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
