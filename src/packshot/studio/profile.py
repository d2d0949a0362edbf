"""A plan under the profiler; nothing is stored, and nothing is booked but the device's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packshot.studio.embeddings import cache_folder
from packshot.studio.store import probe

if TYPE_CHECKING:
    from pathlib import Path

    from packshot.engine.drift import Drift
    from packshot.engine.profile import Profile
    from packshot.studio.plan import Plan

__all__ = ["drifts_of", "profile_plan"]


def profile_plan(plan: Plan, trace: Path | None = None) -> Profile:
    """Load the plan's model and profile its request.

    Raises what loading and rendering do, and `OutputError` where no trace could be written.
    """
    if trace is not None:
        probe(trace)
    from packshot.engine.engine import Engine
    from packshot.engine.profile import profile_render
    from packshot.studio.render import load_engine

    engine = load_engine(plan)
    if not isinstance(engine, Engine):
        raise TypeError(f"{type(engine).__name__} cannot be profiled.")
    return profile_render(engine, plan.request, trace)


def drifts_of(plan: Plan) -> tuple[Drift, ...]:
    """Render the plan's request in each precision, and compare; raises what that does."""
    from packshot.engine.devices import pick_device
    from packshot.engine.drift import drifts

    return drifts(plan.folder, pick_device(plan.device), plan.request, cache_folder() / "tuning")
