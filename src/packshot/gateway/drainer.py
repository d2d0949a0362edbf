"""The drain beside the workers: a process of its own, so that moving rows takes nobody's turn.

The first worker starts it (`Drainer`), and starts it again should it die. It ends when its standard
input does: no worker, no drain. When all workers have ended, the supervisor has the rest brought in
(`drain_the_rest`). As a program it is ``python -m packshot.gateway.drainer FILE``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic

from packshot.core.errors import PackshotError
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import drain_of

__all__ = ["Drainer", "drain_the_rest", "main"]

AGAIN_S = 1.0
"""Wait before a drain that ended is started again; doubled, at most `AGAIN_MAX_S`."""

AGAIN_MAX_S = 30.0


class Drainer:
    """Keeps a drain running from `start` until `stop`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it."""
        self._task = asyncio.create_task(self._keep())

    async def stop(self, grace_s: float) -> None:
        """Let it bring in what is there, and end it."""
        process = self._process
        if self._task is not None:
            self._task.cancel()
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        wait = AGAIN_S
        while True:
            began = monotonic()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "packshot.gateway.drainer", str(self._path)),
                    stdin=asyncio.subprocess.PIPE,
                )
                await self._process.wait()
            except OSError as error:  # no memory, no processes: there may be some again
                print(f"drain: cannot be started: {error}", file=sys.stderr)  # noqa: T201 - as below
            if monotonic() - began > AGAIN_MAX_S:
                wait = AGAIN_S
            await asyncio.sleep(wait)
            wait = min(2 * wait, AGAIN_MAX_S)


def drain_the_rest(path: Path, longest_s: float) -> bool:
    """Bring in what is left in the journals once all workers have ended; tell whether it is done.

    The drain beside the first worker ends with that one, and the others may end later.
    """
    words = (sys.executable, "-P", "-m", "packshot.gateway.drainer", str(path))
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, timeout=longest_s, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0


def main() -> int:
    """Drain the journals of the configuration named on the command line."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the terminal sends them to all of its processes
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    threading.Thread(target=_until_the_end, args=(stop,), daemon=True).start()
    try:
        settings = load_settings(Path(sys.argv[1]))
        with contextlib.closing(open_store(settings.store)) as store:
            drain = drain_of(settings, store)
            drain.run(stop)
            drain.step()  # what came while it was told to end
    except PackshotError as error:
        print(f"drain: {error}", file=sys.stderr)  # noqa: T201 - its one way to say so
        return error.exit_code
    return 0


def _until_the_end(stop: threading.Event) -> None:
    """Wait until whoever started this process is gone."""
    # Not through a buffer: its lock, held here at the interpreter's end, would be a fatal error.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
