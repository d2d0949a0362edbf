"""Networks are compared on one thread, without gradients, with the reference on the same folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from packshot.engine.folder import ModelFolder


@pytest.fixture(autouse=True)
def _quiet_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tiny_sdxl: Path) -> ModelFolder:
    return ModelFolder.open(tiny_sdxl)
