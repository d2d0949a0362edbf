"""What callers hear when something is wrong: a status, a body that their SDK understands, a delay."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

from packshot.core.errors import (
    BudgetExceeded,
    Forbidden,
    IdempotencyError,
    InvalidRequest,
    LedgerError,
    PackshotError,
    RateLimited,
    Saturated,
    Unauthorized,
    Unbounded,
    Unpriced,
)
from packshot.providers.base import Failure, FailureKind, Surface
from packshot.providers.exchanges import error_body

__all__ = ["Headers", "Trouble", "of_error", "of_failure"]

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error as it is sent: ``kind`` is the type that OpenAI's errors have."""

    status: int
    kind: str
    code: str
    message: str
    param: str = ""
    retry_after_s: float | None = None
    retry: bool = False
    """Whether the caller's SDK should try again by itself; the gateway has tried already."""

    def body(self, surface: Surface) -> bytes:
        """Return the body in the form that the surface's SDKs read."""
        return error_body(
            surface, self.status, self.kind, self.code, self.message, self.param
        )

    def headers(self) -> Headers:
        """Return the headers beside the content's."""
        lines: Headers = [(b"x-should-retry", b"true" if self.retry else b"false")]
        if self.retry_after_s is not None and isfinite(self.retry_after_s):
            lines.append((b"retry-after", str(max(1, ceil(self.retry_after_s))).encode()))
            ms = max(1, ceil(self.retry_after_s * 1000))
            lines.append((b"retry-after-ms", str(ms).encode()))
        return lines


OF_KIND: dict[FailureKind, tuple[int, str, str]] = {
    "rate_limit": (429, "rate_limit_error", "rate_limit_exceeded"),
    "quota": (502, "api_error", "upstream_credentials_exhausted"),
    "auth": (502, "api_error", "upstream_credentials_exhausted"),
    "context": (400, "invalid_request_error", "context_length_exceeded"),
    "refusal": (400, "invalid_request_error", "content_policy_violation"),
    "bad_request": (400, "invalid_request_error", "invalid_request"),
    "not_found": (404, "invalid_request_error", "model_not_found"),
    "overloaded": (503, "api_error", "overloaded"),
    "server": (502, "api_error", "upstream_error"),
    "timeout": (504, "api_error", "timeout"),
    "network": (502, "api_error", "upstream_unreachable"),
    "garbage": (502, "api_error", "upstream_broken"),
}
"""Status, type and code of each kind of failure, where the provider gave none of its own."""


def of_failure(failure: Failure) -> Trouble:
    """Return what the caller is told of the attempts' last failure."""
    status, kind, code = OF_KIND[failure.kind]
    if failure.kind == "bad_request" and 400 < failure.status < 500:
        status = failure.status if failure.status in {413, 415, 422} else 400
    keeps_code = status < 500 or failure.kind == "timeout"
    return Trouble(
        status,
        kind,
        failure.code if keeps_code and failure.code else code,
        failure.message,
        failure.param,
        failure.retry_after_s if status in {429, 503} else None,
    )


def of_error(error: PackshotError) -> Trouble:
    """Return what the caller is told of an error of the gateway's own."""
    said = str(error)
    match error:
        case Unauthorized():
            return Trouble(401, "authentication_error", "invalid_api_key", said)
        case Forbidden():
            return Trouble(403, "permission_error", "forbidden", said)
        case RateLimited():
            wait = error.retry_after_s
            return Trouble(429, "rate_limit_error", "rate_limit_exceeded", said, "", wait, retry=True)
        case Saturated():
            return Trouble(503, "api_error", "saturated", said, "", error.retry_after_s, retry=True)
        case BudgetExceeded():
            return Trouble(402, "billing_error", "budget_exceeded", said)
        case Unpriced():
            return Trouble(403, "permission_error", "unpriced_model", said)
        case Unbounded():
            return Trouble(400, "invalid_request_error", "unbounded_cost", said, "max_tokens")
        case IdempotencyError():
            return Trouble(409, "invalid_request_error", "idempotency_conflict", said)
        case LedgerError():
            # The details (paths, hosts) are the operator's.
            said = "the ledger cannot be written; no call was made"
            return Trouble(503, "api_error", "ledger_unavailable", said, "", 1.0, retry=True)
        case InvalidRequest():
            return Trouble(400, "invalid_request_error", "invalid_request", said)
        case _:
            return Trouble(500, "api_error", "internal_error", "the gateway failed; see its log")
