"""What is taken where nobody chooses. Imports nothing, so that ``--help`` can show it."""

from __future__ import annotations

__all__ = [
    "GUIDANCE",
    "MASKED_STRENGTH",
    "MODEL",
    "OUT",
    "PREVIEW_NAME",
    "SAMPLER",
    "SCHEDULE",
    "STEPS",
    "STRENGTH",
]

MODEL = "packshot-mini"
STEPS = 20
GUIDANCE = 3.0
"""Seen best on packshot-mini: at 5 its colours burn out. SDXL itself is mostly used with 5 to 7."""

STRENGTH = 0.6
"""Of a start picture: its composition stays, and most of its surfaces are made anew."""

MASKED_STRENGTH = 1.0
"""Within a mask: what may change is replaced, and what may not is kept by the mask."""

SAMPLER = "dpmpp-2m"
SCHEDULE = "default"
OUT = "out"
"""The folder that pictures go to."""

PREVIEW_NAME = "preview.png"
"""The thumbnail that ``--preview`` keeps beside the picture."""
