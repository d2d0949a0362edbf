"""Why a provider said no: many shapes of error, one vocabulary, and back into the caller's shape.

What an error says is taken in this order: its code or type, the HTTP status, and last its words,
of which only a few are trusted: providers quote what callers wrote, so that words which set a key
aside must stand at the beginning of a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from packshot.providers.base import Failure, FailureKind, Surface
from packshot.providers.delays import asked_delay

__all__ = [
    "Answer",
    "answer_of",
    "error_body",
    "error_event",
    "failure_of",
    "failure_of_event",
    "scrubbed",
]

LONGEST_BODY = 1 << 16
"""Bytes of an error that are read; more is no error that any API sends."""

LONGEST_MESSAGE = 500
"""Characters of an error's message that are handed on."""

CODES: dict[str, FailureKind] = {
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "billing_error": "quota",
    "insufficient_credits": "quota",
    "exceeded_current_quota_error": "quota",
    "invalid_api_key": "auth",
    "incorrect_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "account_deactivated": "auth",
    "api_key_invalid": "auth",
    "context_length_exceeded": "context",
    "context_window_exceeded": "context",
    "model_context_window_exceeded": "context",
    "content_policy_violation": "refusal",
    "content_filter": "refusal",
    "responsibleaipolicyviolation": "refusal",
    "moderation_blocked": "refusal",
    "content_moderation": "refusal",
    "payload_too_large": "bad_request",
    "model_not_found": "not_found",
    "deploymentnotfound": "not_found",
    "invalid_model": "not_found",
    "not_found_error": "not_found",
    "rate_limit_exceeded": "rate_limit",
    "rate_limit_error": "rate_limit",
    "too_many_requests": "rate_limit",
    "ratelimitreached": "rate_limit",
    "overloaded_error": "overloaded",
    "engine_overloaded": "overloaded",
    "engine_overloaded_error": "overloaded",
    "server_overloaded": "overloaded",
    "service_unavailable_error": "overloaded",
    "timeout_error": "timeout",
    "server_error": "server",
    "api_error": "server",
    "internal_server_error": "server",
}
"""Codes and types of errors, in lower case, that say more than a status does."""

STATUSES: dict[int, FailureKind] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "timeout",
    409: "server",
    413: "context",
    425: "overloaded",
    429: "rate_limit",
    498: "overloaded",  # Groq: no capacity for the flex tier
    500: "server",
    501: "bad_request",
    502: "server",
    503: "overloaded",
    504: "timeout",
    520: "server",
    522: "network",
    524: "timeout",
    529: "overloaded",
}

CONTEXT_WORDS = (
    "maximum context length",
    "context length",
    "context window",
    "context_length",
    "prompt is too long",
    "input is too long",
    "too many tokens",
    "exceed context limit",
    "exceeds the maximum number of tokens",
    "reduce the length of the messages",
    "too large for model",
)
REFUSAL_WORDS = (
    "content management policy",
    "content filter",
    "rejected as a result of our safety system",
    "output blocked by content filtering",
    "requires moderation on",
)
QUOTA_STARTS = (
    "your credit balance is too low",
    "you exceeded your current quota",
    "insufficient balance",
    "insufficient credits",
)
AUTH_STARTS = ("api key not valid", "incorrect api key provided", "invalid api key")
RATE_STARTS = ("rate limit", "too many requests", "request was throttled", "quota exceeded for")

OWN_WORDS: dict[FailureKind, str] = {
    "rate_limit": "the provider's rate limit is reached",
    "quota": "the provider's account behind this gateway has no credit left",
    "auth": "the provider refused the credential of this gateway",
    "overloaded": "the provider is overloaded",
    "server": "the provider had an error of its own",
    "timeout": "the provider did not answer in time",
    "network": "the provider could not be reached",
    "garbage": "the provider's answer could not be understood",
}
"""What is said of errors that are not the caller's: in the provider's words, they name accounts,
hosts and keys."""

FILTERED = "the provider's content filter withheld the picture"

URL = re.compile(r"(?i)\b(?:[a-z][a-z0-9+.-]{1,20}://|www\.)[^\s\"'<>)\]]+")
KEY = re.compile(
    r"(?i)\b(?:bearer\s+\S+"
    r"|(?:sk|pk|rk|gsk|xai|key|org|proj|user|acct|req|request)[-_]"
    r"(?=[\w*.-]*\d)[\w*.-]{4,}"
    r"|AIza[\w-]{10,}"
    r"|(?=[\w*-]*\d)(?=[\w*-]*[a-z])[\w*-]{32,})"
)
ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b")
NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,96}")


class _Said:
    """What an error's body says, whatever its shape."""

    __slots__ = ("codes", "message", "param")

    def __init__(self, message: str = "", codes: tuple[str, ...] = (), param: str = "") -> None:
        self.message = message
        self.codes = codes
        self.param = param


def failure_of(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Failure:
    """Return why a provider refused, of its status, headers (lower-case names) and body.

    An answer with status 200 may hold an error too, as OpenRouter's do; without one it is garbage.
    One of Stability's may hold a picture that its filter has blurred: a refusal, and maybe billed.
    """
    if status < 300 and (failure := failure_of_event(body)) is not None:
        return failure
    if status < 300 and _is_filtered(body):
        return Failure("refusal", status, FILTERED)
    said = _read(body)
    kind = _kind(status, said)
    return _failure(kind, status, said, asked_delay(headers, body))


class _Finished(msgspec.Struct):
    finish_reason: str | None = None


FINISHED = msgspec.json.Decoder(_Finished)


def _is_filtered(body: bytes) -> bool:
    try:
        return FINISHED.decode(body).finish_reason == "CONTENT_FILTERED"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def failure_of_event(data: bytes, *, named: bool = False) -> Failure | None:
    """Return the failure that an event inside a stream tells of, None where it tells of none.

    The stream's status was 200; the failure has the one that the error would have had. ``named``
    says that the event is called "error", so that it is one whatever it holds.
    """
    try:
        found: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        found = None
    fields = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    flat = fields.get("object") == "error" or fields.get("type") == "error"
    if not (fields.get("error") or flat or named):
        return None
    said = _read(data)
    status = next((int(code) for code in said.codes if code.isdecimal() and len(code) == 3), 0)
    kind = _kind(status or 500, said)
    return _failure(kind, status or ANSWERS[kind][0], said, asked_delay({}, data))


def _failure(kind: FailureKind, status: int, said: _Said, delay: float | None) -> Failure:
    own = OWN_WORDS.get(kind)
    named = next((code for code in said.codes if _is_name(code)), "")
    if own is not None:
        return Failure(kind, status, f"{own} (status {status})", named, "", delay)
    message = scrubbed(said.message) or f"the provider refused the request (status {status})"
    param = said.param if _is_name(said.param) else ""
    return Failure(kind, status, message, named, param, delay)


def _is_name(word: str) -> bool:
    """Tell whether a code or a parameter can be handed on: a name, and nothing secret."""
    return NAME.fullmatch(word) is not None and scrubbed(word) == word


def _kind(status: int, said: _Said) -> FailureKind:
    if status < 400:
        return "garbage"
    found = _kind_of_code(status, said) or _kind_of_words(status, said) or STATUSES.get(status)
    return found or ("server" if status >= 500 else "bad_request")


def _kind_of_code(status: int, said: _Said) -> FailureKind | None:
    for code in said.codes:
        found = CODES.get(code.lower())
        # "server_error" says less than a status of 503 or 504 does.
        if found is None or (found == "server" and status != 500):
            continue
        # Groq's 413 is a limit of tokens per minute that this request alone exceeds.
        return "context" if found == "rate_limit" and status == 413 else found
    return None


def _kind_of_words(status: int, said: _Said) -> FailureKind | None:
    words = said.message[:LONGEST_MESSAGE].lower().lstrip()
    found: FailureKind | None = None
    if words.startswith(QUOTA_STARTS):
        found = "quota"
    elif status in {400, 413, 422, 500} and any(word in words for word in CONTEXT_WORDS):
        found = "context"
    elif status in {400, 403} and any(word in words for word in REFUSAL_WORDS):
        found = "refusal"
    elif status == 400 and words.startswith(AUTH_STARTS):
        found = "auth"
    elif status in {403, 500, 502, 503} and words.startswith(RATE_STARTS):
        found = "rate_limit"
    return found


def _read(body: bytes) -> _Said:
    """Read an error of any of these shapes; text that has none of them is not trusted at all.

    ``{"error": {…}}`` of OpenAI, Azure, Anthropic; the same in a list of Gemini; ``{"error": "…"}``
    of Ollama, xAI; ``{"message", "type", "code"}`` of vLLM, Mistral; ``{"detail": …}`` of FastAPI;
    ``{"name", "errors": […]}`` of Stability.
    """
    try:
        found: Any = msgspec.json.decode(body[:LONGEST_BODY])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Said()
    if isinstance(found, list) and found:
        found = cast("list[Any]", found)[0]
    if not isinstance(found, dict):
        return _Said()
    top = cast("dict[str, Any]", found)
    inside = top.get("error")
    if isinstance(inside, str):
        return _Said(inside, _codes(top))
    fields = cast("dict[str, Any]", inside) if isinstance(inside, dict) else top
    message = fields.get("message") or fields.get("detail") or fields.get("errors")
    if isinstance(message, list):
        message = _details(cast("list[Any]", message))
    param = fields.get("param")
    return _Said(
        message if isinstance(message, str) else "",
        _codes(fields),
        param if isinstance(param, str) else "",
    )


def _codes(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what names an error, Azure's inner code first: it is the most exact."""
    inner = fields.get("innererror") or fields.get("inner_error")
    inner_code = cast("dict[str, Any]", inner).get("code") if isinstance(inner, dict) else None
    said = (fields.get(name) for name in ("code", "type", "status", "name"))
    named = (inner_code, *said)
    plain = (str(name) for name in named if isinstance(name, (str, int)))
    reasons = (str(detail.get("reason") or "") for detail in _objects(fields.get("details")))
    return tuple(name for name in (*plain, *reasons) if name not in {"", "error"})


def _details(details: list[Any]) -> str:
    """FastAPI's list of what is wrong with which field, or Stability's of sentences."""
    said = [each for each in details[:4] if isinstance(each, str)]
    said += [f"{_path(part.get('loc'))}{part.get('msg', '')}" for part in _objects(details)]
    return "; ".join(said)


def _path(loc: object) -> str:
    steps = cast("list[Any]", loc) if isinstance(loc, list) else []
    return ".".join(str(step) for step in steps) + ": " if steps else ""


def _objects(found: object) -> list[dict[str, Any]]:
    """Return the objects of what should be a list of them; a few, since one is enough."""
    several = cast("list[Any]", found)[:4] if isinstance(found, list) else []
    return [cast("dict[str, Any]", each) for each in several if isinstance(each, dict)]


def scrubbed(text: str) -> str:
    """Return a provider's words without URLs, addresses, keys and ids of accounts, and not long."""
    text = text[: 4 * LONGEST_MESSAGE]
    for pattern, word in ((URL, "[url]"), (KEY, "[id]"), (ADDRESS, "[address]")):
        text = pattern.sub(word, text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


# ---------------------------------------------------------------- what the caller gets


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as a caller gets it; ``type`` and ``code`` are OpenAI's words."""

    status: int
    type: str
    message: str
    code: str = ""
    param: str = ""


ANSWERS: dict[FailureKind, tuple[int, str, str]] = {
    "rate_limit": (429, "rate_limit_error", "rate_limit_exceeded"),
    "quota": (502, "upstream_error", "upstream_credentials_exhausted"),
    "auth": (502, "upstream_error", "upstream_credentials_exhausted"),
    "context": (400, "invalid_request_error", "context_length_exceeded"),
    "refusal": (400, "invalid_request_error", "content_policy_violation"),
    "bad_request": (400, "invalid_request_error", ""),
    "not_found": (404, "invalid_request_error", "model_not_found"),
    "overloaded": (503, "overloaded_error", "overloaded"),
    "server": (502, "upstream_error", "upstream_error"),
    "timeout": (504, "timeout_error", "upstream_timeout"),
    "network": (502, "upstream_error", "upstream_unreachable"),
    "garbage": (502, "upstream_error", "upstream_garbage"),
}
"""Status, type and code by kind. The gateway's own keys are no concern of the caller's: a key that
a provider refuses is the gateway's 502, never the caller's 401."""

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def answer_of(failure: Failure) -> Answer:
    """Return what a caller is told of a failure that nothing could be done about."""
    status, kind, code = ANSWERS[failure.kind]
    if failure.kind == "bad_request":
        status = failure.status if failure.status in {400, 405, 422} else 400
        code = failure.code
    elif failure.kind == "refusal" and failure.code == "content_filter":
        code = failure.code  # Azure's word, which its callers look for
    return Answer(status, kind, failure.message, code, failure.param)


def error_body(surface: Surface, answer: Answer) -> bytes:
    """Return the body of an error, as the API that the caller speaks has it."""
    return msgspec.json.encode(_error(surface, answer))


def error_event(surface: Surface, answer: Answer) -> bytes:
    """Return the event that ends a stream which cannot go on; nothing may follow it.

    OpenAI's clients raise on any ``data`` with an ``error``, Anthropic's on the event's name.
    """
    body = error_body(surface, answer)
    name = b"event: error\n" if surface in {"messages", "count_tokens"} else b""
    return name + b"data: " + body + b"\n\n"


def _error(surface: Surface, answer: Answer) -> dict[str, object]:
    if surface in {"messages", "count_tokens"}:
        kind = ANTHROPIC_TYPES.get(answer.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": answer.message}}
    return {
        "error": {
            "message": answer.message,
            "type": answer.type,
            "param": answer.param or None,
            "code": answer.code or None,
        }
    }
