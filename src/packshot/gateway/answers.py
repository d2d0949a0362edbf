"""What callers hear when something is wrong: a status, a body that their SDK reads, a delay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import TypeAlias

from packshot.core.clock import SECOND_US, wall_us
from packshot.core.errors import (
    BodyTooLarge,
    BudgetExceeded,
    Forbidden,
    GatewayError,
    IdempotencyError,
    Inexpressible,
    InvalidRequest,
    LedgerError,
    PackshotError,
    RateLimited,
    Saturated,
    Unauthorized,
    Unbounded,
    Unpriced,
)
from packshot.providers.base import Failure
from packshot.providers.failures import Answer, answer_of

__all__ = ["JSON", "Headers", "Trouble", "not_again", "of_error", "of_failure"]

Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error and whether, and when, it is worth coming back.

    ``retry`` lets the caller's SDK try again by itself; false where the gateway has done that.
    """

    answer: Answer
    retry_after_s: float | None = None
    retry: bool = False

    def headers(self) -> Headers:
        """Return the headers that say so, in the forms that the SDKs obey."""
        lines: Headers = [(b"x-should-retry", b"true" if self.retry else b"false")]
        if self.retry_after_s is not None and isfinite(self.retry_after_s):
            seconds = max(0.0, self.retry_after_s)
            lines.append((b"retry-after", b"%d" % max(1, ceil(seconds))))
            lines.append((b"retry-after-ms", b"%d" % max(1, ceil(seconds * 1000))))
        return lines


OWN_BUDGETS = ("cap virtual_key:", "the virtual key ")
NOT_OWN = (
    "what this call may cost is more than is left of a budget that it shares with others: wait for "
    "calls in flight or the next period, lower max_tokens, or ask the operator"
)

OWN: dict[type[GatewayError], tuple[int, str, str, bool]] = {
    GatewayError: (500, "api_error", "internal_error", False),
    Unauthorized: (401, "authentication_error", "invalid_api_key", False),
    Forbidden: (403, "permission_error", "forbidden", False),
    RateLimited: (429, "rate_limit_error", "rate_limit_exceeded", True),
    Saturated: (503, "overloaded_error", "saturated", True),
}
"""Status, type, code, and whether the caller's SDK should come back by itself."""


def of_failure(failure: Failure) -> Trouble:
    """Return what the caller is told of the last attempt's failure."""
    answer = answer_of(failure)
    return Trouble(answer, failure.retry_after_s if answer.status in {429, 503} else None)


def not_again(failure: Failure, error: LedgerError) -> Trouble:
    """Return what the caller is told where the ledger refused another attempt after a failed one:
    of the failure, since that is what went wrong, and why it was the last.
    """
    told = of_failure(failure)
    why = _of_ledger(error, tried=True).answer.message
    said = f"{told.answer.message}; no other attempt was made: {why}"
    return replace(told, answer=replace(told.answer, message=said))


def of_error(error: PackshotError, *, tried: bool = False) -> Trouble:
    """Return what the caller is told of an error of the gateway's own; ``tried`` says whether a
    provider was called, so that to call again would cost twice.
    """
    said = str(error)
    match error:
        case GatewayError():
            status, kind, code, retry = OWN[type(error)]
            return Trouble(Answer(status, kind, said, code), error.retry_after_s, retry)
        case LedgerError():
            return _of_ledger(error, tried=tried)
        case BodyTooLarge():
            return Trouble(Answer(413, "invalid_request_error", said, "request_too_large"))
        case Inexpressible():
            answer = Answer(400, "invalid_request_error", said, "unsupported_field", error.field)
            return Trouble(answer)
        case InvalidRequest():
            return Trouble(Answer(400, "invalid_request_error", said, "invalid_request"))
        case _:
            said = "the gateway failed; its log has more under the request's id"
            return Trouble(Answer(500, "api_error", said, "internal_error"))


def _of_ledger(error: LedgerError, *, tried: bool) -> Trouble:
    said = str(error)
    match error:
        case BudgetExceeded():
            # What others have spent is theirs to know: a caller hears of its own budget only.
            said = said if said.startswith(OWN_BUDGETS) else NOT_OWN
            end = error.until_us
            wait = None if end is None else (end - wall_us()) / SECOND_US
            return Trouble(Answer(402, "billing_error", said, "budget_exceeded"), wait)
        case Unpriced():
            return Trouble(Answer(403, "permission_error", said, "unpriced_model"))
        case Unbounded():
            answer = Answer(400, "invalid_request_error", said, "unbounded_cost", "max_tokens")
            return Trouble(answer)
        case IdempotencyError():
            return Trouble(Answer(409, "invalid_request_error", said, "idempotency_conflict"))
        case _:  # what failed, and where, is the operator's to know
            if tried:
                said = "the ledger cannot be written; the provider was called, and may have billed"
                return Trouble(Answer(503, "api_error", said, "ledger_unavailable"))
            said = "the ledger cannot be written, so no call was made"
            return Trouble(Answer(503, "api_error", said, "ledger_unavailable"), 1.0, retry=True)
