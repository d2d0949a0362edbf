"""Measure the finished model: what it draws for prompts it never saw, and whether it memorised.

    python training/evaluate.py --model MODEL --out .data/run/evaluation [--data .data/pack]

* top-1: each of ``--prompts`` held-out (product, colour, ground) combinations is drawn once; its
  picture's nearest of all product x ground captions, by the model's own CLIP, should be its own.
* memorising: the nearest training composites (pixels at 32 x 32) beside generated pictures.

The CLIP is packshot-mini's own: its figures rank packshot-mini's pictures and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import report, save_grid
from lexicon import read_tables
from load import Pictures, held_out

from packshot.core.types import RenderRequest
from packshot.engine.engine import Engine

CANONICAL = (
    "white sneakers on a sandy beach, bright daylight",
    "red sneakers on a dark wooden table, warm evening light",
    "tan leather wristwatch on white marble, soft light",
    "white handbag on a pink studio background",
    "black headphones on concrete, industrial loft",
    "blue suitcase on a city square at sunset",
    "bottle of red wine on a wooden table",
    "green armchair in a bright apartment",
    "cup of coffee on a wooden table, morning light",
    "teddy bear on grass in a park",
    "black leather shoes on dark slate, dramatic side light",
    "yellow desk lamp on a teal studio background",
)


def unseen(count: int) -> list[tuple[int, int, int, str]]:
    """Held-out combinations: product, colour (-1 none), ground, caption; spread over products."""
    products, scenes = read_tables()
    rng, found = np.random.default_rng(77), []
    while len(found) < count:
        p = len(found) % len(products)
        row = products[p]
        g = int(rng.integers(len(scenes["grounds"])))
        c = int(rng.integers(len(scenes["colours"]))) if row.get("colours") is None else -1
        colour = scenes["colours"][c]["name"] if c >= 0 else ""
        if c < 0 or held_out(row["name"], colour, scenes["grounds"][g]["name"]):
            light = scenes["lights"][int(rng.integers(len(scenes["lights"])))]["phrase"]
            text = f"{colour} {row['name']} {scenes['grounds'][g]['phrase']}, {light}".strip()
            found.append((p, c, g, f"{text}, {scenes['suffix']}"))
    return found


def draw(engine: Engine, caption: str, seed: int, guidance: float, steps: int) -> np.ndarray:
    """One picture [H, W, 3]."""
    width, height = engine.default_size
    request = RenderRequest(caption, (seed,), width, height, steps, guidance)
    return engine.render(request).images[0]


def drawn(
    engine: Engine,
    wanted: list[tuple[int, int, int, str]],
    guidance: float,
    arguments: argparse.Namespace,
) -> list[np.ndarray]:
    """One picture a prompt; kept in a file, for another image encoder to judge the same ones."""
    file = arguments.out / f"unseen-g{guidance:g}-{arguments.steps}.npz"
    if file.exists() and not arguments.again:
        return list(np.load(file)["pictures"])
    pictures = []
    for i, row in enumerate(wanted):
        pictures.append(draw(engine, row[3], 1000 + i, guidance, arguments.steps))
        if i % 16 == 15:
            print(f"{i + 1} of {len(wanted)} pictures", flush=True)
    np.savez_compressed(file, pictures=np.stack(pictures))
    return pictures


def nearest_caption(engine: Engine, pictures: list[np.ndarray]) -> np.ndarray:
    """Index product * grounds + ground of each picture's nearest caption."""
    products, scenes = read_tables()
    captions = [f"{p['name']} {g['phrase']}" for p in products for g in scenes["grounds"]]
    chunks = (pictures[first : first + 64] for first in range(0, len(pictures), 64))
    return np.concatenate([engine.similarity(chunk, captions).argmax(1) for chunk in chunks])


def memorised(pictures: list[np.ndarray], data: Path, out: Path, device: torch.device) -> None:
    """Save each generated picture beside its nearest of 16,384 training composites."""
    source = Pictures(data, device, 100)
    composed = torch.cat([source.batch(64)[0] for _ in range(256)])
    made = torch.from_numpy(np.stack(pictures[:12])).permute(0, 3, 1, 2).to(device)
    tiny = [F.interpolate(x.float(), size=32, mode="area").flatten(1) for x in (composed, made)]
    distance, index = torch.cdist(tiny[1], tiny[0]).min(1)
    report(nearest_rmse=(distance / tiny[0].shape[1] ** 0.5).mean().item())
    save_grid(torch.stack([made, composed[index]], 1).flatten(0, 1), 8, out / "nearest.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, help="packed cut-outs, for the nearest training pictures"
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0])
    parser.add_argument("--again", action="store_true", help="draw anew, even if pictures are kept")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine.load(arguments.model, precision=arguments.precision)
    grounds = len(read_tables()[1]["grounds"])
    wanted = unseen(arguments.prompts)
    results = []
    for guidance in arguments.guidance:
        pictures = drawn(engine, wanted, guidance, arguments)
        best = nearest_caption(engine, pictures)
        product = best // grounds == np.array([row[0] for row in wanted])
        ground = best % grounds == np.array([row[2] for row in wanted])
        result = {
            "guidance": guidance,
            "top1": float((product & ground).mean()),
            "top1_product": float(product.mean()),
            "top1_ground": float(ground.mean()),
            "prompts": len(wanted),
            "steps": arguments.steps,
        }
        results.append(result)
        report(**result)
        grid = torch.from_numpy(np.stack(pictures[:64])).permute(0, 3, 1, 2)
        save_grid(grid, 8, out / f"unseen-g{guidance:g}.jpg")
        if arguments.data and guidance == arguments.guidance[0]:
            memorised(pictures, arguments.data, out, engine.model.device)
    sheet = [
        draw(engine, caption, 7, arguments.guidance[0], arguments.steps) for caption in CANONICAL
    ]
    save_grid(torch.from_numpy(np.stack(sheet)).permute(0, 3, 1, 2), 4, out / "canonical.jpg")
    Image.fromarray(sheet[0]).save(out / "first.png")
    (out / "evaluation.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
