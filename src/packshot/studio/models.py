"""Where models are found: by the name of an installed package, or as a folder."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

from packshot.core.errors import ModelNotFound, OutputError
from packshot.engine.folder import MANIFEST, ModelFolder

__all__ = ["PACKAGED", "export_model", "find_model", "open_model"]

PACKAGED = {"packshot-mini": "packshot_mini"}
"""Models that come as a Python package, and its module; ``model_path()`` of it is the folder."""


def open_model(model: str, *, verify: bool = False) -> ModelFolder:
    """Find a model and check its folder; ``verify`` checks every sum, however large it is.

    Raises:
        ModelError: `ModelNotFound`, `ModelCorrupt` or `UnsafeModel`; torch is not imported.
    """
    return ModelFolder.open(find_model(model), verify=verify)


def find_model(model: str) -> Path:
    """Return the folder of a packaged model or of a path; `ModelNotFound` says the remedy."""
    if model not in PACKAGED:
        path = Path(model).expanduser()
        if not path.is_dir():
            known = ", ".join(sorted(PACKAGED))
            raise ModelNotFound(
                f"no model {model!r}: got neither a folder nor one of the packaged models ({known})"
            )
        return path
    try:
        module = import_module(PACKAGED[model])
    except ModuleNotFoundError as error:
        raise ModelNotFound(
            f"the model {model!r} is not installed; run `pip install packages/{model}` in the "
            "repository, or give --model the path of a model folder"
        ) from error
    return Path(module.model_path())


def export_model(model: str, to: Path) -> int:
    """Copy a model's folder to the new folder ``to``, check the copy, and return its files' number.

    The folder appears under its name only when it is whole and checked.

    Raises:
        ModelError: the model, or the copy, is not what its manifest says.
        OutputError: ``to`` exists already and is not an empty folder, or cannot be written.
    """
    source = open_model(model)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise OutputError(f"cannot write {to}: it exists; give the name of a new folder")
    parts = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(source.path, parts, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        ModelFolder.open(parts, verify=(source.path / MANIFEST).is_file())
        parts.replace(to)
    except OSError as error:
        raise OutputError(f"cannot write {to}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return sum(file.is_file() for file in to.rglob("*"))
