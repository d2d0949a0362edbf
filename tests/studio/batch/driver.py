"""A run in a process of its own, to be killed: ``python -m tests.studio.batch.driver FOLDER``.

``driver.json`` in the folder says what to make and where it goes; what became of the run is written
to ``ended`` there. With a ``packshot.yaml`` that has a route, captions are asked for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from packshot.cli.batch_captions import RouteScribe
from packshot.cli.booking import Books as CliBooks
from packshot.gateway.client import run as run_client
from packshot.ledger.wiring import local_ledger
from packshot.studio.batch.captions import Ahead, Waiting
from packshot.studio.batch.report import catch_up
from packshot.studio.batch.runner import Rules, Run
from packshot.studio.batch.state import RunState
from packshot.studio.objects import Objects
from tests.studio.batch.world import QUICK, World


def die_at(number: int, *, after: bool) -> None:
    """Have the process kill itself at a transaction of the state, counted from the plan's own."""
    whole, count = RunState._transaction, [0]

    @contextmanager
    def counted(state: RunState):
        count[0] += 1
        mine = count[0] == number
        if mine and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        with whole(state) as base:
            yield base
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)

    RunState._transaction = counted  # type: ignore[method-assign]


def main() -> None:
    """Make what is left."""
    folder = Path(sys.argv[1])
    os.chdir(folder)
    told = json.loads(Path("driver.json").read_text())
    if told.get("die_at"):
        die_at(told["die_at"], after=told["after"])
    world = World(folder, told["briefs"], store=Objects(told["out"], part=5 << 20), **told["stub"])
    ledger = local_ledger(world.ledger_settings, world.book)
    setup = world.setup(ledger, QUICK, Rules(in_a_row=30, resend_s=0.05))
    if told["model"]:
        books = CliBooks(None, None, ledger, world.book)  # type: ignore[arg-type]

        def scribe() -> RouteScribe:
            return RouteScribe(books, told["model"], "stub", "batch-1")

        waiting = Waiting(probe_s=0.2)
        object.__setattr__(setup, "captions", Ahead(world.state, scribe, "1", run_client, waiting))
    world.drain()
    with world.opened() as store:
        catch_up(world.state, store, setup.books)
    tally = Run(world.state, setup).go()
    ledger.close()
    world.drain()
    Path("ended").write_text(f"{tally.delivered} {tally.quarantined} {tally.failed_attempts}")


if __name__ == "__main__":
    main()
