"""Every fused kernel against its meaning in plain torch, at the shapes that SDXL has, on this GPU.

    python benchmarks/gpu/parity.py [--shapes 1024x1024:1,512x512:1,1536x640:1,1024x1024:8]
    python benchmarks/gpu/parity.py --older          (as before Hopper)
    python benchmarks/gpu/parity.py --mini           (at packshot-mini's shapes, alone and four)
    python benchmarks/gpu/parity.py --tiny           (tries the script on a CPU; nothing differs)

One step of the network in each tier, and a decoding, of random weights in SDXL's true shape. Each
call of an operation of `packshot.engine.fast.reference` is made twice, by the kernel and by that,
on the same numbers; the step goes on with what the kernel gave. Shown is the worst call of each
operation: the relative error in L2, and of the worst row (the last dimension) in rows of mean
length, which sees a tile's edge that the former does not. The exit code is 1 where one is beyond
its bound. What a GPU computes wrongly only now and then it does not see; life.py does. After each
call the device is waited for, so that an illegal access is that call's.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from world import GOLDEN, MINI

from packshot.engine.fast import cublaslt, reference
from packshot.engine.fast.calibration import calibrate, to_fp8, to_int8
from packshot.engine.fast.graphs import Shape, StepGraph
from packshot.engine.fast.products import TORCH, Tuned
from packshot.engine.fast.unet import FastUNet
from packshot.engine.fast.vae import FastDecoder
from packshot.engine.networks.unet import UNet
from packshot.engine.networks.vae import VAE

BOUNDS = {torch.float32: (1e-3, 1e-2), torch.bfloat16: (1e-2, 0.1)}
EIGHT_BITS = (0.06, 0.3)
"""Of the relative error and of the worst row's, by the type of what comes out.

bf16 rounds by up to 2**-9, e4m3 by up to 2**-4 of a value, and integers by half a level.
"""


@dataclass
class Seen:
    """The calls of one operation whose result has one type."""

    calls: int = 0
    shapes: set[str] = field(default_factory=set)
    worst: float = 0.0
    worst_row: float = 0.0
    at: str = ""


class Compared:
    """Kernels that do each operation a second time, plainly, and note how far apart both are."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        self.seen: dict[tuple[str, torch.dtype], Seen] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the kernels have)
        mine, plain = getattr(self._kernels, name), getattr(reference, name)

        def both(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            copies = tree_map_only(Tensor, torch.clone, (args, options))
            got = mine(*args, **options)
            awaited(f"{name} of {shapes_of(args)}")
            if not isinstance(got, (Tensor, tuple, type(None))):
                return got  # a question, not an operation
            want = plain(*copies[0], **copies[1])
            for a, b in zip(tree_leaves((args, options)), tree_leaves(copies), strict=True):
                if isinstance(a, Tensor) and not torch.equal(a, b):
                    self._note(f"{name} in place", a, b)
            for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
                if isinstance(a, Tensor):
                    self._note(name, a, b)
            return got

        return both

    def _note(self, name: str, got: Tensor, want: Tensor) -> None:
        seen = self.seen.setdefault((name, got.dtype), Seen())
        shape = "x".join(map(str, got.shape))
        seen.calls += 1
        seen.shapes.add(shape)
        a, b = got.float(), want.float()
        rows = (a - b).reshape(-1, a.shape[-1] if a.dim() else 1).norm(dim=1)
        lengths = b.reshape(len(rows), -1).norm(dim=1)
        both = (rows.norm() / lengths.norm().clamp(min=1e-12),
                rows.max() / lengths.mean().clamp(min=1e-12))  # fmt: skip
        error, row = (float(x.nan_to_num(nan=torch.inf)) for x in both)
        if error > seen.worst or row > seen.worst_row:
            seen.at = shape
        seen.worst, seen.worst_row = max(error, seen.worst), max(row, seen.worst_row)


def shapes_of(args: Any) -> str:  # noqa: ANN401
    tensors = (a for a in tree_leaves(args) if isinstance(a, Tensor))
    return ", ".join(f"{str(t.dtype)[6:]} {list(t.shape)} by {list(t.stride())}" for t in tensors)


def awaited(what: str) -> None:
    """Wait for the device; an error is told of ``what`` was asked of it last."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"FAILED  {what}: {str(error).partition(chr(10))[0]}", flush=True)
            raise


class Products:
    """cuBLASLt's products beside torch's, each shape's algorithms run one after the other."""

    def __init__(self, tuned: Any, seen: dict[Any, Seen], note: Any) -> None:  # noqa: ANN401
        self._tuned, self._seen, self._note = tuned, seen, note

    def times(self, x: Tensor, weight: Tensor, dtype: torch.dtype, scales: Any = None) -> Tensor:  # noqa: ANN401
        got = self._tuned.times(x, weight, dtype, scales)
        awaited(f"product of {shapes_of((x, weight))}")
        self._note("product", got, TORCH.times(x, weight, dtype, scales))
        return got

    def add(self, sums: Tensor, x: Tensor, weight: Tensor, scales: Any = None) -> bool:  # noqa: ANN401
        want = sums + TORCH.times(x, weight, sums.dtype, scales)
        added: bool = self._tuned.add(sums, x, weight, scales)
        awaited(f"product that adds of {shapes_of((sums, x, weight))}")
        if added:
            self._note("product that adds", sums, want)
        return added


def attend_of(compared: Any) -> Any:  # noqa: ANN401
    """Return the attention: ours where it takes the keys, else torch's."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, quant: Tensor | None = None) -> Tensor:
        if quant is not None or compared.attends(k.shape[2]):
            return compared.attend(q, k, v, quant=quant)
        return F.scaled_dot_product_attention(q, k, v)

    return attend


def network(kind: Any, name: str, device: torch.device, *, tiny: bool, mini: bool) -> Any:  # noqa: ANN401
    file = MINI / name / "config.json" if mini else GOLDEN / f"{name}.json"
    config = json.loads(file.read_text())
    if tiny:
        config = shrunk(config)
    dtype = torch.float32 if tiny else torch.bfloat16
    with device:
        made = kind.from_config(config)
    return made.to(dtype).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """Return a network's config with few channels, and one block where there were ten."""
    small = dict(config)
    small["block_out_channels"] = [64 * (n + 1) for n in range(len(config["block_out_channels"]))]
    if "attention_head_dim" in config and isinstance(config["attention_head_dim"], list):
        small["attention_head_dim"] = [1, 2, 3]
        small["transformer_layers_per_block"] = [1, 1, 1]
    return small


def step(compared: Compared, plain: UNet, tier: str, shape: Shape, *, one_pass: bool) -> None:
    """Run one step of a tier, every number of it random."""
    device = next(plain.parameters()).device
    library = cublaslt.load(device) if one_pass else None
    tuned = Tuned(library, lambda: False) if library else TORCH
    by = Products(tuned, compared.seen, compared._note)
    unet = FastUNet(plain, compared, attend_of(compared), by, one_pass=one_pass)  # type: ignore[arg-type]
    graph = StepGraph(unet, shape, device, None)
    for buffer in (graph.kv, graph.shifts, graph.noise, graph.table):
        buffer.normal_()
    if graph.guidance is not None:
        graph.guidance.fill_(5.0)
    latents = torch.randn(shape.pictures, 4, shape.height, shape.width, device=device)
    graph.start(latents, latents, torch.ones((), device=device))
    if tier == "fp8":
        to_fp8(unet, calibrate(unet, graph.step, 1))
    if tier == "int8":
        to_int8(unet)
    graph.step()


def show(compared: Compared) -> list[str]:
    """Print a line for each operation, and return the names of those beyond their bounds."""
    failed: list[str] = []
    print(f"\n{'operation':<20} {'result':<14} {'calls':>6} {'shapes':>6} {'error':>9} "
          f"{'worst row':>9}  at")  # fmt: skip
    for (name, dtype), seen in sorted(compared.seen.items(), key=str):
        most, most_row = BOUNDS.get(dtype, EIGHT_BITS)
        bad = seen.worst > most or seen.worst_row > most_row
        failed += [name] if bad else []
        print(f"{name:<20} {str(dtype)[6:]:<14} {seen.calls:>6} {len(seen.shapes):>6} "
              f"{seen.worst:9.2e} {seen.worst_row:9.2e}  {seen.at}{'  BEYOND' if bad else ''}",
              flush=True)  # fmt: skip
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="1024x1024:1,512x512:1,1536x640:1,1024x1024:8")
    parser.add_argument("--tiers", default="bf16,fp8,int8")
    parser.add_argument("--older", action="store_true")
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # of what is compared with
    device, kernels = torch.device("cpu"), reference
    if not options.tiny:
        from packshot.engine.fast import kernels  # type: ignore[no-redef]

        device = torch.device("cuda")
        print(torch.cuda.get_device_name(), end=" ")
    print("torch", torch.__version__, "Python", sys.version.split()[0])
    compared = Compared(kernels)
    shapes = "128x64:1,64x64:2" if options.tiny else options.shapes
    if options.mini:
        shapes = "256x256:1,256x256:4"
    with torch.inference_mode():
        unet = network(UNet, "unet", device, tiny=options.tiny, mini=options.mini)
        for spec in shapes.split(","):
            size, pictures = spec.split(":")
            width, height = (int(side) // 8 for side in size.split("x"))
            for tier in options.tiers.split(","):
                step(compared, unet, tier, Shape(int(pictures), height, width),
                     one_pass=not options.older)  # fmt: skip
        del unet
        decoder = FastDecoder(
            network(VAE, "vae", device, tiny=options.tiny, mini=options.mini), compared
        )  # type: ignore[arg-type]
        side = 8 if options.tiny else 128
        decoder(torch.randn(1, 4, side, side, device=device))
    failed = show(compared)
    worst = {f"{name} {str(dtype)[6:]}": seen.worst for (name, dtype), seen in
             compared.seen.items()}  # fmt: skip
    print(json.dumps({"worst": worst, "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
