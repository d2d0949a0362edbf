"""Train the image encoder further, on pictures that it hardly ever sees twice.

    python training/polish_clip.py --data .data/pack --run .data/run --model MODEL --seconds 420

Captions are few enough to score all of them: a picture must find its product x ground, product x
colour and product x light caption among all such. The text encoder's layers stay as the UNet knows
them; one square matrix behind its projection is trained along, and its inverse goes into the UNet's
first layer for pooled texts, so every picture stays what it was, up to rounding. ``--producers``
processes compose; the trainer draws from a ring of the newest pictures. On a CPU, one of each.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import Average, Clock, load_weights, report, save_weights
from configs import CONFIGS, WIDTH
from load import Pictures
from train_clip import augment, encode_ids, gather, normalise, small, top1

from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.clip_vision import CLIPVision
from packshot.engine.tokenizer import Tokenizer

FILES = {
    "text": "text_encoder_2/model.safetensors",
    "vision": "image_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
}
WEIGHTS = {"ground": 1.0, "colour": 0.3, "light": 0.3}
"""What each table of captions counts in the loss; the gate is the first."""


def compose_forever(data: Path, device: str, seed: int, chunks: mp.Queue) -> None:
    """Producer: put (uint8 pictures, attribute rows) on the queue until the process is ended."""
    torch.set_num_threads(1)
    source = Pictures(data, torch.device(device), seed, variants=4)
    while True:
        pictures, attributes = source.batch(32)
        chunks.put((small(pictures).cpu().numpy(), attributes.rows()))


class Ring:
    """The newest ``size`` composed pictures, on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.pictures = torch.empty(size, 3, 128, 128, dtype=torch.uint8, device=device)
        self.rows = torch.empty(size, 6, dtype=torch.long, device=device)
        self.written = 0

    def take_in(self, chunks: mp.Queue, *, wait: bool) -> None:
        """Store what has been composed meanwhile; with ``wait``, at least one chunk."""
        for first in range(64):
            try:
                pictures, rows = chunks.get(block=wait and first == 0, timeout=120)
            except queue.Empty:
                return
            place = torch.arange(self.written, self.written + len(rows)) % len(self.rows)
            place = place.to(self.rows.device)
            self.pictures[place] = torch.from_numpy(pictures).to(self.rows.device)
            self.rows[place] = torch.from_numpy(rows).long().to(self.rows.device)
            self.written += len(rows)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return random pictures and their rows."""
        known = min(self.written, len(self.rows))
        pick = torch.randint(known, (count,), device=self.rows.device)
        return self.pictures[pick], self.rows[pick]


@torch.no_grad()
def tables(
    source: Pictures, text: CLIPText, tokenizer: Tokenizer, device: torch.device
) -> dict[str, tuple[int, int, list[Tensor]]]:
    """Per attribute: its column, how many it has, and pooled texts [products * N, P] twice over:
    by the products' names, and by synonyms.
    """
    products, scenes = source.products, source.scenes
    forms = {
        "ground": (2, scenes["grounds"], lambda name, row: f"{name} {row['phrase']}"),
        "colour": (1, scenes["colours"], lambda name, row: f"{row['name']} {name}"),
        "light": (3, scenes["lights"], lambda name, row: f"{name}, {row['phrase']}"),
    }
    names = ([p["name"] for p in products], [(p["synonyms"] or [p["name"]])[0] for p in products])

    def pooled(captions: list[str]) -> Tensor:
        ids = encode_ids(tokenizer, captions, device)
        return torch.cat([text(chunk).pooled for chunk in ids.split(256)]).float()

    return {
        key: (column, len(rows), [pooled([form(n, r) for n in way for r in rows]) for way in names])
        for key, (column, rows, form) in forms.items()
    }


def loss_of(
    images: Tensor,
    rows: Tensor,
    captions: dict[str, tuple[int, int, list[Tensor]]],
    matrix: Tensor,
    scale: Tensor,
    way: int,
) -> Tensor:
    """Cross-entropy over all captions of each table; pictures without the attribute count not."""
    total = images.new_zeros(())
    for key, (column, size, ways) in captions.items():
        table = F.normalize(ways[way] @ matrix.T, dim=1)
        has = (rows[:, column] >= 0).float()
        target = rows[:, 0] * size + rows[:, column].clamp(min=0)
        each = F.cross_entropy(
            scale * images @ table.T, target, reduction="none", label_smoothing=0.02
        )
        total = total + WEIGHTS[key] * (each * has).sum() / has.sum().clamp(min=1)
    return total


def train(
    vision: CLIPVision,
    captions: dict[str, tuple[int, int, list[Tensor]]],
    chunks: mp.Queue,
    arguments: argparse.Namespace,
    device: torch.device,
) -> Tensor:
    """Train ``vision`` (to its average) and return the matrix that goes behind the text's."""
    matrix = nn.Parameter(torch.eye(WIDTH, device=device))
    scale = nn.Parameter(torch.tensor(3.4, device=device))
    optimizer = torch.optim.AdamW(
        [
            {"params": list(vision.parameters()), "weight_decay": 0.05, "share": 1.0},
            {"params": [matrix, scale], "weight_decay": 0.0, "share": 0.3},
        ],
        lr=1.0,
        betas=(0.9, 0.98),
    )
    whole = nn.ModuleDict({"vision": vision})
    whole.register_parameter("matrix", matrix)
    average, ring = Average(whole, 0.999), Ring(arguments.ring, device)
    while ring.written < min(8 * arguments.batch, arguments.ring):
        ring.take_in(chunks, wait=True)
    report(composed=ring.written)
    rng, clock, step = np.random.default_rng(7), Clock(arguments.seconds, warm=0.03), 0
    while not clock.over:
        ring.take_in(chunks, wait=False)
        pictures, rows = ring.draw(arguments.batch)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * clock.rate() * group["share"]
        shown = normalise(pictures)
        if rng.random() < 0.85:  # the rest as they will be judged
            shown = augment(shown)
        with torch.autocast(device.type, torch.bfloat16):
            images = vision(shown)
        way = int(rng.random() < 0.3)
        images = F.normalize(images.float(), dim=1)
        loss = loss_of(images, rows, captions, matrix, scale.exp().clamp(max=60), way)
        even = (matrix.T @ matrix - torch.eye(WIDTH, device=device)).square().mean()
        (loss + 0.1 * even).backward()
        nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(whole)
        step += 1
        if step % 250 == 0:
            report(step=step, loss=loss.item(), seconds=clock.elapsed, composed=ring.written)
    report(steps=step, composed=ring.written, scale=scale.exp().item())
    whole.load_state_dict(average.weights)
    return matrix.detach()


def save(run: Path, vision: CLIPVision, matrix: Tensor) -> None:
    """Put the matrix behind the text projection and its inverse into the UNet; save all three."""
    matrix = matrix.double().cpu()
    report(condition=float(torch.linalg.cond(matrix)))
    weights: dict[str, dict[str, Any]] = {
        name: load_weights(run / file) for name, file in FILES.items() if name != "vision"
    }
    weights["vision"] = vision.state_dict()
    key = "text_projection.weight"
    weights["text"][key] = (matrix @ weights["text"][key].double()).float()
    first = weights["unet"]["add_embedding.linear_1.weight"]
    first[:, :WIDTH] = (first[:, :WIDTH].double() @ matrix.inverse()).float()
    for name, file in FILES.items():
        for old in (run / file).parent.glob("*.safetensors*"):
            old.unlink()
        save_weights(weights[name], run / file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="has the three networks' weights")
    parser.add_argument("--model", type=Path, required=True, help="folder that holds tokenizer_2")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--ring", type=int, default=131072, help="pictures kept: 49 kB each")
    parser.add_argument("--producers", type=int, default=6)
    parser.add_argument("--tests", type=int, default=2048, help="composites that judge the result")
    parser.add_argument("--wait-for", type=Path, help="save only once this file is there")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spawn = mp.get_context("spawn")
    chunks = spawn.Queue(maxsize=256)
    producers = [
        spawn.Process(
            target=compose_forever,
            args=(arguments.data, str(device), 41 + k, chunks),
            daemon=True,
        )
        for k in range(arguments.producers)
    ]
    for producer in producers:
        producer.start()
    tokenizer = Tokenizer.open(arguments.model / "tokenizer_2")
    text = CLIPText.from_config(CONFIGS["text_encoder_2"]).eval().to(device)
    text.load_state_dict(load_weights(arguments.run / FILES["text"]))
    vision = CLIPVision.from_config(CONFIGS["image_encoder"]).to(device)
    vision.load_state_dict(load_weights(arguments.run / FILES["vision"]))
    test_source = Pictures(arguments.data, device, 12, test=True, variants=1)
    test, test_rows = gather(test_source, arguments.tests)
    captions = tables(test_source, text, tokenizer, device)
    both, product, ground = top1(text, vision.eval(), tokenizer, test_source, test, test_rows)
    report(when="before", top1=both, top1_product=product, top1_ground=ground)
    matrix = train(vision.train(), captions, chunks, arguments, device)
    for producer in producers:
        producer.terminate()
    vision.eval()
    with torch.no_grad():
        text.text_projection.weight.copy_(matrix @ text.text_projection.weight)
    both, product, ground = top1(text, vision, tokenizer, test_source, test, test_rows)
    report(when="after", top1=both, top1_product=product, top1_ground=ground, tests=len(test))
    (arguments.run / "clip.json").write_text(
        json.dumps({"top1": both, "top1_product": product, "top1_ground": ground})
    )
    if arguments.wait_for is not None:
        import time

        for _ in range(600):
            if arguments.wait_for.exists():
                break
            time.sleep(1)
    save(arguments.run, vision, matrix)


if __name__ == "__main__":
    main()
