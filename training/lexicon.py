"""Build the model's lexicon from ``products.yaml`` and ``scenes.yaml``, and write captions from it.

python training/lexicon.py packages/packshot-mini/src/packshot_mini/model/lexicon.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent


def read_tables() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the product rows and the scene tables."""
    products = yaml.safe_load((HERE / "products.yaml").read_text())
    return products, yaml.safe_load((HERE / "scenes.yaml").read_text())


def build() -> dict[str, Any]:
    """Return the lexicon as the model folder ships it."""
    products, scenes = read_tables()
    plain = ("name", "phrase", "synonyms", "rgb")
    return {
        "version": 1,
        "products": [
            {
                "name": row["name"],
                "plural": row.get("plural", False),
                "category": row["category"],
                "synonyms": row["synonyms"],
                "materials": [row["material"]],
                "colours": row.get("colours"),
                "colour": row.get("colour", ""),
            }
            for row in products
        ],
        **{
            table: [{k: row[k] for k in plain if k in row} for row in scenes[table]]
            for table in ("colours", "grounds", "lights", "sides", "views")
        },
        "default": scenes["default"],
        "suffix": scenes["suffix"],
    }


def caption(
    row: dict[str, Any], scene: dict[str, str], suffix: str, rng: np.random.Generator
) -> str:
    """Write one training caption: the captioner's segments in its order, dropped at random.

    ``scene`` maps colour, ground, light, side and view to phrases ("" where there is none).
    """
    name = row["name"]
    if rng.random() < 0.2:
        name = str(rng.choice(row["synonyms"]))
    words = [scene["colour"]]
    if rng.random() < 0.25:
        words.append(row["material"])
    subject = " ".join(w for w in [*words, name] if w)
    ground = scene["ground"] if rng.random() < 0.93 else ""
    segments = [f"{subject} {ground}".strip()]
    segments += [
        scene[part]
        for part, keep in (("light", 0.85), ("side", 0.7), ("view", 0.6))
        if scene[part] and rng.random() < keep
    ]
    if rng.random() < 0.5:
        segments.append(suffix)
    return ", ".join(segments)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(build(), indent=1, ensure_ascii=False) + "\n")
