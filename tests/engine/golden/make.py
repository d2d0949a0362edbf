"""Write the names and shapes of SDXL's published weights, as the reference libraries build them.

    PYTHONPATH=src python tests/engine/golden/make.py

One line per weight ("name shape"), gzipped, beside the published config it comes from.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).parent


def main() -> None:
    config = {path.stem: json.loads(path.read_text()) for path in HERE.glob("*.json")}
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(config["unet"]),
            "vae": AutoencoderKL.from_config(config["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**config["text_encoder_2"])
            ),
        }
    for name, model in models.items():
        # transformers 5 drops the first part of CLIP-L's names; the published files have it.
        prefix = "text_model." if name == "text_encoder" else ""
        shapes = {prefix + key: tuple(value.shape) for key, value in model.state_dict().items()}
        lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
        data = gzip.compress("\n".join(lines).encode(), mtime=0)
        (HERE / f"{name}.keys.gz").write_bytes(data)
        print(name, len(lines), "weights,", sum(p.numel() for p in model.parameters()))  # noqa: T201


if __name__ == "__main__":
    main()
