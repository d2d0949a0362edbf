"""What was measured for a model on a GPU, kept in a file: the next process need not measure again.

One small JSON file for each GPU, model and precision: which kernel computes an attention and which
algorithm a product, shape by shape, and how large the inputs of fp8 get. It holds for one driver,
one torch and one state of our code; a file of others, or a damaged one, is refused with a sentence,
and written anew. With the same file every process takes the same kernels and scales; cuDNN still
chooses its convolutions in each by measuring, so that bits are promised for one process only.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import torch

from packshot.engine.fast import cublaslt
from packshot.engine.fast.attention import NAMES

if TYPE_CHECKING:
    from packshot.engine.fast.products import Chosen
    from packshot.engine.model import Model

__all__ = ["MAX_BYTES", "MAX_FILES", "MAX_SHAPES", "Key", "Tuning", "key_of"]

MAX_SHAPES = 4096
"""Attentions that are kept, and products: the newest. Nine sizes in two batches have some forty of
the ones and some four hundred of the others."""

MAX_BYTES = 1 << 20
"""Of a file that is read; 4,096 shapes of either take two fifths of it."""

MAX_FILES = 64
"""In the folder: the oldest go."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class Key(msgspec.Struct, frozen=True):
    """What an entry holds for: names and versions as their makers give them, sums in hex."""

    device: str
    driver: str
    torch: str
    model: str
    precision: str
    code: str


class _Choice(msgspec.Struct, frozen=True):
    """``shape`` as `attention.Attention` has it: batch, heads, queries, width, keys."""

    shape: tuple[int, ...]
    kernel: str


class _Algorithm(msgspec.Struct, frozen=True):
    """``shape`` as `products.Chosen` has it, and a place in the library's list for it."""

    shape: tuple[int, ...]
    place: Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct, frozen=True):
    key: Key
    attention: tuple[_Choice, ...]
    products: tuple[_Algorithm, ...]
    fp8_largest: tuple[float, ...]


class _File(msgspec.Struct):
    """``sum`` is the SHA-256 of the bytes of ``entry``."""

    sum: str
    entry: msgspec.Raw


class Tuning:
    """What is known of a model on a device, from ``folder`` and to it; None keeps it in memory.

    ``attention``, ``products`` and ``fp8_largest`` are read when it is made and may be added to;
    `keep` writes them. ``told`` has sentences for the user: what was refused, or not written.
    """

    def __init__(self, folder: Path | None, key: Key) -> None:
        name = f"{key.device} {key.model} {key.precision}".encode()
        self.path = None if folder is None else folder / f"{_sum(name)[:16]}.json"
        self.key = key
        self.attention: dict[tuple[int, ...], str] = {}
        self.products: Chosen = {}
        self.fp8_largest: list[float] = []
        self.told: list[str] = []
        if self.path is not None:
            self._read(self.path)
        self._kept = self._entry()

    def keep(self) -> None:
        """Write what is known, whole or not at all, where it is not in the file already."""
        entry = self._entry()
        if self.path is None or entry == self._kept:
            return
        self._kept = entry
        content = msgspec.json.encode(entry)
        file = msgspec.json.encode(_File(_sum(content), msgspec.Raw(content)))
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(file)
            part.replace(self.path)
            _drop_oldest(self.path.parent)
        except OSError as error:
            self.told.append(
                f"the tuning of this GPU cannot be kept in {self.path} "
                f"({error.strerror or error}); the next process measures again."
            )
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _entry(self) -> _Entry:
        kernels = list(self.attention.items())[-MAX_SHAPES:]
        attention = tuple(_Choice(shape, kernel) for shape, kernel in kernels)
        newest = list(self.products.items())[-MAX_SHAPES:]
        products = tuple(_Algorithm(shape, place) for shape, place in newest)
        return _Entry(self.key, attention, products, tuple(self.fp8_largest))

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            entry = _checked(path)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            self.told.append(
                f"the tuning in {path} is damaged ({error}); it is measured and written anew."
            )
            return
        changed = [
            f"{name} {getattr(entry.key, name)}, and this is {getattr(self.key, name)}"
            for name in Key.__struct_fields__
            if getattr(entry.key, name) != getattr(self.key, name)
        ]
        if changed:
            self.told.append(
                f"the tuning in {path} was made with {'; with '.join(changed)}: it is measured and "
                "written anew."
            )
            return
        self.attention.update((choice.shape, choice.kernel) for choice in entry.attention)
        self.products.update((algorithm.shape, algorithm.place) for algorithm in entry.products)
        self.fp8_largest[:] = entry.fp8_largest


def key_of(model: Model) -> Key:
    """Return what the tuning of a model on its device depends on."""
    name, driver = model.device.type, "none"
    if model.device.type == "cuda":
        name, driver = torch.cuda.get_device_name(model.device), _driver()
    built = (
        f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"cuBLAS {cublaslt.version()}"
    )
    return Key(name, driver, built, model.folder.fingerprint, model.precision, _code())


def _checked(path: Path) -> _Entry:
    """Return what a file holds; ValueError where it is not what was written."""
    with path.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    file = msgspec.json.decode(content, type=_File)
    if _sum(file.entry) != file.sum:
        raise ValueError("its sum is wrong")
    entry = msgspec.json.decode(file.entry, type=_Entry)
    unknown = sorted({choice.kernel for choice in entry.attention} - set(NAMES))
    if unknown:
        raise ValueError(f"it names kernels that are not there: {', '.join(unknown)}")
    if not all(isfinite(top) and top >= 0 for top in entry.fp8_largest):
        raise ValueError("a scale in it is no size")
    return entry


def _drop_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[MAX_FILES:]:
        file.unlink(missing_ok=True)


def _driver() -> str:
    """Return the driver's line as the kernel module tells it."""
    try:
        return NVIDIA_DRIVER.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return "unknown"


@cache
def _code() -> str:
    """Return a sum over the engine's source, 16 hex digits."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _sum(content: bytes | msgspec.Raw) -> str:
    return hashlib.sha256(bytes(content)).hexdigest()
