"""Load cut-outs and panoramas onto a device, and draw captioned training pictures from them."""

from __future__ import annotations

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from camera import camera_of
from compose import Composer, Cutouts
from lexicon import read_tables
from PIL import Image
from textures import linear
from torch import Tensor

HELD_OUT_VIEWS = 10
"""Every so many-th view of a product is never trained on: the test set for AE and CLIP."""
HELD_OUT_COMBINATIONS = 12
"""One in so many (product, colour, ground) combinations is never trained on."""


@dataclass(frozen=True)
class Attributes:
    """What is in a batch of pictures; indices into the lexicon's tables, -1 for none. All [B]."""

    product: np.ndarray
    colour: np.ndarray
    ground: np.ndarray
    light: np.ndarray
    side: np.ndarray
    view: np.ndarray

    def rows(self) -> np.ndarray:
        """[B, 6] in the order of the fields."""
        return np.stack([getattr(self, name) for name in self.__dataclass_fields__], 1)


def held_out(product: str, colour: str, ground: str) -> bool:
    """Whether a combination is reserved for the test prompts."""
    digest = hashlib.sha256(f"{product}|{colour}|{ground}".encode()).digest()
    return digest[0] % HELD_OUT_COMBINATIONS == 0


class Pictures:
    """An endless source of composed pictures with their attributes."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        seed: int,
        *,
        test: bool = False,
        variants: int = 6,
    ) -> None:
        self.products, self.scenes = read_tables()
        self.device, self.rng = device, np.random.default_rng(seed)
        packed = json.loads((folder / "cutouts.json").read_text())
        self.facts = [f for f in packed if (f["view"] % HELD_OUT_VIEWS == 0) == test]
        self.cutouts = _read(folder, self.facts, device)
        panoramas = {
            name: torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)
            for name, array in np.load(folder / "panoramas.npz").items()
        }
        self.composer = Composer(self.scenes, panoramas, device, variants)
        self.composer.generator.manual_seed(seed)
        index = {row["name"]: i for i, row in enumerate(self.products)}
        self.product_of = np.array([index[f["product"]] for f in self.facts])
        self.by_product = [np.flatnonzero(self.product_of == i) for i in range(len(index))]
        self.known = [i for i, rows in enumerate(self.by_product) if len(rows)]
        self.tints = _table(self.scenes["colours"], device)

    def batch(self, count: int) -> tuple[Tensor, Attributes]:
        """Compose ``count`` pictures on a random ground: uint8 [B, 3, 256, 256], attributes."""
        ground = int(self.rng.integers(len(self.scenes["grounds"])))
        return self.batch_on(ground, count)

    def batch_on(self, ground: int, count: int) -> tuple[Tensor, Attributes]:
        """Compose ``count`` pictures on one ground."""
        rows, flip, attributes = self._scenes(np.full(count, ground))
        pictures = self.composer.compose(
            self.cutouts,
            torch.from_numpy(rows).to(self.device),
            torch.from_numpy(flip).to(self.device),
            self.scenes["grounds"][ground],
            self._reflectance(attributes.colour),
            self._moods(attributes.light, attributes.side),
        )
        return (pictures * 255 + 0.5).to(torch.uint8), attributes

    def _scenes(self, grounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, Attributes]:
        """Draw what stands on these grounds: rows of cut-outs, which to mirror, what is seen."""
        drawn = [self._draw(self.scenes["grounds"][ground]["name"]) for ground in grounds]
        rows, colour = (np.array(column) for column in zip(*drawn, strict=True))
        flip = self.rng.random(len(rows)) < 0.5
        light = np.array([self._light(row) for row in rows])
        side = np.array([self._side(*pair) for pair in zip(rows, flip, strict=True)])
        view = np.array([self._view(row) for row in rows])
        return rows, flip, Attributes(self.product_of[rows], colour, grounds, light, side, view)

    def _draw(self, ground: str) -> tuple[int, int]:
        """A cut-out and a colour whose combination with the ground is not held out."""
        while True:
            product = int(self.rng.choice(self.known))
            colour = -1
            if self.products[product].get("colours") is None:
                colour = int(self.rng.integers(len(self.scenes["colours"])))
            name = self.scenes["colours"][colour]["name"] if colour >= 0 else ""
            if not held_out(self.products[product]["name"], name, ground):
                return int(self.rng.choice(self.by_product[product])), colour

    def _light(self, row: int) -> int:
        lamp = self.facts[row]["lamp"]
        return int(
            self.rng.choice([i for i, k in enumerate(self.scenes["lights"]) if lamp in k["lamps"]])
        )

    def _side(self, row: int, mirrored: np.bool) -> int:
        side = self.facts[row]["side"]
        if mirrored:
            side = {"left": "right", "right": "left"}.get(side, side)
        return [k["name"] for k in self.scenes["sides"]].index(side)

    def _view(self, row: int) -> int:
        elevation = self.facts[row]["elevation"]
        for i, view in enumerate(self.scenes["views"]):
            if view["elevation"][0] <= elevation < view["elevation"][1]:
                return i
        return -1

    def _reflectance(self, colour: np.ndarray) -> Tensor:
        picked = self.tints[torch.from_numpy(np.maximum(colour, 0)).to(self.device)]
        jitter = torch.from_numpy(self.rng.uniform(0.88, 1.12, (len(colour), 3))).to(picked)
        return (picked * jitter).clamp(0.015, 0.9)

    def _moods(self, light: np.ndarray, side: np.ndarray) -> dict[str, Tensor]:
        rows = [self.scenes["lights"][i] for i in light]
        left_right = [
            {"left": -1.0, "right": 1.0}.get(self.scenes["sides"][i]["name"], 0.0) for i in side
        ]
        moods = {
            key: [row[key] for row in rows] for key in ("exposure", "balance", "contrast", "shadow")
        }
        return {
            key: torch.tensor(values, dtype=torch.float32, device=self.device)
            for key, values in (moods | {"side": left_right}).items()
        }

    def phrases(self, attributes: np.ndarray) -> dict[str, str]:
        """Turn one row of ``Attributes.rows`` into phrases for ``lexicon.caption``."""
        _, colour, ground, light, side, view = (int(v) for v in attributes)
        tables = self.scenes
        return {
            "colour": tables["colours"][colour]["name"] if colour >= 0 else "",
            "ground": tables["grounds"][ground]["phrase"],
            "light": tables["lights"][light]["phrase"],
            "side": tables["sides"][side]["phrase"],
            "view": tables["views"][view]["phrase"] if view >= 0 else "",
        }


def _table(colours: list[dict[str, Any]], device: torch.device) -> Tensor:
    return torch.stack([linear(*[c / 255 for c in row["rgb"]]).flatten() for row in colours]).to(
        device
    )


def _read(folder: Path, facts: list[dict[str, Any]], device: torch.device) -> Cutouts:
    """Decode the packed WebP files; where there is no dark render the light one stands in."""
    blob = (folder / "cutouts.bin").read_bytes()

    def decode(entry: list[int] | None) -> np.ndarray | None:
        if entry is None:
            return None
        start, size = entry
        return np.array(Image.open(io.BytesIO(blob[start : start + size])))

    def one(fact: dict[str, Any]) -> tuple[np.ndarray, ...]:
        light, dark, shadow = (decode(fact["files"][key]) for key in ("a", "b", "s"))
        if light is None or shadow is None:
            raise SystemExit(f"a cut-out of {fact['product']} lacks a picture: pack the data anew")
        grey = shadow if shadow.ndim == 2 else shadow[..., 0]
        rgb = light[..., :3]
        alpha = light[..., 3:] if light.shape[-1] == 4 else np.full_like(light[..., :1], 255)
        return rgb, rgb if dark is None else dark[..., :3], alpha, grey[..., None]

    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(one, facts))

    def stack(index: int) -> Tensor:
        return (
            torch.from_numpy(np.stack([d[index] for d in decoded])).permute(0, 3, 1, 2).to(device)
        )

    cameras = [camera_of(fact) for fact in facts]
    origin, target = (
        torch.from_numpy(np.stack(c)).float().to(device) for c in zip(*cameras, strict=True)
    )
    return Cutouts(stack(0), stack(1), stack(2), stack(3), origin, target)


def pack(cutouts: Path, assets: Path, folder: Path) -> None:
    """Pack a folder of cut-outs and the panoramas into three files that travel easily."""
    folder.mkdir(parents=True, exist_ok=True)
    facts, offset = [], 0
    with (folder / "cutouts.bin").open("wb") as blob:
        for path in sorted(cutouts.glob("*.json")):
            fact = json.loads(path.read_text())
            files: dict[str, list[int] | None] = {}
            for key in ("a", "b", "s"):
                file = path.with_suffix(f".{key}.webp")
                content = file.read_bytes() if file.exists() else b""
                files[key] = [offset, len(content)] if content else None
                offset += blob.write(content)
            facts.append(fact | {"view": int(path.stem[3:]), "files": files})
    (folder / "cutouts.json").write_text(json.dumps(facts))
    panoramas = {
        path.stem: _halve(np.load(path)) for path in sorted((assets / "panoramas").glob("*.npy"))
    }
    np.savez(folder / "panoramas.npz", **panoramas)
    print(f"{len(facts)} cut-outs, {offset / 1e6:.1f} MB")


def _halve(picture: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels: backdrops are out of focus anyway."""
    height, width, channels = picture.shape
    blocks = picture.astype(np.float32).reshape(height // 2, 2, width // 2, 2, channels)
    return blocks.mean((1, 3)).astype(np.float16)


if __name__ == "__main__":
    import sys

    pack(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
