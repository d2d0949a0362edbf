"""Runs the gateway: listeners, worker processes, and their end.

One process, the supervisor, binds the addresses, starts the workers, starts them again when they
die, and passes signals on. It has no event loop, no threads, and none of the application::

    SIGTERM, SIGINT   not ready, take no new connections, finish what is in flight, end
    a second one      end at once
    SIGHUP            every worker reads its configuration again; a bad one changes nothing
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from packshot.core.errors import InvalidRequest, PackshotError
from packshot.gateway.wire.server import Door, DoorLimits

__all__ = ["Application", "MakeAdmin", "MakeApp", "ServeOptions", "Worker", "check_host", "serve"]

logger = logging.getLogger("packshot.gateway")

BACKLOG = 2048
"""Connections that wait to be accepted; the kernel's own limit may be lower."""

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})

QUICK_S = 5.0
"""A worker that dies younger waits before it is started again: 0.1 s, doubled, up to 10 s."""

NEVER_READY = 64
"""Added to the exit code of a worker that ended before it had started."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of the workers this process is; ``name`` is the same after each restart."""

    number: int
    workers: int

    @property
    def name(self) -> str:
        """What its journal, its metrics and its log lines are called."""
        return f"gateway-{self.number}"


class Application(Protocol):
    """What a worker serves: an ASGI application with a beginning and an end."""

    def __call__(self, scope: Any, receive: Any, send: Any, /) -> Awaitable[None]:  # noqa: ANN401
        """Answer one request."""
        ...

    async def start(self) -> None:
        """Get ready; requests come after this.

        Raises:
            PackshotError: it cannot be served. On the first start that ends the gateway.
        """
        ...

    async def reload(self) -> Sequence[str]:
        """Read the configuration again; return what is to be told of it.

        Raises:
            PackshotError: it is not good; everything is as it was.
        """
        ...

    def drain(self) -> None:
        """Say no to readiness probes from now on: the end is near."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Put everything away; no request comes any more. ``grace_s`` is what is left for it."""
        ...


AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application, whoever's types it has."""

MakeApp: TypeAlias = Callable[[Worker], Application]
MakeAdmin: TypeAlias = Callable[[Application], AsgiApp]
"""Makes what the first worker serves on the second port; it begins and ends with the first."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where and how to serve.

    ``port`` 0 takes a free one; so does ``admin_port``, and None serves no admin application.
    ``guarded``: callers have to prove who they are, and TLS is ended here or by a proxy in front;
    without it only loopback addresses are listened on. ``grace_s`` is for requests in flight when
    the end comes; ``unready_s`` is how long before that, after the readiness probe has said no,
    connections are still taken, for a balancer that takes its time. ``on_listen`` is called in the
    supervisor with the URLs, when connections are queued but no worker need be ready yet.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    workers: int = 1
    grace_s: float = 30.0
    unready_s: float = 0.0
    guarded: bool = False
    tls: ssl.SSLContext | None = None
    limits: DoorLimits = field(default_factory=DoorLimits)
    on_listen: Callable[[list[str]], None] | None = None


def serve(make_app: MakeApp, options: ServeOptions, make_admin: MakeAdmin | None = None) -> int:
    """Serve until a signal ends it; return the exit code, 0 if every request was finished.

    Call it from the main thread of a process that has no other threads: it forks. ``make_app`` is
    called in each worker.

    Raises:
        InvalidRequest: an address cannot be listened on, or must not be.
    """
    if options.workers < 1:
        raise InvalidRequest(f"workers must be 1 or more, got {options.workers}")
    with _listening(options, admin=make_admin is not None) as (sockets, admin):
        urls = [_url(each, options.tls) for each in (sockets[:1] + ([admin] if admin else []))]
        if options.on_listen is not None:
            options.on_listen(urls)
        logger.info("listening on %s with %d workers", " and ".join(urls), options.workers)
        return _Supervisor(make_app, make_admin, options, sockets, admin).run()


# ------------------------------------------------------------------------------ addresses


@contextmanager
def _listening(
    options: ServeOptions, *, admin: bool
) -> Generator[tuple[list[socket.socket], socket.socket | None]]:
    """Bind a socket for each worker and one for the admin application; close them at the end."""
    sockets: list[socket.socket] = []
    try:
        port = options.port
        if options.workers > 1 and port:
            # What shares a port would share it with another gateway's sockets, too: a look first.
            _bind(options.host, port, options).close()
        for _ in range(options.workers):
            # A socket for each: the kernel spreads connections over them, where workers that
            # share one take what they can get, and the quickest takes nearly all.
            sockets.append(_bind(options.host, port, options, share=options.workers > 1))
            port = sockets[0].getsockname()[1]
        second = None
        if admin and options.admin_port is not None:
            setting = "server.admin_port"
            second = _bind(options.admin_host, options.admin_port, options, setting=setting)
            sockets.append(second)
        yield sockets[: options.workers], second
    finally:
        for each in sockets:
            each.close()


def _bind(
    host: str, port: int, options: ServeOptions, *, share: bool = False, setting: str = "--port"
) -> socket.socket:
    family, address = check_host(host, port, guarded=options.guarded)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        # Before any worker is there: whoever connects while one starts (again) waits, unharmed.
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        reason = os.strerror(error.errno or 0)
        raise InvalidRequest(
            f"cannot listen on {host}:{port}: {reason}; choose another port ({setting})"
        ) from error
    made.setblocking(False)
    return made


def check_host(
    host: str, port: int, *, guarded: bool
) -> tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]:
    """Return the family and address to listen on; see `ServeOptions` for ``guarded``.

    Raises:
        InvalidRequest: there is no such host, or it is not to be listened on.
    """
    try:
        row = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {host!r}: {error.strerror}") from error
    if not guarded and not _is_loopback(str(row[4][0])):
        raise InvalidRequest(
            f"listening on {host} would let everybody on the network in, unencrypted. Listen on "
            "127.0.0.1; or, where TLS ends in front of the gateway and every caller has a virtual "
            "key, say so: server.behind_proxy: true"
        )
    return row[0], row[4]


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def _url(sock: socket.socket, tls: ssl.SSLContext | None) -> str:
    host, port = sock.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{port}"


# ------------------------------------------------------------------------------ the supervisor


@dataclass(slots=True)
class _Place:
    """One worker's place: who is in it, since when, and when it may be filled again."""

    worker: Worker
    pid: int = 0
    since: float = 0.0
    failures: int = 0
    due: float = 0.0
    was_filled: bool = False


class _Supervisor:
    def __init__(
        self,
        make_app: MakeApp,
        make_admin: MakeAdmin | None,
        options: ServeOptions,
        sockets: list[socket.socket],
        admin: socket.socket | None,
    ) -> None:
        self._make_app = make_app
        self._make_admin = make_admin
        self._options = options
        self._sockets = sockets
        self._admin = admin
        self._places = [_Place(Worker(n, options.workers)) for n in range(options.workers)]
        self._life, self._hold = os.pipe()
        """A worker ends when its supervisor does: then nobody holds the pipe's other end."""
        self._stopping = False
        self._kill_at = 0.0
        self._code = 0

    def run(self) -> int:
        """Keep the places filled until told to stop."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for place in self._places:
                self._start(place)
            while any(place.pid for place in self._places) or not self._stopping:
                self._hear(signal.sigtimedwait(SIGNALS, self._patience()))
                self._fill()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(self._life)
            os.close(self._hold)
        return self._code

    def _patience(self) -> float:
        """Return how long there is nothing to do but to wait for a signal, in seconds."""
        dues = [place.due for place in self._places if place.due and not place.pid]
        if self._stopping:
            dues = [self._kill_at]
        return max(0.0, min([*dues, time.monotonic() + 60]) - time.monotonic())

    def _hear(self, heard: signal.struct_siginfo | None) -> None:
        if heard is not None and heard.si_signo in {signal.SIGTERM, signal.SIGINT}:
            self._stop(0)
        elif heard is not None and heard.si_signo == signal.SIGHUP:
            self._tell(signal.SIGHUP)
        # Signals that come at once are delivered once: look at every worker each time.
        for place in self._places:
            if place.pid and (ended := os.waitpid(place.pid, os.WNOHANG))[0]:
                self._bury(place, os.waitstatus_to_exitcode(ended[1]))

    def _fill(self) -> None:
        now = time.monotonic()
        if self._stopping:
            if now >= self._kill_at:
                self._tell(signal.SIGKILL)
                self._kill_at = now + 60
            return
        for place in self._places:
            if not place.pid and now >= place.due:
                self._start(place)

    def _stop(self, code: int) -> None:
        """Have the workers finish; the second time at once."""
        self._code = max(self._code, code)
        if not self._stopping:
            self._stopping = True
            patience = self._options.grace_s + self._options.unready_s + 5
            self._kill_at = time.monotonic() + patience
            # Else connections would go on queueing here, where nobody accepts them.
            for each in [*self._sockets, *([self._admin] if self._admin else [])]:
                each.close()
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                os.kill(place.pid, number)

    def _bury(self, place: _Place, code: int) -> None:
        """Take note of a worker's end, and plan for the next one in its place."""
        name, place.pid = place.worker.name, 0
        if self._stopping:
            self._code = max(self._code, 1 if code < 0 else code % NEVER_READY)
            return
        if code >= NEVER_READY and not place.was_filled:
            logger.error("%s could not start; giving up", name)
            self._stop(code - NEVER_READY)
            return
        lived = time.monotonic() - place.since
        place.was_filled = True
        place.failures = place.failures + 1 if lived < QUICK_S else 0
        wait = min(10.0, 0.05 * 2**place.failures) if place.failures else 0.0
        place.due = time.monotonic() + wait
        what = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        logger.error("%s %s after %.1f s; starting it again in %.1f s", name, what, lived, wait)

    def _start(self, place: _Place) -> None:
        place.since = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            place.pid = pid
            return
        code = 1
        try:
            code = self._become(place.worker)
        except BaseException:
            logger.exception("%s failed", place.worker.name)
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _become(self, worker: Worker) -> int:
        """Be a worker: let go of what is the supervisor's, and serve."""
        import uvloop

        os.close(self._hold)
        own = self._sockets[worker.number]
        for each in self._sockets:
            if each is not own:
                each.close()
        admin = self._admin if worker.number == 0 else None
        if self._admin is not None and admin is None:
            self._admin.close()
        job = _Job(worker, self._options, own, admin, self._life)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(job.run(self._make_app, self._make_admin))


# ------------------------------------------------------------------------------ a worker


class _Job:
    """What a worker process does from its beginning to its end."""

    def __init__(
        self,
        worker: Worker,
        options: ServeOptions,
        sock: socket.socket,
        admin: socket.socket | None,
        life: int,
    ) -> None:
        self._worker = worker
        self._options = options
        self._sock = sock
        self._admin = admin
        self._life = life
        self._end_by = 0.0
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self, make_app: MakeApp, make_admin: MakeAdmin | None) -> int:
        """Serve until told to stop; return 0 if every request was finished, else 1."""
        self._listen_to_signals()
        name = self._worker.name
        try:
            app = make_app(self._worker)
            await app.start()
        except PackshotError as error:
            logger.error("%s: %s", name, error)  # noqa: TRY400 - the message says it all
            return NEVER_READY + error.exit_code
        reloading = asyncio.create_task(self._keep_reloading(app))
        try:
            # What lives from here on is never looked through by the collector again.
            gc.collect()
            gc.freeze()
            finished = await self._serve(app, make_admin)
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
            await app.stop(self._left())
        logger.info("%s has ended", name)
        return 0 if finished else 1

    def _left(self) -> float:
        """Return what is left of the grace, in seconds; none after the second signal."""
        return 0.0 if self._now.is_set() else max(0.0, self._end_by - time.monotonic())

    async def _serve(self, app: Application, make_admin: MakeAdmin | None) -> bool:
        loop, options = asyncio.get_running_loop(), self._options
        doors = [Door(app, options.limits)]
        listeners = [await self._open(doors[0], self._sock)]
        if make_admin is not None and self._admin is not None:
            doors.append(Door(make_admin(app), options.limits))
            listeners.append(await self._open(doors[1], self._admin))
        loop.add_reader(self._life, self._orphaned)
        logger.info("%s is ready", self._worker.name)
        await self._stop.wait()
        self._end_by = time.monotonic() + options.unready_s + options.grace_s
        app.drain()
        logger.info("%s: %d requests to finish", self._worker.name, len(doors[0].tasks))
        await self._unless_now(asyncio.sleep(options.unready_s))
        for listener in listeners:
            listener.close()
        finished = await self._unless_now(doors[0].drain(options.grace_s))
        if not finished:
            logger.warning("%s: cut off %d requests", self._worker.name, len(doors[0].tasks))
        for door in doors:
            await door.close()
        return bool(finished)

    async def _open(self, door: Door, sock: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            door.protocol, sock=sock, backlog=BACKLOG, ssl=self._options.tls
        )

    async def _unless_now(self, what: Awaitable[bool | None]) -> bool | None:
        """Wait for ``what``, but not after the second signal."""
        task, now = asyncio.ensure_future(what), asyncio.create_task(self._now.wait())
        await asyncio.wait([task, now], return_when="FIRST_COMPLETED")
        for each in (task, now):
            each.cancel()
        await asyncio.gather(task, now, return_exceptions=True)
        return None if task.cancelled() else task.result()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._told_to_stop)
        # Ctrl-C reaches the whole group; the supervisor passes it on, once.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        # What came since the fork has waited.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _told_to_stop(self) -> None:
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._life)
        logger.error("%s: the supervisor is gone; finishing", self._worker.name)
        self._stop.set()

    async def _keep_reloading(self, app: Application) -> None:
        """Reload once for all signals that came before the reload began."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                notes = await app.reload()
            except PackshotError as error:
                logger.error(  # noqa: TRY400 - the message says it all
                    "%s keeps its configuration, the new one is not good: %s",
                    self._worker.name,
                    error,
                )
            except Exception:
                logger.exception("%s keeps its configuration: reading it failed", self._worker.name)
            else:
                logger.info("%s has a new configuration", self._worker.name)
                for note in notes:
                    logger.warning("%s: %s", self._worker.name, note)
