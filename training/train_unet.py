r"""Train the UNet and the first text encoder on the latents of composed pictures.

    torchrun --nproc_per_node N training/train_unet.py --data .data/pack --run .data/run \
        --model packages/packshot-mini/src/packshot_mini/model --seconds 420 --part 0 0.5

Velocity prediction (Salimans & Ho 2022) on SDXL's noise schedule rescaled to zero terminal SNR (Lin
et al. 2023), captions dropped for one picture in ten, weights averaged. ``--part a b`` is the share
of the whole training that this call does: a later call goes on from the saved weights (from
``state.pt``, optimizer and all, where the machine kept it) with the learning rate where the first
stopped. Every process composes its own pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import Average, Clock, load_weights, report, save_grid, save_weights, to_bytes, to_unit
from configs import CONFIGS, SCHEDULER
from lexicon import caption
from load import Pictures

from packshot.engine.networks.clip_text import CLIPText
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE
from packshot.engine.tokenizer import Tokenizer

VARIANTS_OF_CAPTION = 3
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
STATE_FILE = "state.pt"
TEXT_FILE = "text_encoder/model.safetensors"
GRID = (
    "white sneakers on a sandy beach, bright daylight",
    "red sneakers on a dark wooden table, warm evening light",
    "tan leather wristwatch on white marble, soft light",
    "white handbag on a pink studio background",
    "black headphones on concrete, soft light",
    "blue suitcase on a city square, warm evening light",
    "wine bottle on a dark wooden table, dramatic light",
    "green armchair in a bright apartment, morning light",
    "cup of coffee on a wooden table, morning light, light from the left",
    "teddy bear on grass in a park, bright daylight",
    "black leather shoes on dark slate, dramatic light, light from the right",
    "yellow desk lamp on a teal studio background",
    "purple mug on fresh snow, bright daylight",
    "orange electric guitar on a city square",
    "pink stand mixer on a blue studio background",
    "teal armchair on a forest floor, dramatic light",
)


class Condition(nn.Module):
    """UNet and trainable first text encoder as one module, so that gradients travel together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet.from_config(CONFIGS["unet"])
        self.text = CLIPText.from_config(CONFIGS["text_encoder"])

    def forward(
        self, latents: Tensor, steps: Tensor, ids: Tensor, hidden: Tensor, pooled: Tensor
    ) -> Tensor:
        """Predict velocity for pictures at their own timesteps each [B]."""
        states = torch.cat([self.text.hidden(ids), hidden], -1)
        unet = self.unet
        sizes = torch.tensor([256.0, 256, 0, 0, 256, 256], device=latents.device)
        marks = unet._sinusoids(sizes, unet.config.addition_time_embed_dim).flatten()
        added = unet.add_embedding(torch.cat([pooled, marks.expand(len(pooled), -1)], -1))
        times = unet._sinusoids(steps, unet.config.block_out_channels[0])
        emb = F.silu(unet.time_embedding(times) + added)
        shifts = torch.cat([resnet.time_emb_proj(emb) for resnet in unet._resnets()], -1)
        return unet(latents, shifts, unet.cross_kv(states))


def signal_rates(device: torch.device) -> Tensor:
    """Cumulative signal rates [1000] of SDXL's schedule rescaled to zero terminal SNR."""
    betas = (
        torch.linspace(
            SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64
        )
        ** 2
    )
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float().to(device)


def dataset(
    source: Pictures, vae: VAE, tokenizer: Tokenizer, count: int, seconds: float
) -> tuple[Tensor, Tensor]:
    """Latents fp16 [N, 4, 32, 32] and token ids int16 [N, V, 77] of N pictures."""
    latents, rows, clock = [], [], Clock(seconds)
    for _ in range(count // 64):
        if clock.over:
            break
        pictures, attributes = source.batch(64)
        with torch.no_grad(), torch.autocast(source.device.type, torch.bfloat16):
            code = vae.encode(to_unit(pictures).contiguous(memory_format=torch.channels_last))
        latents.append(code.half())
        rows.append(attributes.rows())
    ids = caption_ids(source, np.concatenate(rows), tokenizer)
    return torch.cat(latents), ids.to(source.device)


def caption_ids(source: Pictures, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
    """Write and tokenise ``VARIANTS_OF_CAPTION`` captions a picture, on all cores."""
    from multiprocessing import get_context

    workers = max(
        1, min(12, (os.cpu_count() or 2) // max(1, int(os.environ.get("WORLD_SIZE", "1"))) - 2)
    )
    chunks = np.array_split(rows, workers)
    _SHARED.update(source=source, tokenizer=tokenizer)
    with get_context("fork").Pool(workers) as pool:
        parts = pool.map(_caption_chunk, enumerate(chunks))
    return torch.from_numpy(np.concatenate(parts))


_SHARED: dict[str, Any] = {}


def _caption_chunk(numbered: tuple[int, np.ndarray]) -> np.ndarray:
    number, rows = numbered
    source, tokenizer = _SHARED["source"], _SHARED["tokenizer"]
    rng = np.random.default_rng([31, number, os.getppid()])
    out = np.empty((len(rows), VARIANTS_OF_CAPTION, 77), np.int16)
    for i, row in enumerate(rows):
        phrases, product = source.phrases(row), source.products[int(row[0])]
        for j in range(VARIANTS_OF_CAPTION):
            text = caption(product, phrases, source.scenes["suffix"], rng)
            out[i, j] = tokenizer.encode(text).ids
    return out


@torch.no_grad()
def sample(
    model: Condition,
    text_2: CLIPText,
    tokenizer: Tokenizer,
    captions: list[str],
    guidance: float,
    steps: int,
    device: torch.device,
) -> Tensor:
    """DDIM on trailing steps: latents [N, 4, 32, 32]; only for looking while it trains."""
    rates = signal_rates(device)
    ids = torch.tensor(
        [tokenizer.encode(c).ids for c in [*captions, *[""] * len(captions)]], device=device
    )
    states = text_2(ids)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(len(captions), 4, 32, 32, generator=generator).to(device)
    ladder = torch.linspace(1000, 0, steps + 1).round().long() - 1
    for now, after in pairwise(ladder):
        t = torch.full((2 * len(captions),), int(now), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            v = model(torch.cat([x, x]), t, ids, states.hidden, states.pooled).float()
        yes, no = v.chunk(2)
        v = no + guidance * (yes - no)
        a = rates[now]
        clean, noise = a.sqrt() * x - (1 - a).sqrt() * v, (1 - a).sqrt() * x + a.sqrt() * v
        b = rates[after] if after >= 0 else torch.ones((), device=device)
        x = b.sqrt() * clean + (1 - b).sqrt() * noise
    return x


def train(
    model: Condition,
    text_2: CLIPText,
    latents: Tensor,
    ids: Tensor,
    empty: Tensor,
    arguments: argparse.Namespace,
    clock: Clock,
    rank: int,
) -> Average:
    """Train until the clock says stop; rank 0 keeps the average."""
    device, world = latents.device, dist.get_world_size() if dist.is_initialized() else 1
    rates = signal_rates(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1.0,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=device.type == "cuda",
    )
    average = Average(model, 0.9992)
    optimizer_state = _resume(model, average, arguments, clock)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    forward, compiled = model, arguments.folder / "compiled"
    step = started = average.steps
    total = torch.zeros((), device=device)
    while not _over(clock, device, world, step):
        pick = torch.randint(len(latents), (arguments.batch,), device=device)
        text = ids[pick, torch.randint(ids.shape[1], (arguments.batch,), device=device)].long()
        text = torch.where(torch.rand(arguments.batch, 1, device=device) < 0.1, empty, text)
        clean = latents[pick].float()
        t = torch.randint(1000, (arguments.batch,), device=device)
        a = rates[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy, velocity = (
            a.sqrt() * clean + (1 - a).sqrt() * noise,
            a.sqrt() * noise - (1 - a).sqrt() * clean,
        )
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * clock.rate() * min(1.0, (step - started + 1) / 100)
        if forward is model and step % 20 == 0 and compiled.exists():
            forward = torch.compile(model)
        guess = predict(forward, text_2, noisy, t, text)
        loss = F.mse_loss(guess.float(), velocity)
        loss.backward()
        _share_gradients(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)
        total += loss.detach()
        step += 1
        if step in (1, 10):
            report(rank=rank, step=step, seconds=clock.elapsed)
        if step % 250 == 0 and rank == 0:
            report(
                step=step, loss=total.item() / 250, seconds=clock.elapsed, progress=clock.progress
            )
            total.zero_()
    if rank == 0:
        report(unet_steps=step)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"average": average.weights, "step": step}
        torch.save(state, arguments.folder / STATE_FILE)
    return average


def _resume(
    model: Condition, average: Average, arguments: argparse.Namespace, clock: Clock
) -> dict[str, Any] | None:
    """Go on from an earlier part: from its whole state, or from its saved (averaged) weights."""
    if clock.first == 0:
        return None
    state = arguments.folder / STATE_FILE
    if state.exists():
        device = next(model.parameters()).device
        saved = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        average.weights, average.steps = saved["average"], saved["step"]
        return saved["optimizer"]
    model.unet.load_state_dict(load_weights(arguments.folder / UNET_FILE))
    model.text.load_state_dict(load_weights(arguments.folder / TEXT_FILE))
    average.reset(model)
    return None


def warm_compile(text_2: CLIPText, arguments: argparse.Namespace, device: torch.device) -> None:
    """Compile one training step in a process of its own, into the cache that the trainers read."""
    model = Condition().to(device).to(memory_format=torch.channels_last)
    latents = torch.randn(arguments.batch, 4, 32, 32, device=device)
    ids = torch.zeros(arguments.batch, 77, dtype=torch.long, device=device)
    steps = torch.randint(1000, (arguments.batch,), device=device)
    guess = predict(torch.compile(model), text_2, latents, steps, ids)
    F.mse_loss(guess.float(), latents).backward()
    (arguments.folder / "compiled").touch()


def predict(
    forward: nn.Module, text_2: CLIPText, noisy: Tensor, steps: Tensor, ids: Tensor
) -> Tensor:
    """Run a training step's networks in bf16, the second text encoder without gradients."""
    with torch.autocast(noisy.device.type, torch.bfloat16):
        with torch.no_grad():
            states = text_2(ids)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return forward(noisy, steps, ids, states.hidden, states.pooled)


def _over(clock: Clock, device: torch.device, world: int, step: int) -> bool:
    """All processes must stop after the same step: rank 0 decides, every 20 steps."""
    if world == 1:
        return clock.over
    if step % 20:
        return False
    flag = torch.tensor([float(clock.over)], device=device)
    dist.broadcast(flag, 0)
    return bool(flag.item())


def _share_gradients(model: nn.Module, world: int) -> None:
    if world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="folder with vae/, text_encoder_2/; results go here",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder that holds the tokenizers"
    )
    parser.add_argument("--seconds", type=float, default=420, help="of training in this call")
    parser.add_argument("--part", type=float, nargs=2, default=(0.0, 1.0))
    parser.add_argument("--pictures", type=int, default=163840, help="composed, per process")
    parser.add_argument("--dataset-seconds", type=float, default=110, help="stop composing then")
    parser.add_argument("--batch", type=int, default=512, help="per process")
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--variants", type=int, default=6)
    parser.add_argument("--warm", action="store_true", help="only compile; trainers pick it up")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:  # one device name for all, so that they share what was compiled
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["LOCAL_RANK"]
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run: Path = arguments.folder
    clock = Clock(1)
    text_2 = _ready(
        CLIPText.from_config(CONFIGS["text_encoder_2"]),
        run / "text_encoder_2/model.safetensors",
        device,
    )
    if arguments.warm:
        warm_compile(text_2, arguments, device)
        return
    vae = _ready(
        VAE.from_config(CONFIGS["vae"]), run / "vae/diffusion_pytorch_model.safetensors", device
    )
    tokenizer = Tokenizer.open(arguments.model / "tokenizer")
    cache = run / f"latents-{rank}.pt"
    if cache.exists():
        latents, ids = (v.to(device) for v in torch.load(cache, weights_only=True))
    else:
        source = Pictures(arguments.data, device, 100 + rank, variants=arguments.variants)
        latents, ids = dataset(
            source, vae, tokenizer, arguments.pictures, arguments.dataset_seconds
        )
        torch.save((latents, ids), cache)
    report(
        rank=rank, pictures=len(latents), seconds=clock.elapsed, std=latents.float().std().item()
    )
    if world > 1:
        dist.init_process_group("nccl")
    torch.manual_seed(0)
    model = Condition().to(device).to(memory_format=torch.channels_last)
    _init(model)
    torch.manual_seed(rank + int(1000 * arguments.part[0]))
    empty = torch.tensor(tokenizer.encode("").ids, device=device)
    clock = Clock(arguments.seconds, *arguments.part)
    average = train(model, text_2, latents, ids, empty, arguments, clock, rank)
    if rank == 0:
        model.load_state_dict(average.weights)
        save_weights(model.unet.state_dict(), run / UNET_FILE)
        save_weights(model.text.state_dict(), run / TEXT_FILE)
        print("weights saved", flush=True)
        for guidance in (3.0, 6.0):
            codes = sample(model, text_2, tokenizer, list(GRID), guidance, 30, device)
            with torch.no_grad():
                save_grid(
                    to_bytes(vae.decode(codes)),
                    4,
                    run / f"samples-{arguments.part[1]:.2f}-g{guidance:.0f}.jpg",
                )
    if world > 1:
        dist.destroy_process_group()


def _ready(network: Any, path: Path, device: torch.device) -> Any:
    network.load_state_dict(load_weights(path))
    return network.to(device).eval().requires_grad_(False)


def _init(model: Condition) -> None:
    """Last layers of residual branches start at zero, embeddings small."""
    nn.init.zeros_(model.unet.conv_out.weight)
    nn.init.zeros_(model.unet.conv_out.bias)
    for name, weight in model.named_parameters():
        if name.endswith(("conv2.weight", "proj_out.weight")):
            nn.init.zeros_(weight)
        if "embeddings" in name and weight.ndim == 2:
            nn.init.normal_(weight, std=0.02)


if __name__ == "__main__":
    main()
