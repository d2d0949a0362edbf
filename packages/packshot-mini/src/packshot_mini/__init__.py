"""The model folder of packshot-mini, in SDXL's layout; see ``model/README.md`` for its card."""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """Return the folder that holds ``model_index.json`` and ``manifest.json``."""
    return Path(__file__).parent / "model"
