"""What the engine made, kept in the run's folder: another finish makes no picture anew.

A recipe's later steps (finish, shadow, format) are often changed when the first results are looked
at. The engine is deterministic, so that what it made of the same request, by the same model in the
same precision, can stand for making it again; the device then costs nothing. Files are written
without waiting for the disk: one that a power cut spoilt fails its check sum, and counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from packshot.core.types import Precision, Spacing

if TYPE_CHECKING:
    from packshot.core.types import RenderRequest
    from packshot.engine.results import OnStep, RenderResult
    from packshot.studio.render import Renderer

__all__ = ["MOST_BYTES", "KeptRenders"]

FOLDER = "renders"

MOST_BYTES = 2 << 30
"""Of all files together: 700 pictures of a megapixel, 10,000 of packshot-mini's. What comes then is
not kept."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a result beside its pixels, [pictures, height, width, 3]."""

    shape: tuple[int, int, int, int]
    checksum: int
    warnings: tuple[str, ...]
    spacing: Spacing | None
    model: str
    fingerprint: str
    device: str
    precision: Precision


@dataclass(slots=True)
class KeptRenders:
    """A `Renderer` in front of another, for one thread.

    ``about`` is what decides the pixels beside the request: model, precisions, the code's mark.
    """

    engine: Renderer
    run: Path
    about: str
    most: int = MOST_BYTES
    _used: int = -1

    @property
    def device_kind(self) -> str:
        """What the engine's device is called where prices are."""
        return self.engine.device_kind

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> RenderResult:
        """Return what is kept of the request, with no usage, or have it made; see `Renderer`."""
        path = self.run / FOLDER / self._key(request)
        found = _read(path, request)
        if found is not None:
            return found
        result = self.engine.render(request, on_step=on_step)
        self._keep(path, result)
        return result

    def _key(self, request: RenderRequest) -> str:
        digest = hashlib.sha256(self.about.encode())
        _feed(digest, request)
        return digest.hexdigest()

    def _keep(self, path: Path, result: RenderResult) -> None:
        pixels = np.stack(result.images)
        size = pixels.nbytes
        if self._used < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._used = sum(file.stat().st_size for file in path.parent.iterdir())
        if self._used + size > self.most:
            return
        head = Head(
            tuple(pixels.shape),
            zlib.crc32(pixels.tobytes()),
            result.warnings,
            result.request.spacing,
            result.model,
            result.fingerprint,
            result.device,
            result.precision,
        )
        trial = path.with_name(f"{path.name}.{os.getpid()}")
        content = msgspec.msgpack.encode(head)
        try:
            with trial.open("wb") as file:
                file.write(len(content).to_bytes(4, "little") + content)
                file.write(pixels.tobytes())
            trial.replace(path)
        except OSError:  # the picture is there: keeping it is a courtesy
            trial.unlink(missing_ok=True)
            return
        self._used += size


def _read(path: Path, request: RenderRequest) -> RenderResult | None:
    from packshot.engine.results import RenderResult

    try:
        data = path.read_bytes()
        end = 4 + int.from_bytes(data[:4], "little")
        head = msgspec.msgpack.decode(data[4:end], type=Head)
        pixels = np.frombuffer(data, np.uint8, offset=end).reshape(head.shape)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    if zlib.crc32(data[end:]) != head.checksum:
        return None
    return RenderResult(
        images=tuple(pixels),
        usage=(),
        warnings=head.warnings,
        request=replace(request, spacing=head.spacing),
        model=head.model,
        fingerprint=head.fingerprint,
        device=head.device,
        precision=head.precision,
    )


def _feed(digest: Any, value: object) -> None:  # noqa: ANN401 - hashlib's own class has no name
    """Add a value to a digest, records and arrays by their content."""
    if isinstance(value, np.ndarray):
        array = cast("Any", value)  # of any kind of number
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            digest.update(each.name.encode())
            _feed(digest, getattr(value, each.name))
    else:
        digest.update(f"\0{value!r}".encode())
