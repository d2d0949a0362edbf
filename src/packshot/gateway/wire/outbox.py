"""What many connections write in one turn of an event loop, sent in one go.

To send wakes whoever waits for it, mostly on another core. Where the other has gone to sleep since
the last send, that costs three times the send itself (9 us more, on a virtual machine). A loop that
sends, works for 40 us and sends again pays each time; sends close to one another are paid for once.
"""

from __future__ import annotations

import asyncio

__all__ = ["LARGE", "MOST", "Outbox"]

MOST = 32
"""Connections that something waits for; one more, and all of it is sent at once."""

LARGE = 1 << 16
"""Bytes for one connection. Beyond them all is sent at once: whoever writes to a reader that stands
still has to hear of it."""


class Outbox:
    """Keeps what is written until the next turn of the running event loop, at the latest.

    What is written to one transport stays in order as long as all of it comes this way, or after
    `flush`. What cannot be sent, the transport closing before its turn, stays in ``waiting``: its
    protocol takes it out when the connection is lost.
    """

    __slots__ = ("_due", "alone", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[asyncio.WriteTransport, bytes] = {}
        """By transport, what is not sent yet."""
        self.alone = True
        """One call is under way, its owner says: it would wait for nobody, 15 us or so."""
        self._due = False

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Send ``data`` soon."""
        waiting = self.waiting
        if self.alone and not waiting:
            transport.write(data)
            return
        if transport in waiting:
            data = waiting[transport] + data
        waiting[transport] = data
        if len(waiting) > MOST or len(data) > LARGE:
            self.flush()
        elif not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def flush(self) -> None:
        """Send what waits, now."""
        if self.waiting:
            waiting, self.waiting = self.waiting, {}
            for transport, data in waiting.items():
                if transport.is_closing():
                    self.waiting[transport] = data
                else:
                    transport.write(data)

    def close(self, transport: asyncio.WriteTransport) -> None:
        """Close a transport, once what waits is on its way."""
        self.flush()
        transport.close()

    def _turn(self) -> None:
        self._due = False
        self.flush()
