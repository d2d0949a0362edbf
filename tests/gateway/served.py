"""A trivial application served by `packshot.gateway.run`, for tests that start it as a process.

``served.py FOLDER [OPTION=VALUE…]``: FOLDER/config is what it answers with, FOLDER/log gets a line
for each thing that happens; the first line on standard output are the URLs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from packshot.core.errors import InvalidRequest
from packshot.gateway.run import Application, ServeOptions, Worker, serve
from packshot.gateway.wire.server import DoorLimits

FOLDER = Path(sys.argv[1])


def log(line: str) -> None:
    with (FOLDER / "log").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_config() -> str:
    text = (FOLDER / "config").read_text(encoding="utf-8")
    if text in {"bad", "crash"}:
        log("refused")
    if "bad" in text:
        raise InvalidRequest(f"the configuration says {text!r}")
    if "crash" in text:
        raise RuntimeError("a bug in reading the configuration")
    return text


class App:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.text = ""
        self.draining = False

    async def start(self) -> None:
        self.text = read_config()
        log(f"start {self.worker.name}")

    async def reload(self) -> list[str]:
        self.text = read_config()
        log(f"reload {self.worker.name}")
        return ["a note"]

    def drain(self) -> None:
        self.draining = True
        log(f"drain {self.worker.name}")

    async def stop(self, grace_s: float) -> None:
        log(f"stop {self.worker.name} {'in peace' if grace_s > 0 else 'at once'}")

    async def __call__(self, scope, receive, send) -> None:
        path = scope["path"]
        if path == "/die":
            os._exit(7)
        if path == "/slow":
            log("slow began")
            while not (FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)
        status = 503 if path == "/readyz" and self.draining else 200
        body = f"{self.worker.name} {os.getpid()} {self.text}".encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def admin_of(app: Application):
    async def admin(scope, receive, send) -> None:
        assert isinstance(app, App)
        body = f"admin of {app.worker.name} {app.text}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return admin


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    given = dict(each.split("=") for each in sys.argv[2:])
    options = ServeOptions(
        port=0,
        admin_port=0,
        workers=int(given.get("workers", "1")),
        grace_s=float(given.get("grace", "20")),
        unready_s=float(given.get("unready", "0")),
        limits=DoorLimits(),
        on_listen=lambda urls: print(*urls, flush=True),  # noqa: T201
    )
    return serve(App, options, admin_of)


if __name__ == "__main__":
    sys.exit(main())
