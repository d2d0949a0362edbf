"""Train the second text encoder and the image encoder as a CLIP pair (contrastively).

    python training/train_clip.py --data .data/pack --out .data/run --seconds 260

Every step one set of attributes is put into the captions (all of them, product and ground, product
and colour ...), and every picture of the batch that agrees in these counts as a positive: captions
made by a grammar repeat, and plain CLIP would push equal ones apart. Gate: top-1 over all
product x ground captions >= 80 % on test views.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import Average, Clock, load_weights, report, save_weights
from configs import CONFIGS, IMAGE_MEAN, IMAGE_STD
from load import Pictures

from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.clip_vision import CLIPVision
from packshot.engine.tokenizer import Tokenizer

SUBSETS = (
    ("product", "ground"),
    ("product", "ground", "colour"),
    ("product", "colour"),
    ("product", "ground", "colour", "light"),
    ("product", "ground", "light", "side"),
    ("product", "ground", "colour", "light", "side", "view"),
)
COLUMN = {
    name: i for i, name in enumerate(("product", "colour", "ground", "light", "side", "view"))
}


def small(pictures: Tensor) -> Tensor:
    """256 px uint8 to the encoder's 128 px uint8."""
    return (
        F.interpolate(pictures.float(), size=128, mode="bilinear", antialias=True)
        .add(0.5)
        .to(torch.uint8)
    )


def normalise(pictures: Tensor) -> Tensor:
    """uint8 to the image encoder's input."""
    mean = torch.tensor(IMAGE_MEAN, device=pictures.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=pictures.device).view(1, 3, 1, 1)
    return (pictures.float() / 255 - mean) / std


def sentence(
    source: Pictures, row: np.ndarray, keep: tuple[str, ...], rng: np.random.Generator
) -> str:
    """A caption that names the kept attributes only, at times with other words for the product."""
    phrases = source.phrases(row)
    product = source.products[int(row[0])]
    name = product["name"] if rng.random() < 0.8 else str(rng.choice(product["synonyms"]))
    colour = phrases["colour"] if "colour" in keep else ""
    material = product["material"] if rng.random() < 0.15 else ""
    head = " ".join(w for w in (colour, material, name) if w)
    head += " " + phrases["ground"] if "ground" in keep else ""
    tail = [phrases[k] for k in ("light", "side", "view") if k in keep and phrases[k]]
    if rng.random() < 0.3:
        tail.append(source.scenes["suffix"])
    return ", ".join([head, *tail])


def agree(rows: Tensor, keep: tuple[str, ...]) -> Tensor:
    """[B, B] whether two pictures have all kept attributes in common."""
    columns = rows[:, [COLUMN[name] for name in keep]]
    return (columns[:, None] == columns[None]).all(-1)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """Symmetric cross-entropy against all positives of a row, in equal parts."""
    logits = scale * images @ texts.T
    target = positive.float() / positive.sum(1, keepdim=True)
    return (
        -(target * logits.log_softmax(1)).sum(1).mean() / 2
        - (target * logits.T.log_softmax(1)).sum(1).mean() / 2
    )


def encode_ids(tokenizer: Tokenizer, texts: list[str], device: torch.device) -> Tensor:
    """Token ids [B, 77]."""
    return torch.tensor([tokenizer.encode(t).ids for t in texts], device=device)


def top1(
    text: CLIPText,
    vision: CLIPVision,
    tokenizer: Tokenizer,
    source: Pictures,
    pictures: Tensor,
    rows: np.ndarray,
) -> tuple[float, float, float]:
    """Share of pictures whose nearest product x ground caption is theirs; then product, ground."""
    grounds = source.scenes["grounds"]
    captions = [f"{p['name']} {g['phrase']}" for p in source.products for g in grounds]
    device = pictures.device
    with torch.no_grad():
        texts = torch.cat(
            [
                text(encode_ids(tokenizer, captions[i : i + 256], device)).pooled
                for i in range(0, len(captions), 256)
            ]
        )
        images = torch.cat([vision(normalise(chunk)) for chunk in pictures.split(256)])
        best = (F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T).argmax(1).cpu().numpy()
    product, ground = best // len(grounds), best % len(grounds)
    right_p, right_g = product == rows[:, 0], ground == rows[:, 2]
    return float((right_p & right_g).mean()), float(right_p.mean()), float(right_g.mean())


def train(
    source: Pictures,
    pictures: Tensor,
    rows: np.ndarray,
    tokenizer: Tokenizer,
    arguments: argparse.Namespace,
) -> tuple[CLIPText, CLIPVision]:
    """Train both encoders (with ``--frozen-text`` the image encoder); returns their averages."""
    device = pictures.device
    pair = nn.ModuleDict(
        {
            "text": CLIPText.from_config(CONFIGS["text_encoder_2"]),
            "vision": CLIPVision.from_config(CONFIGS["image_encoder"]),
        }
    ).to(device)
    for name, weight in pair.named_parameters():
        if "embedding" in name and weight.ndim > 1:
            nn.init.normal_(weight, std=0.02)
    files = {
        "text": arguments.out / "text_encoder_2/model.safetensors",
        "vision": arguments.out / "image_encoder/model.safetensors",
    }
    for name, file in files.items():
        if file.exists():
            pair[name].load_state_dict(load_weights(file))
    pair["text"].requires_grad_(not arguments.frozen_text)
    scale = nn.Parameter(torch.tensor(3.0, device=device))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in pair.parameters() if p.requires_grad], "weight_decay": 0.1},
            {"params": [scale], "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=(0.9, 0.98),
    )
    average, clock, step = Average(pair, 0.997), Clock(arguments.seconds), 0
    rng = np.random.default_rng(5)
    table = torch.from_numpy(rows).to(device)
    while not clock.over:
        pick = rng.integers(len(rows), size=arguments.batch)
        keep = SUBSETS[int(rng.integers(len(SUBSETS)))]
        ids = encode_ids(tokenizer, [sentence(source, rows[i], keep, rng) for i in pick], device)
        index = torch.from_numpy(pick).to(device)
        shown = augment(normalise(pictures[index]))
        for group in optimizer.param_groups:
            group["lr"] = 1.2e-3 * clock.rate()
        with torch.autocast(device.type, torch.bfloat16):
            images, texts = pair["vision"](shown), pair["text"](ids).pooled
        loss = contrast(
            F.normalize(images.float(), dim=1),
            F.normalize(texts.float(), dim=1),
            scale.exp().clamp(max=50),
            agree(table[index], keep),
        )
        loss.backward()
        nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(pair)
        step += 1
        if step % 200 == 0:
            report(
                clip_step=step, loss=loss.item(), scale=scale.exp().item(), seconds=clock.elapsed
            )
    pair.load_state_dict(average.weights)
    report(clip_steps=step)
    return pair["text"].eval(), pair["vision"].eval()


def augment(pictures: Tensor) -> Tensor:
    """Warp each picture a little (as another view would), change its light, hide some patches.

    ``pictures`` normalised [B, 3, 128, 128]. A transformer trained on a few views of each product
    learns the views by heart without this.
    """
    count, device = len(pictures), pictures.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, device=device)

    angle, size, stretch = uniform(-0.15, 0.15), uniform(0.85, 1.15), uniform(0.8, 1.2)
    shear, right, down = uniform(-0.12, 0.12), uniform(-0.1, 0.1), uniform(-0.08, 0.08)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([cos / (size * stretch), sin / size + shear, right], 1)
    row_y = torch.stack([-sin / (size * stretch), cos / size, down], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), list(pictures.shape), align_corners=False)
    warped = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    warped = warped * uniform(0.85, 1.15).view(-1, 1, 1, 1) + uniform(-0.15, 0.15).view(-1, 1, 1, 1)
    hidden = torch.rand(count, 1, 8, 8, device=device) < uniform(-0.25, 0.4).view(-1, 1, 1, 1)
    return warped * ~F.interpolate(hidden.float(), scale_factor=16).bool()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder that holds tokenizer_2")
    parser.add_argument("--seconds", type=float, default=260)
    parser.add_argument("--frozen-text", action="store_true", help="keep the text encoder as it is")
    parser.add_argument("--pool", type=int, default=98304)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--variants", type=int, default=6)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.open(arguments.model / "tokenizer_2")
    source = Pictures(arguments.data, device, 11, variants=arguments.variants)
    test_source = Pictures(arguments.data, device, 12, test=True, variants=1)
    clock = Clock(1)
    pictures, rows = gather(source, arguments.pool)
    test, test_rows = gather(test_source, min(2048, arguments.pool))
    report(clip_pool=len(pictures), seconds=clock.elapsed)
    text, vision = train(source, pictures, rows, tokenizer, arguments)
    both, product, ground = top1(text, vision, tokenizer, source, test, test_rows)
    report(
        top1=both,
        top1_product=product,
        top1_ground=ground,
        captions=len(source.products) * len(source.scenes["grounds"]),
    )
    out: Path = arguments.out
    save_weights(text.state_dict(), out / "text_encoder_2/model.safetensors")
    save_weights(vision.state_dict(), out / "image_encoder/model.safetensors")
    (out / "clip.json").write_text(
        json.dumps({"top1": both, "top1_product": product, "top1_ground": ground})
    )


def gather(source: Pictures, count: int, batch: int = 32) -> tuple[Tensor, np.ndarray]:
    """Compose ``count`` pictures at 128 px with their attribute rows."""
    pictures, rows = [], []
    for _ in range(count // batch):
        picture, attributes = source.batch(batch)
        pictures.append(small(picture))
        rows.append(attributes.rows())
    return torch.cat(pictures), np.concatenate(rows)


if __name__ == "__main__":
    main()
