"""The camera of a cut-out, shared by the tracer and the composer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FOV_DEGREES = 28.0


def place(
    azimuth: float, elevation: float, zoom: float, height: float, model_height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return position and target; angles in degrees, the model stands on y = 0, its diagonal is 2.

    ``height`` is the share of the model's height that the camera looks at.
    """
    target = np.array([0.0, model_height * height, 0.0])
    distance = 1.12 / math.tan(math.radians(FOV_DEGREES / 2)) / zoom
    a, e = math.radians(azimuth), math.radians(elevation)
    ray = np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
    return target + distance * ray, target


def camera_of(facts: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return position and target of a cut-out's JSON."""
    names = ("azimuth", "elevation", "zoom", "height", "model_height")
    return place(*(facts[name] for name in names))
