"""A brief goes in, a product photograph comes out.

Every public name is here, and is imported when it is first used: ``import packshot`` brings neither
torch nor NumPy. The shortest way to a picture::

    import packshot

    plan = packshot.plan(packshot.Options("white sneakers on a sandy beach, bright daylight"))
    delivery = packshot.render(plan, packshot.load_engine(plan))
    print(delivery.pictures[0].path)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packshot.core.errors import (
        Cancelled,
        InvalidRequest,
        ModelCorrupt,
        ModelError,
        ModelNotFound,
        OutputError,
        PackshotError,
        RenderFailed,
        UnknownConcept,
        UnsafeModel,
    )
    from packshot.core.types import Original, RenderRequest, Usage
    from packshot.engine.engine import Engine
    from packshot.engine.results import Progress, RenderResult
    from packshot.studio.plan import Options, Plan, plan
    from packshot.studio.render import Delivery, load_engine, render

__all__ = [
    "Cancelled",
    "Delivery",
    "Engine",
    "InvalidRequest",
    "ModelCorrupt",
    "ModelError",
    "ModelNotFound",
    "Options",
    "Original",
    "OutputError",
    "PackshotError",
    "Plan",
    "Progress",
    "RenderFailed",
    "RenderRequest",
    "RenderResult",
    "UnknownConcept",
    "UnsafeModel",
    "Usage",
    "__version__",
    "load_engine",
    "plan",
    "render",
]

__version__ = "0.1.0"

_HOMES = {
    "core.errors": (
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
    ),
    "core.types": ("Original", "RenderRequest", "Usage"),
    "engine.engine": ("Engine",),
    "engine.results": ("Progress", "RenderResult"),
    "studio.plan": ("Options", "Plan", "plan"),
    "studio.render": ("Delivery", "load_engine", "render"),
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
