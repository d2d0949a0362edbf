"""DESIGN §4, invariant 10: every limit is in the reference, also those that nobody can change."""

from __future__ import annotations

from pathlib import Path

import pytest

from packshot.core import sse
from packshot.gateway import (
    access,
    content,
    dispatch,
    intake,
    job,
    keys,
    keystore,
    log,
    once,
    plan,
    relay,
    traces,
    virtual_key,
)
from packshot.gateway.wire.pool import PoolLimits
from packshot.gateway.wire.server import DoorLimits
from packshot.providers import delays
from packshot.state import limits

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
DOOR, POOL = DoorLimits(), PoolLimits()
KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    "said",
    [
        f"headers have {DOOR.head // KIB} KiB, {DOOR.headers} lines and {DOOR.head_s:g} s",
        f"at {DOOR.body_rate // KIB} KiB/s or more on average once {DOOR.body_s:g} s have passed",
        f"{DOOR.pipelined} requests may wait behind one on a connection",
        f"it may rest for {DOOR.idle_s:g} s, and take nothing of its answer for {DOOR.write_s:g} s",
        f"{job.MAX_MEMBERS:,} members of JSON objects, `n` {job.MAX_CHOICES}",
        f"`max_tokens` {job.MAX_OUTPUT:,}",
        f"{intake.MAX_TAGS} tags of {intake.MAX_NAME} characters",
        f"an idempotency key of {once.MAX_KEY}",
        f"{access.FAILURES.limit} wrong keys a minute",
        f"{POOL.waiting:,} calls that wait for a connection",
        f"{sse.LONGEST_EVENT // MIB} MiB of an event that has not ended",
        f"{dispatch.MAX_ERROR_BYTES // KIB} KiB of an error",
        f"{('none', 'a day')[delays.LONGEST_DELAY_S == 86_400]} of a delay",
        f"{relay.MAX_DRAINS} streams read on without their callers",
        f"{plan.MAX_TARGETS:,} targets remembered that callers named",
        f"{keys.MAX_BREAKERS} models per key whose health is kept apart",
        f"{limits.MAX_KEYS:,} rate limits",
        f"{log.MAX_LINES:,} log lines, {traces.MAX_SPANS:,} spans",
        f"{content.MAX_WAITING // MIB} MiB of contents that wait",
        f"{keystore.MAX_KEYS:,} issued keys",
        f"{virtual_key.MAX_PATTERNS} names in each list of a virtual key",
    ],
)
def test_the_reference_has_it(said: str) -> None:
    assert said in " ".join(PAGE.read_text(encoding="utf-8").split())
