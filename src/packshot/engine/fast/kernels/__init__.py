# type: ignore  # noqa: PGH003 (Triton's language has no types, nor is it installed everywhere)
"""The operations of `reference` as Triton kernels. Imported where there is a GPU, and in its tests.

Memory moves once where it can. Nothing adds in an order that changes from run to run: there are no
atomic additions.
"""

from packshot.engine.fast.kernels.attention import ask, ask_pays, attend, attends
from packshot.engine.fast.kernels.conv import convolve, convolve_pays
from packshot.engine.fast.kernels.ends import advance, softmax, to_uint8
from packshot.engine.fast.kernels.launch import rehearsal, rehearsing
from packshot.engine.fast.kernels.maps import group_norm, interleave, join
from packshot.engine.fast.kernels.tokens import (
    from_int32,
    gate,
    geglu,
    layer_norm,
    to_int8,
)

__all__ = [
    "advance",
    "ask",
    "ask_pays",
    "attend",
    "attends",
    "convolve",
    "convolve_pays",
    "from_int32",
    "gate",
    "geglu",
    "group_norm",
    "interleave",
    "join",
    "layer_norm",
    "rehearsal",
    "rehearsing",
    "softmax",
    "to_int8",
    "to_uint8",
]
