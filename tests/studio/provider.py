"""A fake provider on a real socket, in a thread of its own, for callers that are synchronous."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from packshot.providers.fake import Fake
from packshot.providers.fake_script import Fault, Settings

__all__ = ["GOOD", "provider", "says"]

GOOD = {
    "product": "white sneakers",
    "ground": "on a sandy beach",
    "lighting": "warm evening light, light from the left",
    "framing": "seen from above",
    "lens": "",
}
"""An answer for "white sneakers on a sandy beach" that the small lexicon understands."""


def says(**changed: str) -> Fault:
    """Return the good answer, with some of its phrases changed."""
    return Fault(says=json.dumps(GOOD | changed))


@contextmanager
def provider(settings: Settings | None = None) -> Iterator[Fake]:
    """Run a fake that gives the good answer, where nothing else is said."""
    fake = Fake(settings or Settings(usual=says()))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="provider")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
