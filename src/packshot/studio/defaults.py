"""What is taken where nobody chooses. Imports nothing, so that ``--help`` can show it."""

from __future__ import annotations

__all__ = ["GUIDANCE", "MODEL", "OUT", "PREVIEW_NAME", "SAMPLER", "SCHEDULE", "STEPS"]

MODEL = "packshot-mini"
STEPS = 20
GUIDANCE = 3.0
"""Seen best on packshot-mini: at 5 its colours burn out. SDXL itself is mostly used with 5 to 7."""

SAMPLER = "dpmpp-2m"
SCHEDULE = "default"
OUT = "out"
"""The folder that pictures go to."""

PREVIEW_NAME = "preview.png"
"""The thumbnail that ``--preview`` keeps beside the picture."""
