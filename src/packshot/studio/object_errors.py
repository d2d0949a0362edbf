"""What an object store says went wrong: whether trying again may help, and a sentence for people.

obstore's messages quote the server's answer and the request; of them only the server's own code and
sentence are passed on. Some servers put the access key's id into an answer: it is not.
"""

from __future__ import annotations

import re

from packshot.core.errors import InvalidRequest, OutputError

__all__ = ["Different", "code_of", "is_lasting", "is_missing_bucket", "told", "unusable"]

STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
COMES_BACK = frozenset((408, 425, 429))
"""4xx that say "not now"."""

LASTING_CODES = frozenset(("NotImplemented",))
"""Of 5xx that will be the same the next time."""

NOT_NOW = frozenset(("RequestTimeout", "SlowDown"))
"""Codes that come back whatever their status: S3 says 400 where our bytes did not come in time."""

REFUSED = frozenset(("PermissionError", "PermissionDeniedError", "UnauthenticatedError"))

WHO = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Where credentials come from, by the scheme of the address."""

WHERE = {
    "s3": "AWS_ENDPOINT_URL or AWS_REGION",
    "gs": "the bucket's name",
    "az": "AZURE_STORAGE_ACCOUNT_NAME",
}
"""What says which server is asked."""


class Different(OutputError):
    """An object does not hold what was, or should have been, written to it."""


def is_missing_bucket(error: Exception) -> bool:
    """Tell whether it is the bucket that is not there; else, of a 404, the object."""
    return code_of(str(error)) in {"NoSuchBucket", "ContainerNotFound"}


def is_lasting(error: Exception, scheme: str) -> bool:
    """Tell whether another try could only fail the same way."""
    from obstore import exceptions as e

    lasting = (
        FileNotFoundError,
        e.InvalidPathError,
        e.NotSupportedError,
        e.PermissionDeniedError,
        e.UnauthenticatedError,
        e.UnknownConfigurationKeyError,
    )
    if not scheme or isinstance(error, lasting):
        return True
    text = str(error)
    code, status = code_of(text), _status(text)
    if code in NOT_NOW:
        return False
    return code in LASTING_CODES or (400 <= status < 500 and status not in COMES_BACK)


def told(error: Exception, what: str, scheme: str, bucket: str) -> OutputError:
    """Return the error for the user: ``what`` was tried, why it failed, what to do."""
    return OutputError(f"cannot {what}: {_why(error, scheme, bucket)}")


def unusable(error: Exception, where: str, scheme: str) -> InvalidRequest:
    """Return the error for an environment that no store can be opened with."""
    line = str(error).partition("\n")[0]
    why = line.partition("error: ")[2].rstrip(".") or line
    return InvalidRequest(
        f"the environment does not do for {where}: {why}. Credentials are read from {WHO[scheme]}"
    )


def _why(error: Exception, scheme: str, bucket: str) -> str:
    text = str(error)
    code, status = code_of(text), _status(text)
    said = f" ({code})" if code else ""
    refused = type(error).__name__ in REFUSED or status in {401, 403}
    if not scheme:
        return "permission denied" if refused else _last(text)
    if isinstance(error, FileNotFoundError) or is_missing_bucket(error):
        return f"there is no bucket {bucket!r}. Create it, or correct the address"
    if refused:
        return (
            f"refused{said}. Whose keys are in {WHO[scheme]} must be allowed to read, write, list "
            f"and delete in the bucket {bucket!r}"
        )
    if code == "NotImplemented":
        return (
            f"the server knows no conditional writes{said}. Where nobody else writes to this "
            "place, AWS_CONDITIONAL_PUT=disabled does without"
        )
    answered = f"the server answered {status}{said}" if status else _last(text)
    if is_lasting(error, scheme):
        return answered
    unheard = "" if status else f". Is the server up, and is {WHERE[scheme]} right?"
    return f"{answered}, until the deadline{unheard}"


def _status(text: str) -> int:
    found = STATUS.search(text)
    return int(found[1]) if found else 0


def code_of(text: str) -> str:
    """Return the server's word for what is wrong, of its answer in XML: "SlowDown"."""
    found = CODE.search(text)
    return found[1] if found else ""


def _last(text: str) -> str:
    """Return the innermost reason of obstore's first line: "error sending request"."""
    line = text.partition("\n")[0].strip()
    return line.rpartition(" - ")[2].rpartition(": ")[2] or line
