"""Train the image encoder further on a CPU, on pictures that it never sees twice.

    python training/polish_clip.py --data .data/pack --run .data/run --model MODEL --seconds 1200

The text encoder stays as the UNet knows it. Its captions are few enough to score all of them: every
picture must find its product x ground, product x colour and product x light caption among all such.
One process composes, the other trains.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import Average, Clock, load_weights, report, save_weights
from configs import CONFIGS
from load import Pictures
from train_clip import augment, encode_ids, gather, normalise, top1

from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.clip_vision import CLIPVision
from packshot.engine.tokenizer import Tokenizer

SCALE = 30.0
"""Sharpness of the softmax over cosines: about what contrastive training arrived at."""


def compose_forever(data: Path, batch: int, seed: int, queue: mp.Queue) -> None:
    """Producer: put (uint8 pictures, attribute rows) on the queue until the process is ended."""
    from quick import QuickPictures

    torch.set_num_threads(1)
    source = QuickPictures(data, torch.device("cpu"), seed)
    while True:
        pictures, attributes = source.mixed(batch)
        queue.put(((pictures * 255 + 0.5).to(torch.uint8).numpy(), attributes.rows()))


@torch.no_grad()
def caption_table(text: CLIPText, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    """Unit embeddings [N, P] of captions."""
    parts = [
        text(encode_ids(tokenizer, captions[i : i + 128], torch.device("cpu"))).pooled
        for i in range(0, len(captions), 128)
    ]
    return F.normalize(torch.cat(parts), dim=1)


def tables(source: Pictures, text: CLIPText, tokenizer: Tokenizer) -> list[tuple[int, int, Tensor]]:
    """(attribute column, its size, captions of product x attribute): ground, colour and light."""
    products, scenes = source.products, source.scenes
    forms = (
        (2, scenes["grounds"], lambda p, g: f"{p['name']} {g['phrase']}"),
        (1, scenes["colours"], lambda p, c: f"{c['name']} {p['name']}"),
        (3, scenes["lights"], lambda p, k: f"{p['name']}, {k['phrase']}"),
    )
    return [
        (
            column,
            len(rows),
            caption_table(text, tokenizer, [form(p, r) for p in products for r in rows]),
        )
        for column, rows, form in forms
    ]


def loss_of(images: Tensor, rows: Tensor, captions: list[tuple[int, int, Tensor]]) -> Tensor:
    """Cross-entropy over all captions of each table; pictures without the attribute count not."""
    total = images.new_zeros(())
    for column, size, table in captions:
        has = rows[:, column] >= 0
        target = rows[has, 0] * size + rows[has, column]
        weight = 1.0 if column == 2 else 0.3
        total = total + weight * F.cross_entropy(SCALE * images[has] @ table.T, target)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--run", type=Path, required=True, help="has text_encoder_2/ and image_encoder/"
    )
    parser.add_argument("--model", type=Path, required=True, help="folder that holds tokenizer_2")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=6e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    queue = mp.get_context("spawn").Queue(maxsize=6)
    producer = mp.get_context("spawn").Process(
        target=compose_forever, args=(arguments.data, arguments.batch, 41, queue), daemon=True
    )
    producer.start()
    tokenizer = Tokenizer.open(arguments.model / "tokenizer_2")
    text = CLIPText.from_config(CONFIGS["text_encoder_2"]).eval()
    text.load_state_dict(load_weights(arguments.run / "text_encoder_2/model.safetensors"))
    vision = CLIPVision.from_config(CONFIGS["image_encoder"])
    file = arguments.run / "image_encoder/model.safetensors"
    vision.load_state_dict(load_weights(file))
    test_source = Pictures(arguments.data, torch.device("cpu"), 12, test=True, variants=1)
    captions = tables(test_source, text, tokenizer)
    optimizer = torch.optim.AdamW(vision.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(vision, 0.98)
    first = queue.get()
    clock, step = Clock(arguments.seconds, warm=0.05), 0
    while not clock.over:
        pictures, rows = first if step == 0 else queue.get()
        shown = augment(normalise(torch.from_numpy(pictures)))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * clock.rate()
        with torch.autocast("cpu", torch.bfloat16):
            images = vision(shown)
        loss = loss_of(F.normalize(images.float(), dim=1), torch.from_numpy(rows), captions)
        loss.backward()
        nn.utils.clip_grad_norm_(vision.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(vision)
        step += 1
        if step % 50 == 0:
            report(step=step, loss=loss.item(), seconds=clock.elapsed)
    producer.terminate()
    vision.load_state_dict(average.weights)
    vision.eval()
    test, test_rows = gather(test_source, 640)
    both, product, ground = top1(text, vision, tokenizer, test_source, test, test_rows)
    report(steps=step, top1=both, top1_product=product, top1_ground=ground)
    save_weights(vision.state_dict(), file)
    np.savez_compressed(arguments.run / "clip_test.npz", pictures=test.numpy(), rows=test_rows)
    (arguments.run / "clip.json").write_text(
        json.dumps(
            {"top1": both, "top1_product": product, "top1_ground": ground, "pictures": len(test)}
        )
    )


if __name__ == "__main__":
    main()
