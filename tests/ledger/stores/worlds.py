"""Rows like those of a studio at work, for the tests of the stores."""

from __future__ import annotations

import random
from typing import Any

from packshot.core.ids import new_id
from packshot.ledger.records import Dimensions, Settled, Stamped

NOON = 1_764_072_000_000_000
STAGES = (
    ("caption", "openai", "gpt-4o-mini", ""),
    ("denoise", "", "packshot-mini", "h100"),
    ("decode", "", "packshot-mini", "h100"),
    ("store", "s3", "", ""),
)


def attempt(number: int, *, worker: str = "a", epoch: int = 1, **fields: Any) -> Stamped:
    """Return settled attempt ``number`` of a journal whose every second record is one."""
    draw = random.Random(f"{worker} {epoch} {number}")
    stage, provider, model, device = STAGES[number % len(STAGES)]
    amount = draw.choice((0, 1, draw.randrange(10**6), draw.randrange(10**9)))
    team = draw.randrange(3)
    values: dict[str, Any] = {
        "attempt": new_id(),
        "number": number,
        "held_at": NOON + number * 1_000_000,
        "dispatched_at": NOON + number * 1_000_000,
        "settled_at": NOON + number * 2_000_000_000,
        "outcome": "succeeded",
        "reason": "",
        "dimensions": Dimensions(
            render=f"render-{worker}-{epoch}-{number // len(STAGES)}",
            recipe="packshot",
            stage=stage,
            provider=provider,
            model=model,
            virtual_key=f"key-{team}",
            team=f"team-{team}",
            device=device,
            tags=("season=summer", "é=ü"),
        ),
        "seconds_us": draw.randrange(10**6),
        "input_tokens": draw.randrange(1000),
        "account": stage,
        "amount": amount,
        "depreciation" if device else "payable": amount,
        "caps": ("total@2025-11", f"team:team-{team}@2025-11"),
    }
    return Stamped(worker, epoch, 2 * number, Settled(**{**values, **fields}))


def attempts(count: int, *, first: int = 1, worker: str = "a", epoch: int = 1) -> list[Stamped]:
    """Return a run of settled attempts of one journal."""
    return [attempt(first + k, worker=worker, epoch=epoch) for k in range(count)]
