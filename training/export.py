"""Assemble the model folder from a run: weights, configs, tokenizers, lexicon, manifest.

    python training/export.py --run .data/run --model packages/packshot-mini/src/packshot_mini/model

The tokenizers stay as they are: training them anew may break ties otherwise, and the networks have
learnt these. So do the files that people write (README.md, ATTRIBUTION.md); the manifest covers
them too, so this runs last.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import configs
import lexicon

from packshot.engine.folder import make_manifest

VERSION = "0.1.0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="take weights from here")
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    model: Path = arguments.model
    if arguments.run:
        for component in configs.CONFIGS:
            for old in (model / component).glob("*.safetensors*"):
                old.unlink()
            for file in sorted((arguments.run / component).glob("*.safetensors*")):
                (model / component).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, model / component / file.name)
    configs.write_configs(model)
    (model / "lexicon.json").write_text(
        json.dumps(lexicon.build(), indent=1, ensure_ascii=False) + "\n"
    )
    (model / "manifest.json").unlink(missing_ok=True)
    manifest = make_manifest(model, name="packshot-mini", version=VERSION)
    (model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    print(f"{len(manifest['files'])} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
