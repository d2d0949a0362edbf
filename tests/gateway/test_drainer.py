"""The drain beside the workers: its end, by whichever of its two ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("way", ["signal", "input"])
def test_it_ends_in_peace(tmp_path: Path, way: str) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text("ledger: {store: ledger.db, journal: journal}\n")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "packshot.gateway.drainer", str(path)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    ) as process:
        give_up = time.monotonic() + 60
        while not (tmp_path / "ledger.db").exists():
            assert time.monotonic() < give_up
            time.sleep(0.02)
        if way == "signal":
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
