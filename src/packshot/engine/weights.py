"""From safetensors files to a network that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import ModelFolder
from packshot.engine.networks.base import Network

__all__ = ["build", "load"]


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
    try:
        opened: Any = safe_open(file, framework="pt", device=str(device))
        with opened as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no dict: not iterable)
                yield key, tensors.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(f"{file} cannot be read as safetensors: {error}.") from error


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
