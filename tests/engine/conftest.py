"""What the engine's tests share."""

from __future__ import annotations

import torch

# The networks here are tiny: a second thread only waits, and on a busy machine for long.
torch.set_num_threads(1)
