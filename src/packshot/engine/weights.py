"""From safetensors files to a network that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.base import Network

__all__ = ["Sent", "build", "load", "uploaded"]

STAGE = 32 << 20
"""Bytes of each of the two pinned buffers that weights go to a GPU through."""

N = TypeVar("N", bound=Network)


def load(
    network: type[N],
    folder: ModelFolder,
    component: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> N:
    """Return the component as a ``network``, ready for inference, on ``device`` in ``dtype``.

    The network is built without memory (``meta``) and takes the tensors as they are read, so the
    peak is one model. ``channels_last`` lays convolutions out as NHWC. Raises ``ModelCorrupt`` if
    the config cannot be built, a file cannot be read, or names and shapes are not the network's.
    """
    net = build(network, folder, component)
    state: dict[str, Tensor] = {}
    for file in folder.weights(component):
        for published, tensor in _read(file, torch.device(device)):
            key = network.adapt_key(published)
            if key in state:
                raise ModelCorrupt(f"{file}: the weight {published} is there twice.")
            if key is not None:
                nhwc = channels_last and tensor.dim() == 4
                layout = torch.channels_last if nhwc else torch.preserve_format
                state[key] = tensor.to(dtype, memory_format=layout)
    _compare(folder.directory(component), net.state_dict(), state)
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def build(network: type[N], folder: ModelFolder, component: str) -> N:
    """Return the component as a ``network`` without memory (``meta``), and so without weights.

    Raises ``ModelCorrupt`` if its config cannot be built.
    """
    directory = folder.directory(component)
    try:
        with torch.device("meta"), _Unfilled():
            return network.from_config(folder.config(component))
    except ModelCorrupt as error:
        raise ModelCorrupt(f"{directory / 'config.json'}: {error}") from error
    except (ValueError, RuntimeError, ZeroDivisionError) as error:  # torch's own checks of sizes
        raise ModelCorrupt(f"{directory / 'config.json'} cannot be built: {error}.") from error


class _Unfilled(TorchFunctionMode):
    """Leaves the weights of a new network as they are, for those of the file are to replace them.

    To draw normals on ``meta``, torch would import its compiler: two seconds for nothing.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _read(file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    staged = device.type == "cuda"
    try:
        opened: Any = safe_open(file, framework="pt", device="cpu" if staged else str(device))
        with opened as tensors:
            keys: list[str] = list(tensors.keys())
            mapped = ((key, tensors.get_tensor(key)) for key in keys)
            yield from _through_pinned(mapped, device) if staged else mapped
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{file} cannot be read as safetensors: {error}.") from error


class Sent(Protocol):
    """What tells when a buffer has been read, as `torch.cuda.Event` does."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


def _through_pinned(
    mapped: Iterable[tuple[str, Tensor]], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    with torch.cuda.device(device):
        stages = [torch.empty(STAGE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        sent: list[Any] = [torch.cuda.Event() for _ in stages]
        yield from uploaded(mapped, device, stages, sent)


def uploaded(
    mapped: Iterable[tuple[str, Tensor]],
    device: torch.device,
    stages: Sequence[Tensor],
    sent: Sequence[Sent],
) -> Iterator[tuple[str, Tensor]]:
    """Copy tensors of a mapped file to ``device``, a piece at a time by ``stages`` in turn.

    While one of these is on its way all threads fill the other. Left to itself the driver copies
    what is not pinned by one thread, at a tenth of what the bus carries.

    Args:
        mapped: contiguous tensors by their names.
        stages: buffers of as many bytes each, pinned ones where ``device`` is a GPU.
        sent: for each of them whether it has been read and may be filled again.
    """
    piece = 0
    for key, tensor in mapped:
        whole = torch.empty_like(tensor, device=device)
        source, target = (each.view(-1).view(torch.uint8) for each in (tensor, whole))
        for at in range(0, len(source), len(stages[0])):
            turn = piece % len(stages)
            part = source[at : at + len(stages[turn])]
            stage = stages[turn][: len(part)]
            sent[turn].synchronize()
            stage.copy_(part)
            target[at : at + len(part)].copy_(stage, non_blocking=True)
            sent[turn].record()
            piece += 1
        yield key, whole


def _compare(directory: Path, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{key} is {list(got[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in got and got[key].shape != tensor.shape
    ]
    faults = {
        "missing": [key for key in expected if key not in got],
        "unexpected": [key for key in got if key not in expected],
        "of the wrong shape": shapes,
    }
    said = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if said:
        raise ModelCorrupt(
            f"{directory}: the weights do not fit the config: {'; '.join(said)}. "
            "Expected exactly the published names and shapes."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
