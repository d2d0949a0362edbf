"""From a checked model folder to an engine; this is where torch is imported, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from packshot.studio.embeddings import cache_folder

if TYPE_CHECKING:
    from packshot.core.types import Precision
    from packshot.engine.embeddings import EmbeddingCache
    from packshot.engine.engine import Engine
    from packshot.engine.folder import ModelFolder

__all__ = ["load_model"]


def load_model(
    folder: ModelFolder,
    device: str,
    precisions: tuple[Precision, Precision],
    on_device: Callable[[str], None] | None = None,
    embeddings: EmbeddingCache | None = None,
    *,
    graphs: bool = True,
    invariant: bool = False,
) -> Engine:
    """Return the engine for a model, whose folder is not checked a second time.

    ``precisions`` are that of the networks, and that of the VAE.
    ``on_device`` is told the kind of the device before anything is loaded there; what it raises
    comes out. ``embeddings`` keeps those of texts (`packshot.studio.embeddings`). ``graphs`` and
    ``invariant`` as `packshot.engine.runner.pick_runner` takes them.
    """
    from packshot.engine.devices import device_kind, pick_device
    from packshot.engine.engine import Engine
    from packshot.engine.model import Model
    from packshot.engine.runner import pick_runner, preloading

    chosen = pick_device(device)
    if on_device is not None:
        on_device(device_kind(chosen))
    with preloading(chosen, precisions[0]):
        model = Model(folder, chosen, *precisions)
    runner = pick_runner(
        model, graphs=graphs, invariant=invariant, tuning=cache_folder() / "tuning"
    )
    return Engine(model, embeddings, runner)
