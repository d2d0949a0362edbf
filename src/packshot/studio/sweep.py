"""Sweeping up: uploads in parts that a killed process left behind, and that a bucket charges for.

obstore ends an upload that fails; one whose process was killed stays, in no listing of objects. S3
lists them by a request that obstore does not have, so two requests are signed here (AWS Signature
Version 4, "Signing and authenticating REST requests"). Azure forgets such parts after a week by
itself; Google's are aborted by a rule of the bucket's. A folder's are files whose name ends in
``#`` and a number.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request, urlopen

from packshot.core.errors import InvalidRequest, OutputError
from packshot.studio.object_errors import code_of
from packshot.studio.objects import Objects, endpoint

__all__ = ["OLDER_THAN_S", "Swept", "sweep"]

OLDER_THAN_S = 3600.0
"""An upload that began so long ago is nobody's: the slowest that our limits allow takes minutes."""

TIMEOUT_S = 30
MOST_PAGES = 100
"""Of 1,000 uploads each; what is beyond is swept the next time."""

MOST_BYTES = 16 * 1024 * 1024
"""Of one page of a listing."""

EMPTY = hashlib.sha256(b"").hexdigest()
STAGED = re.compile(r".*#\d+")


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found: uploads that it ended, and younger ones that it left alone."""

    ended: int
    younger: int


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that was begun and not ended; ``at`` is seconds since 1970."""

    key: str
    id: str
    at: float


def sweep(objects: Objects, older_than_s: float = OLDER_THAN_S) -> Swept:
    """End uploads in parts that began before, in the place of ``objects`` and nowhere else.

    Raises:
        InvalidRequest: the credentials are not keys in the environment, with which to sign.
        OutputError: the server refused, or cannot be reached.
    """
    before = time.time() - older_than_s
    if not objects.place.scheme:
        return _sweep_folder(Path(objects.place.bucket), before)
    if objects.place.scheme != "s3":
        return Swept(0, 0)
    bucket = _Bucket(objects)
    ended = younger = 0
    for upload in list(bucket.uploads()):
        if upload.at < before:
            bucket.end(upload)
            ended += 1
        else:
            younger += 1
    return Swept(ended, younger)


def _sweep_folder(folder: Path, before: float) -> Swept:
    ended = younger = 0
    for file in folder.rglob("*#*"):
        if not STAGED.fullmatch(file.name):
            continue
        if file.stat().st_mtime < before:
            file.unlink(missing_ok=True)
            ended += 1
        else:
            younger += 1
    return Swept(ended, younger)


class _Bucket:
    """The two requests, of one bucket."""

    def __init__(self, objects: Objects) -> None:
        self.place = objects.place
        self.region = (
            os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        )
        where = urlsplit(endpoint() or f"https://s3.{self.region}.amazonaws.com")
        self.server, self.host = f"{where.scheme}://{where.netloc}", where.netloc
        self.root = f"{where.path.rstrip('/')}/{self.place.bucket}"
        self.key = os.environ.get("AWS_ACCESS_KEY_ID") or ""
        if not self.key:
            raise InvalidRequest(
                "uploads that were left behind can be ended with AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY only; without, give the bucket a rule "
                "(AbortIncompleteMultipartUpload)"
            )

    def uploads(self) -> Iterator[Upload]:
        """Yield what was begun and not ended, under our prefix."""
        prefix = f"{self.place.prefix}/" if self.place.prefix else ""
        query = {"uploads": "", "prefix": prefix}
        for _ in range(MOST_PAGES):
            page = self._ask("GET", "", query)
            for found in re.findall(r"<Upload>(.*?)</Upload>", page, re.DOTALL):
                upload = _upload_of(found)
                if upload.key.startswith(prefix):  # a server may not know `prefix`
                    yield upload
            if _field(page, "IsTruncated") != "true":
                return
            query |= {
                "key-marker": _field(page, "NextKeyMarker"),
                "upload-id-marker": _field(page, "NextUploadIdMarker"),
            }

    def end(self, upload: Upload) -> None:
        """End one, and free what it holds; one that is gone is no error."""
        self._ask("DELETE", upload.key, {"uploadId": upload.id}, gone_is_fine=True)

    def _ask(
        self, method: str, key: str, query: dict[str, str], *, gone_is_fine: bool = False
    ) -> str:
        path = quote(f"{self.root}/{key}" if key else self.root, safe="/~")
        asked = urlencode(sorted(query.items()), quote_via=quote, safe="~")
        address = f"{self.server}{path}?{asked}"
        headers = self._signed(method, path, asked)
        request = Request(address, method=method, headers=headers)  # noqa: S310
        what = f"look for uploads left behind in {self.place.shown}"
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the operator's own
                return answer.read(MOST_BYTES).decode(errors="replace")
        except HTTPError as error:
            if gone_is_fine and error.code == 404:
                return ""
            code = code_of(error.read(MOST_BYTES).decode(errors="replace"))
            raise OutputError(f"cannot {what}: the server answered {error.code} ({code})") from None
        except (URLError, OSError) as error:
            why = getattr(error, "reason", error)
            raise OutputError(f"cannot {what}: {why}") from None

    def _signed(self, method: str, path: str, query: str) -> dict[str, str]:
        """Return the headers of a request without a body, signed."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self.host, "x-amz-content-sha256": EMPTY, "x-amz-date": now}
        token = os.environ.get("AWS_SESSION_TOKEN")
        if token:
            headers["x-amz-security-token"] = token
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{EMPTY}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashed}"
        key = f"AWS4{os.environ.get('AWS_SECRET_ACCESS_KEY', '')}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return headers


def _upload_of(page: str) -> Upload:
    began = _field(page, "Initiated")
    at = datetime.fromisoformat(began).timestamp() if began else time.time()
    return Upload(_field(page, "Key"), _field(page, "UploadId"), at)


def _field(page: str, name: str) -> str:
    found = re.search(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
    return html.unescape(found[1]) if found else ""
