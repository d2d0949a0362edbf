"""A stand-in for the engine: pictures that tell their seed, and a small model folder around it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from packshot.core.types import RenderRequest, Usage
from packshot.engine.results import OnStep, Progress, RenderResult
from tests.studio.lexicons import SMALL

NATIVE = 64


def picture_of(request: RenderRequest, seed: int) -> np.ndarray:
    """Return noise that depends on the seed and the caption alone."""
    source = np.random.default_rng([seed, *request.prompt.encode()])
    return source.integers(0, 256, (request.height, request.width, 3), dtype=np.uint8)


@dataclass
class StubEngine:
    """Does what `Renderer` promises, at once; ``fail_at`` raises in that step."""

    fail_at: int | None = None
    requests: list[RenderRequest] = field(default_factory=list)
    device_kind: str = "cpu"

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> RenderResult:
        self.requests.append(request)
        for picture, seed in enumerate(request.seeds, 1):
            for step in range(1, request.steps_taken + 1):
                if step == self.fail_at:
                    raise KeyboardInterrupt
                if on_step is not None:
                    on_step(
                        Progress(
                            picture,
                            len(request.seeds),
                            step,
                            request.steps_taken,
                            lambda seed=seed: picture_of(request, seed),
                        )
                    )
        return RenderResult(
            images=tuple(picture_of(request, seed) for seed in request.seeds),
            usage=self.usage(len(request.seeds), request.steps_taken),
            warnings=("the prompt is long",) if len(request.prompt) > 300 else (),
            request=replace(request, spacing=request.spacing or "trailing"),
            model="stub",
            fingerprint="0" * 64,
            device="cpu",
            precision="fp32",
        )

    def usage(self, pictures: int, steps: int) -> tuple[Usage, ...]:
        """Return what a render takes: seconds so long that ours change no share."""
        return (
            Usage("encode", 100.0, self.device_kind),
            Usage("denoise", 700.0, self.device_kind, steps=steps * pictures),
            Usage("decode", 200.0, self.device_kind, pixels=NATIVE * NATIVE * pictures),
        )


def make_folder(path: Path, *, lexicon: bool = True, salt: str = "") -> Path:
    """Write a folder that `ModelFolder.open` accepts: configs and weights without content."""
    for component in ("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
        (path / component).mkdir(parents=True)
    (path / "unet").mkdir()
    (path / "vae").mkdir()
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (path / "scheduler" / "scheduler_config.json").write_text("{}")
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (path / tokenizer / "tokenizer_config.json").write_text("{}")
        (path / tokenizer / "vocab.json").write_text("{}")
        (path / tokenizer / "merges.txt").write_text(salt)
    for encoder in ("text_encoder", "text_encoder_2"):
        (path / encoder / "config.json").write_text("{}")
        (path / encoder / "model.safetensors").write_bytes(b"")
    (path / "unet" / "config.json").write_text(json.dumps({"sample_size": NATIVE // 8}))
    (path / "vae" / "config.json").write_text("{}")
    for network in ("unet", "vae"):
        (path / network / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    if lexicon:
        (path / "lexicon.json").write_bytes(msgspec.json.encode(SMALL))
    return path
