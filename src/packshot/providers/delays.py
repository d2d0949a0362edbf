"""How long a provider asks to be left alone, in whatever form it says so; always in seconds.

The forms, the most exact first:

=============================  ============================================  ==================
``retry-after-ms``             "1500"                                        OpenAI, Azure
``retry-after``                "20", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT"  RFC 9110, everybody
``error.details[].retryDelay`` "17s", "0.5s" in Google's RetryInfo           Gemini
``x-ratelimit-reset-*``        "1s", "6m0s", "120ms", "12.5"                 OpenAI, Groq, Azure
``anthropic-ratelimit-*-reset``  "2026-11-25T16:00:00Z"                      Anthropic
text of the error              "resets in ~30s", "try again in 1.2s"         Replicate, OpenAI
=============================  ============================================  ==================

Nobody is believed blindly: what is negative, not finite or no delay at all counts as not said, and
what is in the past is a delay of 0. How long a delay is sat out, the gateway decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import Any, cast

import msgspec

__all__ = ["LONGEST_DELAY_S", "asked_delay", "seconds_of"]

LONGEST_DELAY_S = 86_400.0
"""What is more than a day is taken for a day: a key set aside must come back by itself."""

LONGEST_TEXT = 64
"""Characters of a header; no delay needs more."""

SEARCHED = 4096
"""Bytes of an error's text that are looked through for a delay."""

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ms|s|m|h|d))+")
PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)")
NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,9})?")
SPELLED = (
    r"(\d{1,9}(?:\.\d{1,9})?) ?(milliseconds?|ms|seconds?|secs?|s|minutes?|m|hours?|h)(?![a-z])"
)
WORDS = re.compile(SPELLED)
IN_TEXT = re.compile(rf"(?:again|resets?|retry) (?:in|after) ~? ?((?:{SPELLED} ?)+)")

RESETS = (
    (b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
    (b"anthropic-ratelimit-requests-remaining", b"anthropic-ratelimit-requests-reset"),
    (b"anthropic-ratelimit-tokens-remaining", b"anthropic-ratelimit-tokens-reset"),
    (b"anthropic-ratelimit-input-tokens-remaining", b"anthropic-ratelimit-input-tokens-reset"),
    (b"anthropic-ratelimit-output-tokens-remaining", b"anthropic-ratelimit-output-tokens-reset"),
)
"""Limits: what is left of one, and when it is whole again. Only one that is used up says when."""


def asked_delay(
    headers: Mapping[bytes, bytes], body: bytes = b"", now: float | None = None
) -> float | None:
    """Return the delay that an answer asks for, in seconds from 0 to a day; None for none.

    ``headers`` have lower-case names. ``now`` is a Unix time, for dates; this moment by default.
    """
    milliseconds = headers.get(b"retry-after-ms")
    if milliseconds is not None and (found := _number(_text(milliseconds))) is not None:
        return _clamped(found / 1000)
    asked = headers.get(b"retry-after")
    if asked is not None and (found := seconds_of(_text(asked), now)) is not None:
        return found
    for read in (_retry_info, _reset_of_headers, _in_text):
        if (found := read(headers, body, now)) is not None:
            return found
    return None


def seconds_of(text: str, now: float | None = None) -> float | None:
    """Return a delay written as a number of seconds, a duration ("6m0s") or a date; None if not."""
    text = text.strip()
    if not text or len(text) > LONGEST_TEXT:
        return None
    if (number := _number(text)) is not None:
        return _clamped(number)
    if DURATION.fullmatch(text):
        return _clamped(sum(float(n) * UNITS_S[unit] for n, unit in PART.findall(text)))
    date = _date(text)
    return None if date is None else _clamped(max(0.0, date - (time() if now is None else now)))


def _text(value: bytes) -> str:
    return value[: LONGEST_TEXT + 1].decode("latin-1").strip()


def _number(text: str) -> float | None:
    return float(text) if NUMBER.fullmatch(text) and text.isascii() else None


def _clamped(seconds: float) -> float | None:
    return min(seconds, LONGEST_DELAY_S) if isfinite(seconds) and seconds >= 0 else None


def _date(text: str) -> float | None:
    """Return the Unix time of an HTTP date or of an ISO one; without a zone it is UTC."""
    try:
        date = datetime.fromisoformat(text) if text[:4].isdigit() else parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _retry_info(_headers: Mapping[bytes, bytes], body: bytes, now: float | None) -> float | None:
    """Google's RetryInfo, in the error's details; the whole may be in a list of one."""
    if b"retryDelay" not in body:
        return None
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if isinstance(found, list) and found:
        found = cast("list[Any]", found)[0]
    for name in ("error", "details"):
        found = cast("dict[str, Any]", found).get(name) if isinstance(found, dict) else None
    for detail in cast("list[Any]", found) if isinstance(found, list) else ():
        if isinstance(detail, dict):
            said = cast("dict[str, Any]", detail).get("retryDelay")
            if isinstance(said, str) and (delay := seconds_of(said, now)) is not None:
                return delay
    return None


def _reset_of_headers(
    headers: Mapping[bytes, bytes], _body: bytes, now: float | None
) -> float | None:
    """The longest reset among the limits that are used up."""
    used_up = [
        seconds_of(_text(headers[reset]), now)
        for left, reset in RESETS
        if reset in headers and headers.get(left, b"").strip() in {b"0", b"0.0", b"-1"}
    ]
    return max((delay for delay in used_up if delay is not None), default=None)


def _in_text(_headers: Mapping[bytes, bytes], body: bytes, _now: float | None) -> float | None:
    if b" in " not in body and b" after " not in body:
        return None
    text = body[:SEARCHED].decode("utf-8", "replace").lower()
    if (match := IN_TEXT.search(text)) is None:
        return None
    parts = WORDS.findall(match[1])
    return _clamped(sum(float(n) * _unit(word) for n, word in parts)) if parts else None


def _unit(word: str) -> float:
    return UNITS_S["ms" if word.startswith("mil") or word == "ms" else word[0]]
