"""The exception tree; every error that packshot raises on purpose is in it.

::

    PackshotError
    ├── InvalidRequest       the caller asked for something that cannot be done: fix the call
    │   └── UnknownConcept   the model was never shown what the brief asks for (``--strict``)
    ├── ModelError           a model folder is missing, broken, or not what its manifest says
    │   ├── ModelNotFound
    │   ├── ModelCorrupt
    │   └── UnsafeModel      the folder holds a pickle; packshot reads safetensors only
    ├── OutputError          a result could not be written, or an input file not read
    ├── RenderFailed         the network produced NaN or a constant picture, twice
    └── Cancelled            the caller asked to stop between two steps

Messages say what was got, what was expected and how to fix it. ``exit_code`` is what the command
line returns: 2 for a bad call (as argparse and click do), 3 for a bad model, 4 for a file, 1 for a
failure of ours, 130 for Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "Cancelled",
    "InvalidRequest",
    "ModelCorrupt",
    "ModelError",
    "ModelNotFound",
    "OutputError",
    "PackshotError",
    "RenderFailed",
    "UnknownConcept",
    "UnsafeModel",
    "unknown_name",
]


class PackshotError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class InvalidRequest(PackshotError):
    """A parameter is missing, out of range, or names something that does not exist."""

    exit_code = 2


class UnknownConcept(InvalidRequest):
    """The brief names a product that the model does not know, and the caller was strict."""


class ModelError(PackshotError):
    """Base of everything that is wrong with a model folder."""

    exit_code = 3


class ModelNotFound(ModelError):
    """The folder, or a file that it must hold, is not there."""


class ModelCorrupt(ModelError):
    """A checksum, a key set, a shape or a JSON file is not what it should be."""


class UnsafeModel(ModelError):
    """The folder holds a pickle (``.bin``, ``.ckpt``, ``.pt``, ``.pth``, ``.pkl``)."""


class OutputError(PackshotError):
    """A file could not be written or read."""

    exit_code = 4


class RenderFailed(PackshotError):
    """The picture came out as NaN or as one flat colour, in full precision too."""


class Cancelled(PackshotError):
    """A render was stopped between two steps at the caller's wish."""

    exit_code = 130


def unknown_name(what: str, got: str, valid: Iterable[str]) -> InvalidRequest:
    """Return the error for a name that is not in a fixed set: the nearest, and all valid ones."""
    names = sorted(valid)
    near = get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InvalidRequest(f"unknown {what} {got!r}.{hint} Valid: {', '.join(names)}.")
