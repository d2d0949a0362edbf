"""The exception tree; every error that packshot raises on purpose is in it.

::

    PackshotError
    ├── InvalidRequest       the caller asked for something that cannot be done: fix the call
    │   ├── BodyTooLarge     a request's body is longer than the limit
    │   ├── Inexpressible    the target's API has no such thing: the message names the field
    │   ├── UnknownVirtualKey  no issued key has this id
    │   ├── DeviceMissing    the device that was asked for is not there
    │   ├── UnknownConcept   the model was never shown what the brief asks for (``--strict``)
    │   └── BadPhoto         a product photograph or its mask cannot be used
    │       └── MaskNeeded   where the product is in it, we are not sure enough: give a mask
    ├── ModelError           a model folder is missing, broken, or not what its manifest says
    │   ├── ModelNotFound
    │   ├── ModelCorrupt
    │   └── UnsafeModel      the folder holds a pickle; packshot reads safetensors only
    ├── OutputError          a result could not be written, or an input file not read
    ├── LedgerError          money: nothing was spent that is not in the journal
    │   ├── BudgetExceeded   the hold would take a cap above its limit: no call was made
    │   ├── Unpriced         no price is known and the operator said to refuse such calls
    │   ├── Unbounded        the call has no upper bound, and a hard cap applies to it
    │   ├── IdempotencyError the key came before with another body, or is still in flight
    │   ├── LedgerUnavailable  journal or store cannot be written: no new paid work is taken
    │   └── LedgerCorrupt    a sum, a hash, a sequence or a schema is not what it must be
    ├── GatewayError         the gateway did not let the call through
    │   ├── Unauthorized     no virtual key, or none that is known
    │   ├── Forbidden        the virtual key may not do this
    │   ├── RateLimited      its requests or tokens per minute are used up
    │   └── Saturated        too much is under way already: come back
    ├── UpstreamError        a provider's server could not be talked to (no answer of its own)
    │   ├── UpstreamUnreachable  no connection: nothing was sent
    │   ├── UpstreamTimeout  silence: before the connection, the first byte, the next, or the end
    │   └── UpstreamBroken   the connection broke, or what came was no HTTP
    ├── NoEmbedding          a text's vector could not be had in time: the cache does without
    ├── StateUnavailable     what is kept to be used again cannot be read or written
    ├── CheckFailed          a finished picture broke a promise: it is not delivered
    ├── WorkerLost           the process that holds the model crashed or hung; the next one may not
    ├── RenderFailed         the network produced NaN or a constant picture, twice
    │   ├── OutOfMemory      the device has no room for it
    │   ├── DeviceLost       the device failed for good: the process must end
    │   ├── HostedFailed     the hosted provider made no picture: an outage, a deadline, no budget
    │   └── ContentFiltered  a provider's filter refused: not to be routed around
    └── Cancelled            the caller asked to stop between two steps

Messages say what was got, what was expected and how to fix it. ``exit_code`` is what the command
line returns: 2 for a bad call (as argparse and click do), 3 for a bad model, 4 for a file, 5 for
the ledger, 1 for a failure of ours, 130 for Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BadPhoto",
    "BodyTooLarge",
    "BudgetExceeded",
    "Cancelled",
    "CheckFailed",
    "ContentFiltered",
    "DeviceLost",
    "DeviceMissing",
    "Forbidden",
    "GatewayError",
    "HostedFailed",
    "IdempotencyError",
    "Inexpressible",
    "InvalidRequest",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerUnavailable",
    "MaskNeeded",
    "ModelCorrupt",
    "ModelError",
    "ModelNotFound",
    "NoEmbedding",
    "OutputError",
    "PackshotError",
    "RateLimited",
    "RenderFailed",
    "Saturated",
    "StateUnavailable",
    "Unauthorized",
    "Unbounded",
    "UnknownConcept",
    "UnknownVirtualKey",
    "Unpriced",
    "UnsafeModel",
    "UpstreamBroken",
    "UpstreamError",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "WorkerLost",
    "unknown_name",
]


class PackshotError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class InvalidRequest(PackshotError):
    """A parameter is missing, out of range, or names something that does not exist."""

    exit_code = 2


class BodyTooLarge(InvalidRequest):
    """A request's body is longer than the limit."""


class Inexpressible(InvalidRequest):
    """A field of a request has no equivalent in the API of the target that should serve it.

    ``field`` is its path in the caller's request ("messages[2].audio").
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


class UnknownVirtualKey(InvalidRequest):
    """No issued key has this id."""


class DeviceMissing(InvalidRequest):
    """The device that was asked for is not there, or no driver for it."""


class UnknownConcept(InvalidRequest):
    """The brief names a product that the model does not know, and the caller was strict."""


class BadPhoto(InvalidRequest):
    """A product photograph, or the mask to it, is broken, hostile, or of a kind not taken."""


class MaskNeeded(BadPhoto):
    """The photograph says nothing of where the product is, and what we see is not sure enough."""


class ModelError(PackshotError):
    """Base of everything that is wrong with a model folder."""

    exit_code = 3


class ModelNotFound(ModelError):
    """The folder, or a file that it must hold, is not there."""


class ModelCorrupt(ModelError):
    """A checksum, a key set, a shape or a JSON file is not what it should be."""


class UnsafeModel(ModelError):
    """The folder holds a pickle (``.bin``, ``.ckpt``, ``.pt``, ``.pth``, ``.pkl``)."""


class OutputError(PackshotError):
    """A file could not be written or read."""

    exit_code = 4


class LedgerError(PackshotError):
    """Base of everything that concerns money."""

    exit_code = 5


class BudgetExceeded(LedgerError):
    """Spent plus held plus this hold would exceed a cap; the message names cap, period and rest.

    ``until_us`` is the end of that period in microseconds since 1970; None where the next will
    not do either.
    """

    def __init__(self, message: str, until_us: int | None = None) -> None:
        super().__init__(message)
        self.until_us = until_us


class Unpriced(LedgerError):
    """No price row covers the usage at its date, and a cap or the operator refuses such calls."""


class Unbounded(LedgerError):
    """What the call may cost has no upper bound, and a hard cap applies to it."""


class IdempotencyError(LedgerError):
    """An idempotency key was used before with another body, or its first call is not done."""


class LedgerUnavailable(LedgerError):
    """The journal or the store cannot be written or read; nothing was acknowledged."""


class LedgerCorrupt(LedgerError):
    """The ledger's files are damaged, or of a newer version than this packshot."""


class GatewayError(PackshotError):
    """The gateway did not let the call through; ``retry_after_s`` is when it may, if known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(GatewayError):
    """The call has no virtual key, or one that is unknown, revoked or expired."""


class Forbidden(GatewayError):
    """The virtual key is good, but not for this route, model, key or address."""


class RateLimited(GatewayError):
    """The requests or tokens per minute of the virtual key are used up."""


class Saturated(GatewayError):
    """As many calls are under way, or wait, as there may be."""


class NoEmbedding(PackshotError):
    """The embeddings route gave no vector, or not in time; no caller of the gateway hears of it."""


class StateUnavailable(PackshotError):
    """A cache's file, or the server that replicas share, cannot be used; the message says why."""


class UpstreamError(PackshotError):
    """A provider's server could not be talked to.

    ``sent`` is true where the request may have reached it, and so may be billed; ``began`` where
    bytes of an answer came.
    """

    def __init__(self, message: str, *, sent: bool, began: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.began = began


class UpstreamUnreachable(UpstreamError):
    """No connection could be made; nothing was sent."""


class UpstreamTimeout(UpstreamError):
    """The connection, the first byte, the next byte or the end did not come in time."""


class UpstreamBroken(UpstreamError):
    """The connection was reset or closed in the middle, or what came was not HTTP."""


class CheckFailed(PackshotError):
    """A finished picture broke a promise of `packshot.studio.checks`, with every seed tried."""


class WorkerLost(PackshotError):
    """A batch's worker process crashed, hung, or was ended; what it was making is not there."""


class RenderFailed(PackshotError):
    """The picture came out as NaN or as one flat colour, in full precision too."""


class OutOfMemory(RenderFailed):
    """The device has no room for a render of this size."""


class DeviceLost(RenderFailed):
    """The device failed in a way that this process cannot mend: it must end, and another begin."""


class HostedFailed(RenderFailed):
    """The hosted provider made no picture: it did not answer, not in time, or no budget is left."""


class ContentFiltered(RenderFailed):
    """A provider refused what was asked, or withheld what it made: nobody else is asked."""


class Cancelled(PackshotError):
    """A render was stopped between two steps at the caller's wish."""

    exit_code = 130


def unknown_name(what: str, got: str, valid: Iterable[str]) -> InvalidRequest:
    """Return the error for a name that is not in a fixed set: the nearest, and all valid ones."""
    names = sorted(valid)
    near = get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InvalidRequest(f"unknown {what} {got!r}.{hint} Valid: {', '.join(names)}.")
