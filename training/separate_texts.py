"""Spread the second text encoder's captions apart, without changing what the UNet is told.

    python training/separate_texts.py --run .data/run --model MODEL

CLIP trained on few pictures leaves some products' captions nearly parallel ("sun hat" and "game
controller": cosine 0.98), and an image encoder can then tell them apart only as well. Their
difference is there, in directions of little variance: the inverse root of the captions' second
moments evens these out. It is a square matrix behind the text projection, so its inverse goes into
the UNet's first layer for pooled texts, and every picture stays what it was, up to rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import load_weights, report, save_weights
from configs import CONFIGS, WIDTH
from lexicon import read_tables
from torch.nn import functional as F
from train_clip import encode_ids

from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.tokenizer import Tokenizer

SHRINK = 0.03
"""Share of the mean variance that is added to each direction before the inverse root."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder that holds tokenizer_2")
    run: Path = parser.parse_args().run
    files = {
        "text": run / "text_encoder_2/model.safetensors",
        "vision": run / "image_encoder/model.safetensors",
        "unet": run / "unet/diffusion_pytorch_model.safetensors",
    }
    weights = {name: load_weights(file) for name, file in files.items()}
    text = CLIPText.from_config(CONFIGS["text_encoder_2"]).eval()
    text.load_state_dict(weights["text"])
    tokenizer = Tokenizer.open(parser.parse_args().model / "tokenizer_2")
    products, scenes = read_tables()
    captions = [f"{p['name']} {g['phrase']}" for p in products for g in scenes["grounds"]]
    captions += [f"{c['name']} {p['name']}" for p in products for c in scenes["colours"]]
    ids = encode_ids(tokenizer, captions, torch.device("cpu"))
    states = torch.cat([text(chunk).pooled for chunk in ids.split(256)]).double()
    unit = F.normalize(states, dim=1)
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    spread = (values + SHRINK * values.mean()) / values.mean()
    matrix = vectors @ torch.diag(spread**-0.5) @ vectors.T
    report(condition=float(torch.linalg.cond(matrix)))
    for name, key in (("text", "text_projection.weight"), ("vision", "visual_projection.weight")):
        weights[name][key] = (matrix @ weights[name][key].double()).float()
    first = weights["unet"]["add_embedding.linear_1.weight"]
    first[:, :WIDTH] = (first[:, :WIDTH].double() @ matrix.inverse()).float()
    for name, file in files.items():
        for old in file.parent.glob("*.safetensors*"):
            old.unlink()
        save_weights(weights[name], file)
    grounds = len(scenes["grounds"])
    for label, batch in (("before", states), ("after", states @ matrix.T)):
        rows = F.normalize(batch[: len(products) * grounds : grounds], dim=1)
        cosines = rows @ rows.T - 2 * torch.eye(len(rows))
        report(
            when=label, nearest_pair=float(cosines.max()), mean=float(cosines[cosines > -1].mean())
        )


if __name__ == "__main__":
    main()
