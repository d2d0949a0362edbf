"""SDXL in its true shape with random weights, as a folder; and how things are timed on a GPU."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from packshot.engine.networks.base import Network  # noqa: E402
from packshot.engine.networks.clip_text import CLIPText  # noqa: E402
from packshot.engine.networks.unet import UNet  # noqa: E402
from packshot.engine.networks.vae import VAE  # noqa: E402

GOLDEN = ROOT / "tests" / "engine" / "golden"
MINI = ROOT / "packages" / "packshot-mini" / "src" / "packshot_mini" / "model"
NETWORKS: dict[str, tuple[type[Network], str]] = {
    "unet": (UNet, "diffusion_pytorch_model"),
    "vae": (VAE, "diffusion_pytorch_model"),
    "text_encoder": (CLIPText, "model"),
    "text_encoder_2": (CLIPText, "model"),
}
PROMPTS = (
    "white sneakers on a sandy beach, bright daylight, light from the left",
    "tan leather wristwatch on white marble, soft light, product photo",
    "a red canvas backpack on a pink studio background",
)
"""Of words that the folder's tokenizer has seen."""


def make_folder(path: Path, seed: int = 0) -> Path:
    """Write SDXL's folder, 6.9 GB of random bf16 weights as torch starts them, if not there."""
    done = path / "model_index.json"
    if done.exists():
        return path
    shutil.rmtree(path, ignore_errors=True)
    from tiny import EOS, SDXL_SCHEDULER, _index, _write_tokenizer

    torch.manual_seed(seed)
    _write_tokenizer(path / "tokenizer", pad=EOS)
    _write_tokenizer(path / "tokenizer_2", pad="!")
    for name, (kind, file) in NETWORKS.items():
        config = json.loads((GOLDEN / f"{name}.json").read_text())
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            network = kind.from_config(config).to(torch.bfloat16)
        directory = path / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(config))
        state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(state, directory / f"{file}.safetensors", {"format": "pt"})
    (path / "scheduler").mkdir()
    scheduler = {"_class_name": "EulerDiscreteScheduler", **SDXL_SCHEDULER}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = _index()
    for extra in ("image_encoder", "tiny_vae", "feature_extractor"):
        index.pop(extra, None)
    done.write_text(json.dumps(index))
    return path


@dataclass(frozen=True)
class Times:
    """Milliseconds of repeated runs."""

    all: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    def __str__(self) -> str:
        return f"{self.median:9.2f}  ({min(self.all):.2f} to {max(self.all):.2f})"


def timed(run: Callable[[], object], repeats: int = 10, warm: int = 2) -> Times:
    """Time whole calls by the host's clock, the device idle before and after."""
    from time import perf_counter

    for _ in range(warm):
        run()
    times: list[float] = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((perf_counter() - start) * 1e3)
    return Times(tuple(times))


def drift(got: Tensor, want: Tensor) -> float:
    """Return the relative error in L2."""
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())
