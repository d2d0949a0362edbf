"""Where pictures go: names, formats, and writing a file whole or not at all."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packshot.core.errors import InvalidRequest, OutputError
from packshot.studio.defaults import OUT

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FORMATS",
    "Target",
    "encode",
    "format_of",
    "probe",
    "slug",
    "targets",
    "write_file",
    "write_picture",
]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File extensions that can be written, and Pillow's names for them."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {"compress_level": 6},
    "JPEG": {"quality": 92, "subsampling": 0, "optimize": True},
    "WEBP": {"quality": 92, "method": 4},
}
"""92 is where a 256 px product shot stops showing blocks; full chroma keeps red edges clean."""

SLUG_LENGTH = 48


@dataclass(frozen=True, slots=True)
class Target:
    """One file to be written. Without ``overwrite``, a taken name gets "-2", "-3", … ."""

    path: Path
    overwrite: bool


def format_of(path: Path) -> str:
    """Return Pillow's name of the format that the extension asks for; `InvalidRequest` if none."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMATS)
        got = path.suffix or "no extension"
        raise InvalidRequest(f"cannot write {path.name!r}: got {got}, expected {known}") from None


def targets(out: str | None, brief: str, seeds: Sequence[int]) -> tuple[Target, ...]:
    """Return where each seed's picture goes.

    ``out`` is a file (numbered where there are several pictures), a folder, or None for ``out/``.

    Raises:
        InvalidRequest: it is a file of a kind that cannot be written, or no place of this machine.
    """
    if out is not None and "://" in out:
        raise InvalidRequest(
            f"got {out}, expected a file or a folder: `packshot batch` writes to buckets"
        )
    path = Path(out).expanduser() if out else Path(OUT)
    if out is None or path.is_dir() or out.endswith("/") or not path.suffix:
        return tuple(Target(path / f"{slug(brief)}-{seed}.png", overwrite=False) for seed in seeds)
    format_of(path)
    if len(seeds) == 1:
        return (Target(path, overwrite=True),)
    named = (path.with_stem(f"{path.stem}-{k}") for k in range(1, len(seeds) + 1))
    return tuple(Target(name, overwrite=True) for name in named)


def slug(text: str) -> str:
    """Return a file name's worth of ``text``: lower-case ASCII words joined by hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    joined = "-".join(re.findall(r"[a-z0-9]+", plain))
    if len(joined) > SLUG_LENGTH:
        joined = joined[: SLUG_LENGTH + 1].rpartition("-")[0] or joined[:SLUG_LENGTH]
    return joined or "render"


def probe(path: Path) -> None:
    """Make the folder of ``path`` and try to write in it; `OutputError` if that cannot be done."""
    trial = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        wrong = next(part for part in path.parents if part.exists())
        raise OutputError(f"cannot write {path}: {wrong} is not a folder") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")


def encode(image: Image, image_format: str, extra: Mapping[str, Any] | None = None) -> bytes:
    """Return the file of ``image``, as "PNG", "JPEG" or "WEBP".

    ``extra`` are Pillow's arguments: metadata, and what is to be set otherwise than by `SETTINGS`.
    """
    file = BytesIO()
    image.save(file, format=image_format, **{**SETTINGS[image_format], **(extra or {})})
    return file.getvalue()


def write_picture(image: Image, target: Target, extra: Mapping[str, Any] | None = None) -> Path:
    """Encode ``image`` as the target's name asks for, and write it: `encode`, `write_file`."""
    return write_file(encode(image, format_of(target.path), extra), target)


def write_file(data: bytes, target: Target) -> Path:
    """Write ``data`` and return its path.

    The file appears under its name only when it is whole, so an interrupt leaves none.

    Raises:
        OutputError: the disk is full, the folder went away, and so on.
    """
    temporary = _temporary(target.path)
    try:
        temporary.write_bytes(data)
        path = target.path if target.overwrite else _free(target.path)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {target.path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _free(path: Path) -> Path:
    """Return ``path``, or its first numbered sibling that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return candidate
