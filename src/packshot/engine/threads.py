"""How many threads share a sum on the CPU; a picture's bits depend on it, as on the seed."""

from __future__ import annotations

import torch

from packshot.core.errors import InvalidRequest

__all__ = ["MAX_THREADS", "thread_count", "use_threads"]

MAX_THREADS = 256


def thread_count() -> int:
    """Return how many threads one operation of torch uses in this process."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Make every operation of this process use ``count`` threads, also more than there are cores.

    Raises InvalidRequest unless it is 1 to ``MAX_THREADS``.
    """
    if not 1 <= count <= MAX_THREADS:
        raise InvalidRequest(f"threads is {count}, expected 1 to {MAX_THREADS}.")
    torch.set_num_threads(count)
