"""The log: one line per request, and errors with their traceback; never a content or a secret.

Lines are written by a thread, in batches. What a line holds is fixed here, and nothing of it is a
caller's text but the name of a model. Tracebacks, and whatever other libraries log, pass through
`Redactor`, which knows every secret of the configuration by its value.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import quote, unquote, urlsplit

import msgspec

from packshot.core.config import Secret
from packshot.gateway.batcher import Batcher

__all__ = ["Line", "Log", "Redactor", "secrets_in"]

REMOVED = "[removed]"
SHORTEST = 6
"""A secret with fewer characters is no secret, and would blacken every line."""

OURS = "packshot.gateway"
"""The logger of what the gateway itself does."""

MAX_LINES = 20_000
"""Lines that may wait for the disk or terminal: a second of the fastest worker."""

PATTERNS = (
    r"\bpk-[A-Za-z0-9_-]{16,}",
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"(?<=[Bb]earer )[^\s'\"\\]{6,}",
    r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",
)
"""What looks like a secret although nobody configured it: an issued virtual key, a key of a
provider that a caller sent, a URL's password."""

Format: TypeAlias = Literal["json", "text", "off"]


class Line(msgspec.Struct):
    """What is told of a request. ``at`` is in seconds since 1970, ``ms`` its whole time,
    ``overhead_us`` the gateway's own part, ``first_ms`` a stream's first byte; ``cost_nano_eur`` is
    what was booked until its end. ``code`` is that of the error that the caller got, "" without.
    """

    at: float
    id: str
    surface: str
    status: int
    ms: float
    overhead_us: int
    route: str = ""
    provider: str = ""
    model: str = ""
    key: str = ""
    virtual_key: str = ""
    attempts: int = 0
    retries: int = 0
    fallbacks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_eur: int = 0
    first_ms: float = 0.0
    stream: bool = False
    replayed: bool = False
    code: str = ""


class Redactor:
    """Takes secrets out of a text: known ones in every form that a log may hold them in."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._pattern = re.compile("|".join(PATTERNS))
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Know these, too: a reload may bring new ones, and the old stay secret."""
        for secret in secrets:
            if len(secret) >= SHORTEST:
                self._known.update(_forms(secret))
        longest_first = sorted(self._known, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join([*map(re.escape, longest_first), *PATTERNS]))

    def __call__(self, text: str) -> str:
        """Return the text without them."""
        return self._pattern.sub(REMOVED, text)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, escaped for URLs and JSON, in hexadecimal, and in base64 wherever in
    a longer text it stands.
    """
    raw = secret.encode()
    yield secret
    yield quote(secret, safe="")
    yield quote(secret)
    yield unquote(secret) if len(unquote(secret)) >= SHORTEST else secret
    yield json.dumps(secret)[1:-1]
    yield repr(secret)[1:-1]
    yield raw.hex()
    yield raw.hex().upper()
    for shift in range(3):
        # The characters at both ends depend on what stands beside it, so they are left out.
        coded = base64.b64encode(b"\0" * shift + raw).decode()
        inner = coded[(0, 2, 3)[shift] : len(coded) - (0, 3, 2)[(shift + len(raw)) % 3]]
        if len(inner) >= SHORTEST:
            yield inner
            yield inner.replace("+", "-").replace("/", "_")
            yield quote(inner, safe="")


def secrets_in(settings: object) -> Iterator[str]:  # noqa: C901 - one case per kind of thing
    """Yield every secret in a tree of settings: each `Secret`, each URL's password."""
    if isinstance(settings, str):
        if isinstance(settings, Secret) and settings:
            yield str(settings)
        if "://" in settings and "@" in settings:
            yield str(settings)
            password = urlsplit(settings).password
            if password:
                yield password
    elif is_dataclass(settings):
        for each in fields(settings):
            yield from secrets_in(getattr(settings, each.name))
    elif isinstance(settings, Mapping):
        for value in cast("Mapping[Any, Any]", settings).values():
            yield from secrets_in(value)
    elif isinstance(settings, tuple | list | frozenset):
        for value in cast("Iterable[Any]", settings):
            yield from secrets_in(value)


class Log:
    """Writes lines to stderr from a thread. "off" writes errors and warnings only."""

    def __init__(self, kind: Format, redactor: Redactor, worker: str) -> None:
        self.kind: Format = kind
        self._redact = redactor
        self._worker = worker
        self._batcher: Batcher[Line | str] = Batcher("log", self._write, MAX_LINES)
        self._handler = _Handler(self)
        self._encode = msgspec.json.Encoder().encode_lines

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._batcher.dropped

    def start(self) -> None:
        """Start writing; what other libraries log goes the same way."""
        self._batcher.start()
        logging.getLogger().addHandler(self._handler)
        # Others tell warnings and errors; we also when a worker is ready, reloads or drains.
        logging.getLogger(OURS).setLevel(logging.INFO)

    def stop(self) -> None:
        """Write what waits, and end."""
        logging.getLogger().removeHandler(self._handler)
        self._batcher.stop()

    def line(self, line: Line) -> None:
        """Tell of a request."""
        self._batcher.put(line)

    def error(self, request: str, error: BaseException) -> None:
        """Tell of an error of our own, with its traceback."""
        self.say("error", "".join(traceback.format_exception(error)), request)

    def say(self, level: str, text: str, request: str = "") -> None:
        """Tell of something that is no request, in a line of its own, or several."""
        text = self._redact(text.rstrip())
        now = datetime.now(UTC)
        if self.kind == "json":
            # "level" is in these lines only; see docs/gateway.md.
            said = {
                "at": now.timestamp(),
                "level": level,
                "id": request,
                "worker": self._worker,
                "text": text,
            }
            self._batcher.put(json.dumps(said) + "\n")
        else:
            name = f" {request}" if request else ""
            at = now.isoformat(timespec="milliseconds")
            self._batcher.put(f"{at} {level}{name} {self._worker}: {text}\n")

    def _write(self, batch: list[Line | str]) -> None:
        lines = [each for each in batch if isinstance(each, Line)]
        parts = [each.encode(errors="backslashreplace") for each in batch if isinstance(each, str)]
        if lines and self.kind == "json":
            parts.append(self._encode(lines))
        elif lines:
            parts.append("".join(map(_text, lines)).encode(errors="backslashreplace"))
        sys.stderr.buffer.write(b"".join(parts))
        sys.stderr.buffer.flush()


class _Handler(logging.Handler):
    """Takes what is logged by others into our log, without its secrets."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING if log.kind == "off" else logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - a log call with a mistake of its own
            text = f"{record.name}: a message that cannot be formatted"
        name = "" if record.name == OURS else f"{record.name}: "
        self._log.say(record.levelname.lower(), name + text)


@lru_cache(4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _text(line: Line) -> str:
    second = int(line.at)
    at = f"{_second(second)}.{int((line.at - second) * 1000):03d}+00:00"
    return (
        f"{at} {line.id or '-'} {line.surface} {line.status} {line.ms:.1f}ms "
        f"overhead={line.overhead_us}us route={line.route or '-'} "
        f"model={line.provider or '-'}/{line.model or '-'} key={line.key or '-'} "
        f"virtual_key={line.virtual_key or '-'} attempts={line.attempts} retries={line.retries} "
        f"fallbacks={line.fallbacks} tokens={line.input_tokens}+{line.output_tokens} "
        f"cost_eur={line.cost_nano_eur / 1e9:.9f}"
        f"{f' first={line.first_ms:.1f}ms' if line.stream else ''}"
        f"{' replayed' if line.replayed else ''}{f' code={line.code}' if line.code else ''}\n"
    )
