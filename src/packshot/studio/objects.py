"""The object store: finished files under the names of their own content, in a folder or a bucket.

What lies there::

    objects/3f/3f9a…c2.png     a finished file: the SHA-256 of its bytes, and its type
    …                          what a caller publishes under a name of its own (`publish`)

A key says what is in it, so that writing a file twice is writing it once, and no file is ever
overwritten by another. Every write is conditional (``If-None-Match: *``), and checked: the MD5 that
the server answers with must be ours, else the file is read back. What is longer than `MULTIPART`
goes up in parts, which S3 cannot make conditional: whether it is there is asked before.

obstore does the talking, by its synchronous calls: its asynchronous ones can abort the interpreter
as it exits. Credentials come from the environment (``AWS_ACCESS_KEY_ID`` and so on, as the
provider's own tools read them), and are in no message and no ``repr``.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from packshot.core.errors import InvalidRequest, OutputError, unknown_name
from packshot.core.ids import new_id
from packshot.studio.object_errors import (
    Different,
    is_lasting,
    is_missing_bucket,
    told,
    unusable,
)
from packshot.studio.recipes.step import Kept
from packshot.studio.store import probe

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

__all__ = [
    "DEADLINE_S",
    "MULTIPART",
    "PART",
    "SCHEMES",
    "Objects",
    "check_place",
    "is_address",
    "read_object",
]

SCHEMES = ("s3", "gs", "az")
"""Of addresses; what has none of these is a folder."""

PART = 8 * 1024 * 1024
"""Bytes of one part. S3 wants at least 5 MiB."""

MULTIPART = 2 * PART
"""A file longer than this goes up in parts."""

AT_ONCE = 4
"""Parts of one file that go up at the same time."""

DEADLINE_S = 120.0
"""Seconds until a write or read is given up, with all that was tried."""

INNER_S, INNER_TRIES = 10.0, 2
"""Of obstore's own retries of one request, before the whole of it is tried again."""

BACKOFF_S, MOST_BACKOFF_S = 0.2, 10.0
"""The first wait between two tries, which doubles, and the longest; each is drawn below that."""

REQUEST_S = 60
"""Of one request, to its end: a part at 140 kB/s."""

KEYS = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
ENDING = re.compile(r"\.[a-z0-9]{1,8}")
LOOPBACK = ("http://127.0.0.1", "http://localhost", "http://[::1]")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"),
}
"""Variables of which one must be set: without any, the library would ask the network who we are."""

ANONYMOUS = ("AWS_SKIP_SIGNATURE", "GOOGLE_SKIP_SIGNATURE", "AZURE_SKIP_SIGNATURE")

T = TypeVar("T")


def check_place(where: str) -> None:
    """Raise `InvalidRequest` for what is neither a folder nor the address of a bucket."""
    _place(where)


def is_address(out: str) -> bool:
    """Tell whether ``out`` names a bucket, "s3://…", and not a folder."""
    return "://" in out


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, or a bucket and a prefix in it; ``shown`` is what messages call it."""

    scheme: str
    bucket: str
    prefix: str
    shown: str


class Objects:
    """A store at ``where``: a folder, "s3://bucket/prefix", "gs://…" or "az://…". Thread-safe.

    Nothing is asked of the network before `probe` or the first use.

    Raises:
        InvalidRequest: it is no such address, or the environment has no credentials for it.
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        where: str,
        *,
        deadline_s: float = DEADLINE_S,
        part: int = PART,
    ) -> None:
        self.place = _place(where)
        self.deadline_s = deadline_s
        self.part = part
        self._store = _opened(self.place)

    def __repr__(self) -> str:
        """Return where it is, and nothing of who we are there."""
        return f"Objects({self.place.shown!r})"

    def probe(self) -> None:
        """Write a small object and remove it again: what would fail later fails now.

        Raises:
            OutputError: the bucket is missing, or may not be written to, or cannot be reached.
        """
        import obstore

        key = f".probe-{new_id()}"
        if not self.place.scheme:
            # Not by obstore, which tries for ever in a folder where no file can be made (/proc).
            return probe(Path(self.place.bucket) / key)
        self._tried(f"write to {self.place.shown}", lambda: obstore.put(self._store, key, b"\n"))
        self._tried(f"remove from {self.place.shown}", lambda: obstore.delete(self._store, key))
        return None

    def put(self, data: bytes, name: str = "", /) -> Kept:
        """Keep ``data`` under its own hash, with the ending of ``name``; once, however often.

        Raises:
            OutputError: it could not be written in `deadline_s`, or what is there is not it.
        """
        digest = hashlib.sha256(data).hexdigest()
        return self._create(key_of(digest, name), data, digest)

    def publish(self, key: str, data: bytes, *, replace: bool = False) -> Kept:
        """Write ``data`` under a name of the caller's; it is there whole, or not at all.

        Without ``replace``, what is there already must be the same bytes.

        Raises:
            InvalidRequest: the key is not one, or something else is there.
            OutputError: it could not be written; with ``replace``, somebody else has written it
                in the meantime.
        """
        if not KEYS.fullmatch(key) or ".." in key.split("/"):
            raise InvalidRequest(
                f"the key {key!r}: expected letters, digits, '.', '_', '-' and '/'"
            )
        digest = hashlib.sha256(data).hexdigest()
        if replace:
            return self._replace(key, data, digest)
        try:
            return self._create(key, data, digest)
        except Different as error:
            raise InvalidRequest(
                f"{self._shown(key)} is there already, with other content: choose another name"
            ) from error

    def read(self, key: str, most: int = 0) -> bytes:
        """Return an object's bytes; more than ``most`` of them (0: no limit) are refused.

        Raises:
            InvalidRequest: it is larger.
            OutputError: it is not there, or cannot be read.
        """
        import obstore

        def get() -> bytes:
            got = obstore.get(self._store, key)
            if most and got.meta["size"] > most:
                raise InvalidRequest(
                    f"{self._shown(key)} has {got.meta['size']} bytes, at most {most} are read"
                )
            return bytes(got.bytes())

        try:
            return self._tried(f"read {self._shown(key)}", get)
        except FileNotFoundError:
            raise OutputError(f"cannot read {self._shown(key)}: it is not there") from None

    def listed(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the key and size of what is there, in the folder ``prefix`` and those below."""
        import obstore

        pages = iter(obstore.list(self._store, prefix or None, return_arrow=False))  # pyright: ignore[reportUnknownMemberType]
        while page := self._tried(f"list {self._shown(prefix)}", lambda: next(pages, None)):
            yield from ((each["path"], each["size"]) for each in page)

    # ---- one write

    def _create(self, key: str, data: bytes, digest: str) -> Kept:
        """Write what must not be there yet; what is there must be the same."""
        from obstore.exceptions import AlreadyExistsError

        what = f"write {self._shown(key)}"
        large = len(data) > max(MULTIPART, self.part)
        requests = 3 + -(-len(data) // self.part) if large else 1
        if large and self._is_there(key):
            return self._as_it_was(key, data, digest, requests=2)
        try:
            write = self._in_parts if large else self._at_once
            tag = self._tried(what, lambda: write(key, data))
        except AlreadyExistsError:
            return self._as_it_was(key, data, digest, requests=requests + 1)
        self._compare(key, data, digest, tag)
        return Kept(key, digest, len(data), requests=requests)

    def _as_it_was(self, key: str, data: bytes, digest: str, requests: int) -> Kept:
        self._compare(key, data, digest, self._tag(key))
        return Kept(key, digest, len(data), new=False, requests=requests)

    def _replace(self, key: str, data: bytes, digest: str) -> Kept:
        """Write what may be there already, if it is still what it was when we looked."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        what = f"write {self._shown(key)}"
        mode: PutMode = "overwrite"  # in a folder: renamed over what is there
        if self.place.scheme:
            try:
                mode = {"e_tag": self._tag(key)}
            except FileNotFoundError:
                mode = "create"
        try:
            tag = self._tried(what, lambda: self._at_once(key, data, mode))
        except (AlreadyExistsError, PreconditionError) as error:
            # Or it was us, and the answer was lost: then what is there is what we wrote.
            try:
                self._compare(key, data, digest, self._tag(key))
            except Different:
                raise OutputError(
                    f"cannot {what}: another process has written it since; is a second one at work?"
                ) from error
            return Kept(key, digest, len(data), requests=3)
        self._compare(key, data, digest, tag)
        return Kept(key, digest, len(data), requests=2)

    def _at_once(self, key: str, data: bytes, mode: PutMode = "create") -> str:
        import obstore

        done = obstore.put(self._store, key, data, mode=mode, use_multipart=False)
        self._sync(key)
        return done["e_tag"] or ""

    def _in_parts(self, key: str, data: bytes) -> str:
        import obstore

        done = obstore.put(
            self._store,
            key,
            data,
            use_multipart=True,
            chunk_size=self.part,
            max_concurrency=AT_ONCE,
        )
        self._sync(key)
        return done["e_tag"] or ""

    def _sync(self, key: str) -> None:
        """Have a folder's file, and its place in the folder, outlive a loss of power."""
        if self.place.scheme:
            return
        file = Path(self.place.bucket) / key
        for path in (file, *list(file.parents)[: key.count("/") + 1]):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _tag(self, key: str) -> str:
        import obstore

        what = f"look at {self._shown(key)}"
        return self._tried(what, lambda: obstore.head(self._store, key))["e_tag"] or ""

    def _is_there(self, key: str) -> bool:

        try:
            self._tag(key)
        except FileNotFoundError:
            return False
        return True

    def _compare(self, key: str, data: bytes, digest: str, tag: str) -> None:
        """Raise `Different` where the object is not ``data``: by its tag, else by reading it.

        A tag is the MD5 of the content, or of its parts' MD5s, unless the bucket encrypts with keys
        of its own, or is a folder.
        """
        if tag.strip('"') in (_md5(data), _md5_of_parts(data, self.part)):
            return
        found = hashlib.sha256(self.read(key)).hexdigest()
        if found != digest:
            raise Different(
                f"{self._shown(key)} does not hold what was written: SHA-256 {found}, expected "
                f"{digest}. Delete it, and run the same command again"
            )

    # ---- trying again

    def _tried(self, what: str, action: Callable[[], T]) -> T:
        """Return what ``action`` returns, tried again where that may help, until the deadline."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        end = time.monotonic() + self.deadline_s
        wait = BACKOFF_S
        while True:
            try:
                return _interruptible(action)
            except (AlreadyExistsError, PreconditionError):
                raise
            except (BaseError, OSError) as error:
                if isinstance(error, FileNotFoundError) and not is_missing_bucket(error):
                    raise  # the object, which may be what was asked
                # How long is drawn, so that many clients do not come back at the same instant.
                pause = random.uniform(wait / 2, wait)
                if is_lasting(error, self.place.scheme) or time.monotonic() + pause > end:
                    raise told(error, what, self.place.scheme, self.place.bucket) from None
                time.sleep(pause)
                wait = min(2 * wait, MOST_BACKOFF_S)

    def _shown(self, key: str) -> str:
        return f"{self.place.shown.rstrip('/')}/{key}"


def _interruptible(action: Callable[[], T]) -> T:
    """Return what ``action`` returns; Ctrl-C ends the wait for it, though not the request.

    A call of obstore in the main thread would keep the interrupt waiting, until the request's end.
    """
    if threading.current_thread() is not threading.main_thread():
        return action()
    done: Future[T] = Future()

    def act() -> None:
        try:
            done.set_result(action())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=act, name="object store", daemon=True).start()
    return done.result()


def key_of(digest: str, name: str = "") -> str:
    """Return the key of the content with this SHA-256; ``name`` gives its ending."""
    ending = Path(name).suffix.lower()
    return f"objects/{digest[:2]}/{digest}{ending if ENDING.fullmatch(ending) else ''}"


@lru_cache(maxsize=16)
def _bucket(address: str) -> Objects:
    return Objects(address)


def read_object(address: str, most: int = 0) -> bytes:
    """Return the bytes of the object at "s3://bucket/key": a photo that a batch names.

    Raises:
        InvalidRequest, OutputError: as for `Objects`, and for `Objects.read`.
    """
    place = _place(address)
    if not place.scheme or not place.prefix:
        raise InvalidRequest(f"{address!r} is no object's address; expected s3://BUCKET/KEY")
    return _bucket(f"{place.scheme}://{place.bucket}").read(place.prefix, most)


def _place(where: str) -> Place:
    """Return what an address means; it may hold no password, query or fragment."""
    if not is_address(where):
        folder = str(Path(where or ".").expanduser().absolute())
        return Place("", folder, "", where)
    parts = urlsplit(where)
    if parts.scheme not in SCHEMES:
        raise unknown_name("kind of store", parts.scheme, SCHEMES)
    if "@" in parts.netloc or parts.query or parts.fragment or ":" in parts.netloc:
        raise InvalidRequest(
            f"an address is {parts.scheme}://BUCKET/PREFIX and nothing more: keys and the "
            "endpoint come from the environment"
        )
    if not parts.netloc:
        raise InvalidRequest(f"{where!r} names no bucket; expected {parts.scheme}://BUCKET/PREFIX")
    prefix = parts.path.strip("/")
    return Place(parts.scheme, parts.netloc, prefix, where)


def _opened(place: Place) -> ObjectStore:
    """Return obstore's store, which reads the environment itself, with our limits.

    Where S3 is told a checksum, it refuses bytes that changed on their way.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, LocalStore, S3Store
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            'object stores need obstore, which is not installed: pip install "packshot[render]"'
        ) from error
    if not place.scheme:
        return _folder(place, LocalStore)
    names = NEEDS[place.scheme]
    if not any(os.environ.get(name) for name in (*names, *ANONYMOUS)):
        raise InvalidRequest(
            f"no credentials for {place.shown}: set one of {', '.join(names)} in the environment"
        )
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    retries = {
        "max_retries": INNER_TRIES,
        "retry_timeout": timedelta(seconds=INNER_S),
        "backoff": {"max_backoff": timedelta(seconds=2)},
    }
    try:
        return kinds[place.scheme](
            place.bucket,
            prefix=place.prefix or None,
            client_options={"allow_http": _may_be_plain(), "timeout": f"{REQUEST_S}s"},
            retry_config=retries,
            **({"checksum_algorithm": "SHA256"} if place.scheme == "s3" else {}),
        )
    except BaseError as error:
        raise unusable(error, place.shown, place.scheme) from None


def _folder(place: Place, local: Any) -> ObjectStore:  # noqa: ANN401 - obstore's class
    folder = Path(place.bucket)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write to {place.shown}: it is a file, expected a folder")
    try:
        return local(folder, mkdir=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {place.shown}: {error}") from error


def endpoint() -> str:
    """Return the address of the S3 server that the environment names, or ""."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _may_be_plain() -> bool:
    """Tell whether an address without TLS will do: of this machine, or where it is so asked."""
    return os.environ.get("AWS_ALLOW_HTTP") == "true" or endpoint().startswith(LOOPBACK)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5_of_parts(data: bytes, part: int) -> str:
    """Return S3's tag of an upload in parts: the MD5 of the parts' MD5s, and their number."""
    if len(data) <= part:
        return ""
    sums = [
        hashlib.md5(data[at : at + part], usedforsecurity=False).digest()
        for at in range(0, len(data), part)
    ]
    return f"{_md5(b''.join(sums))}-{len(sums)}"
