"""Threads can be asked for and set, within limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from packshot.core.errors import InvalidRequest
from packshot.engine.threads import MAX_THREADS, thread_count, use_threads


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_set_is_used(count: int) -> None:
    use_threads(count)
    assert thread_count() == torch.get_num_threads() == count


@pytest.mark.parametrize("count", [0, -1, MAX_THREADS + 1])
def test_limits(count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"threads is {count}, expected 1 to 256"):
        use_threads(count)
