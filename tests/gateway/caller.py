"""A caller of the gateway that hides nothing: no retries, and each byte as it came."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import httptools

from packshot.core.sse import Event, Splitter, parse
from tests.gateway.faults import Api, Saw

PATHS: dict[Api, str] = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
VERSION: dict[Api, str] = {"openai": "", "anthropic": "anthropic-version: 2023-06-01\r\n"}


@dataclass
class _Parts:
    """What a response parser hands over."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


class Caller:
    """Makes requests over a connection each; it is a `tests.gateway.faults.Call`.

    ``models`` are what it asks for, by API. ``limit_s`` is how long it waits for the next byte.
    """

    def __init__(
        self,
        port: int,
        models: dict[Api, str],
        *,
        key: str = "none",
        headers: str = "",
        limit_s: float = 20.0,
    ) -> None:
        self.port = port
        self.models = models
        self.key = key
        self.headers = headers
        self.limit_s = limit_s
        self.seen: dict[str, str] = {}
        """The headers of the last answer."""

    async def __call__(self, *, api: Api, stream: bool, hang_up_after: int | None = None) -> Saw:
        body: dict[str, Any] = {
            "model": self.models[api],
            "messages": [{"role": "user", "content": "white sneaker on a beach"}],
            "max_tokens": 200,
            "stream": stream,
        }
        if stream and api == "openai":
            body["stream_options"] = {"include_usage": True}
        data = json.dumps(body).encode()
        head = (
            f"POST {PATHS[api]} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\n{VERSION[api]}{self.headers}"
            f"content-length: {len(data)}\r\n\r\n"
        )
        parts, hung_up, status = _Parts(), False, 0
        parser = httptools.HttpResponseParser(parts)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.encode() + data)
            while not parts.whole:
                got = await asyncio.wait_for(reader.read(65536), self.limit_s)
                if not got:
                    break
                parser.feed_data(got)
                status = parser.get_status_code() if parts.headers else 0
                if hang_up_after is not None and len(_events(parts.body)) >= hang_up_after:
                    hung_up = True
                    break
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self.seen = parts.headers
        return _saw(api, status, parts, stream=stream, hung_up=hung_up)


def _events(body: bytes) -> list[Event]:
    return parse(Splitter().feed(body))


def _saw(api: Api, status: int, parts: _Parts, *, stream: bool, hung_up: bool) -> Saw:
    asked = parts.headers.get("retry-after")
    delay = None if asked is None else float(asked)
    if not stream or status != 200:
        told = json.loads(parts.body) if parts.whole else {}
        if status != 200 or "error" in told:
            error = json.dumps(told.get("error", told))
            return Saw(status, error=error, retry_after_s=delay)
        return Saw(status, _text(api, told), complete=parts.whole)
    text, error, done, count = "", "", False, 0
    for event in _events(parts.body):
        if event.data == b"[DONE]":
            done = True
            continue
        told = json.loads(event.data)
        if told.get("error") or told.get("type") == "error":
            error = json.dumps(told["error"])
            continue
        assert not error, "an event behind the error"
        count += 1
        done = done or told.get("type") == "message_stop"
        text += _delta(api, told)
    return Saw(status, text, count, done and parts.whole, error, delay, hung_up)


def _text(api: Api, told: dict[str, Any]) -> str:
    if api == "anthropic":
        return "".join(block["text"] for block in told["content"])
    return told["choices"][0]["message"]["content"]


def _delta(api: Api, told: dict[str, Any]) -> str:
    if api == "anthropic":
        return told.get("delta", {}).get("text", "")
    return "".join(choice["delta"].get("content") or "" for choice in told["choices"])
