"""The addresses of one host, asked for once a minute and not by every call."""

from __future__ import annotations

import asyncio
import socket
import time

__all__ = ["Resolver"]

KEEP_S = 60.0
"""How long an answer is used; providers move their addresses by DNS within minutes."""


class Resolver:
    """Looks up ``host`` with the system's resolver, in a thread of the event loop's.

    Calls that come while a question is out share its answer. Where the resolver fails, the last
    answer is used: a provider outlives the name server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._known: list[str] = []
        self._until = 0.0
        self._asking: asyncio.Task[list[str]] | None = None

    async def addresses(self) -> list[str]:
        """Return the host's addresses, never none, the one that worked last first.

        Raises:
            OSError: the name has no address, or the resolver cannot be reached.
        """
        if self._known and time.monotonic() < self._until:
            return self._known
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        try:
            # Shielded: a call that is cancelled does not take the question from the others.
            return await asyncio.shield(self._asking)
        except OSError:
            if self._known:
                return self._known
            raise

    def worked(self, address: str) -> None:
        """Put an address first."""
        if self._known and self._known[0] != address and address in self._known:
            self._known = [address, *(other for other in self._known if other != address)]

    def forget(self) -> None:
        """Ask again before the next connection: none of the addresses answers."""
        self._until = 0.0

    async def _ask(self) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(row[4][0]) for row in found))
        if not addresses:
            raise OSError(f"{self._host} has no address")
        if self._known and self._known[0] in addresses:
            addresses.sort(key=self._known[0].__ne__)
        self._known, self._until = addresses, time.monotonic() + KEEP_S
        return addresses

    def _asked(self, task: asyncio.Task[list[str]]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # every caller may have been cancelled: then nobody else looks at it
