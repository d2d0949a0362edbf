"""The shapes of packshot-mini, as the config files of a diffusers-format folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH = 192
VOCABULARY = 1024
EOS = VOCABULARY - 1

_TEXT: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 77,
    "projection_dim": WIDTH,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": EOS - 1,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "text_encoder": _TEXT | {"architectures": ["CLIPTextModel"]},
    "text_encoder_2": _TEXT | {"architectures": ["CLIPTextModelWithProjection"]},
    "image_encoder": {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": 128,
        "patch_size": 16,
        "projection_dim": WIDTH,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    },
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [64, 128, 224],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "attention_head_dim": [2, 4, 7],
        "use_linear_projection": True,
        "norm_num_groups": 32,
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 32,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [32, 64, 128, 128],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 256,
        "act_fn": "silu",
        "scaling_factor": 1.0,  # the latents are whitened in the 1x1 convolutions around them
        "force_upcast": False,
    },
    "tiny_vae": {
        "_class_name": "AutoencoderTiny",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "encoder_block_out_channels": [32, 32, 32, 32],
        "decoder_block_out_channels": [32, 32, 32, 32],
        "num_encoder_blocks": [1, 2, 2, 2],
        "num_decoder_blocks": [2, 2, 2, 1],
        "act_fn": "relu",
        "scaling_factor": 1.0,
    },
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}
IMAGE_MEAN, IMAGE_STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 128},
    "crop_size": {"height": 128, "width": 128},
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 2,
    "image_mean": IMAGE_MEAN,
    "image_std": IMAGE_STD,
}


def write_configs(folder: Path, **changes: dict[str, Any]) -> None:
    """Write every JSON of the model folder; ``changes`` update a component's config."""

    def write(path: str, content: dict[str, Any]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content, indent=2) + "\n")

    for component, config in CONFIGS.items():
        write(f"{component}/config.json", config | changes.get(component, {}))
    write("scheduler/scheduler_config.json", SCHEDULER)
    write("feature_extractor/preprocessor_config.json", PROCESSOR)
    write("model_index.json", MODEL_INDEX)
