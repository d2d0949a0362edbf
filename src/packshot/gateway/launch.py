"""From the command line to a running gateway: options over the file's, what is told at start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from starlette.types import ASGIApp

from packshot.core.errors import InvalidRequest
from packshot.gateway import run
from packshot.gateway.access import Hasher, load_admin_secret, load_pepper, pepper_path
from packshot.gateway.admin import AdminDesk, admin_app, no_purge, spending_of
from packshot.gateway.drainer import drain_the_rest
from packshot.gateway.keystore import open_key_store
from packshot.gateway.plan import Plan, build_plan
from packshot.gateway.settings import load_gateway
from packshot.gateway.snapshots import begin
from packshot.gateway.wire.server import DoorLimits
from packshot.gateway.worker import Worker
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store

__all__ = ["launch"]

Say: TypeAlias = Callable[[str], None]


def launch(
    path: Path, *, host: str, port: int | None, workers: int | None, say: Say, warn: Say
) -> int:
    """Serve until a signal ends it; return the exit code.

    Raises:
        InvalidRequest, OutputError: the configuration has a mistake.
    """
    settings = load_gateway(path)
    load_settings(path)
    plan = build_plan(settings)
    if not plan.providers:
        raise InvalidRequest(f"{path}: no provider is configured: add providers: with keys")
    for note in plan.notes:
        warn(note)
    server = settings.server
    begin(server.folder / "metrics")
    options = run.ServeOptions(
        host=host or server.host,
        port=server.port if port is None else port,
        admin_port=server.admin_port,
        workers=workers or server.workers,
        grace_s=server.grace_s,
        guarded=server.behind_proxy,
        limits=DoorLimits(connections=server.max_connections),
        on_listen=lambda urls: say("listening on " + ", ".join(urls)),
    )

    def worker(each: run.Worker) -> Worker:
        return Worker(path, each.name, drains=each.number == 0)

    code = run.serve(worker, options, lambda app: admin_of(app, path))
    never_ready = code > 1  # and what is wrong is told
    if not never_ready and not drain_the_rest(path, server.grace_s):
        warn(
            "the last entries are in the journals, and not in the store yet: the next start brings "
            "them in, or packshot ledger drain --once"
        )
    return code


def admin_of(app: run.Application, path: Path) -> ASGIApp:
    """Return the admin application, beside the first worker."""
    if not isinstance(app, Worker):
        raise TypeError("the admin application goes with a worker of this gateway")
    settings, money = load_gateway(path), load_settings(path)
    secret = load_admin_secret(settings.access, settings.server.folder / "admin-secret")
    hasher = Hasher(load_pepper(settings.access, pepper_path(settings)))
    store = open_key_store(money.store, hasher)

    async def reload() -> Sequence[str]:
        notes = await app.reload()  # a mistake is told here, before the others hear of it
        os.kill(os.getppid(), signal.SIGHUP)
        return notes

    def spending(key_id: str) -> Mapping[str, Any]:
        with closing(open_store(money.store, read_only=True)) as entries:
            return spending_of(entries, key_id)

    return admin_app(
        AdminDesk(
            store,
            secret,
            lambda: app.gateway.settings.access.virtual_keys,
            spending,
            lambda: health_of(app.gateway.plan),
            reload,
            app.telemetry.page,
            lambda: app.gateway.settings.access.defaults,
            no_purge if app.gateway.cache is None else app.gateway.cache.purge,
        )
    )


def health_of(plan: Plan) -> Mapping[str, Any]:
    """Return how each key is: resting, out, or with a breaker open, and for how long."""
    now = monotonic()
    return {
        provider.name: [
            {
                "key": key.name,
                "in_flight": key.in_flight,
                "rests_s": round(max(0.0, key.ready_at - now), 1),
                "out": key.out,
                "open": {
                    model: round(breaker.open_until - now, 1)
                    for model, breaker in key.breakers.items()
                    if breaker.open_until > now
                },
            }
            for key in provider.keys
        ]
        for provider in plan.providers.values()
    }
