"""A client that hides nothing: what came over the wire, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import httptools
import msgspec

from packshot.core.sse import parse
from packshot.core.types import Usage
from packshot.ledger.prices.usage import merged, usage_from
from packshot.providers.fake import (
    Fake,
)

ASK = [{"role": "user", "content": "a red mug"}]
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
FORMATS = {"openai": "openai-chat", "anthropic": "anthropic"}
APIS = ["openai", "anthropic"]


@dataclass
class Seen:
    """What a bare client got: whatever came, and how it ended."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    broken: str = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


async def ask(
    fake: Fake,
    api: str = "openai",
    *,
    stream: bool = False,
    key: str = "k1",
    hang_up_after: int | None = None,
    within_s: float = 5.0,
    **more: Any,
) -> Seen:
    """Send one request over a connection of its own, and read until something ends it."""
    body = {"model": "m", "messages": ASK, "stream": stream, "max_tokens": 100, **more}
    if stream and api == "openai":
        body.setdefault("stream_options", {"include_usage": True})
    data = json.dumps(body).encode()
    auth = f"authorization: Bearer {key}"
    if api == "anthropic":
        auth = f"x-api-key: {key}\r\nanthropic-version: 2023-06-01"
    head = f"POST {PATHS[api]} HTTP/1.1\r\nhost: x\r\n{auth}\r\nx-attempt-id: a1\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
    seen = Seen()
    parser = httptools.HttpResponseParser(seen)
    try:
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        while not seen.whole:
            got = await asyncio.wait_for(reader.read(65536), within_s)
            if not got:
                seen.broken = "closed"
                break
            parser.feed_data(got)
            seen.status = parser.get_status_code() if seen.headers else 0
            if hang_up_after is not None and len(parse(seen.body)) >= hang_up_after:
                seen.broken = "hung up"
                break
    except ConnectionResetError:
        seen.broken = "reset"
    except TimeoutError:
        seen.broken = "silence"
    except httptools.HttpParserError:
        seen.broken = "no http"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return seen


def usage_said(api: str, seen: Seen, *, stream: bool) -> Usage:
    """Read the usage out of an answer, as the gateway will."""
    if not stream:
        return usage_from(FORMATS[api], msgspec.json.decode(seen.body)["usage"])
    told: list[dict[str, Any] | None] = []
    for event in parse(seen.body):
        if event.data != b"[DONE]":
            data = msgspec.json.decode(event.data)
            told.append(data.get("usage") or data.get("message", {}).get("usage"))
    return usage_from(FORMATS[api], merged(told))
