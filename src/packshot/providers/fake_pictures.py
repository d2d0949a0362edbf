"""What the fake provider does as Stability: forms in, pictures out, some of them filtered.

A picture is two colours that depend on its prompt and seed, and small: what matters is that it is a
real PNG of the shape that was asked for. What replaces a background is an id at first, and lies
behind ``/results/`` after `Settings.pending` looks there, as with the real one.
"""

from __future__ import annotations

import re
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from packshot.providers.fake_answers import Refused
from packshot.providers.fake_script import Fault

__all__ = ["AskedPicture", "Waiting", "body_of", "error_of", "is_picture", "read_form"]

SIDE = 64
"""Pixels of a picture's shorter side."""

PATHS: dict[str, str] = {
    "/stable-image/generate/sd3": "sd3.5-large",
    "/stable-image/generate/core": "stable-image-core",
    "/stable-image/generate/ultra": "stable-image-ultra",
    "/stable-image/edit/replace-background-and-relight": "replace-background-and-relight",
}

NAMES = {
    400: "bad_request",
    401: "unauthorized",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    413: "payload_too_large",
    422: "bad_request",
    429: "rate_limit_exceeded",
}

PART = re.compile(rb'(?i)content-disposition: form-data; name="([^"]*)"(?:; filename="([^"]*)")?')

Key: TypeAlias = Literal["image", "result"]


@dataclass(frozen=True, slots=True)
class AskedPicture:
    """A picture that is asked for; ``later`` is one whose answer is an id at first."""

    model: str
    prompt: str
    seed: int
    ratio: str
    later: bool


@dataclass(slots=True)
class Waiting:
    """A picture that lies behind ``/results/``, after ``looks`` that come too early."""

    body: bytes
    fault: Fault
    looks: int
    key: str = field(default="", repr=False)


def is_picture(path: str) -> bool:
    """Tell whether a path is one of Stability's."""
    return "/stable-image/" in path or "/results/" in path


def read_form(path: str, kind: str, body: bytes) -> AskedPicture:
    """Return what a form asks for.

    Raises:
        Refused: it is no form, or lacks what its endpoint needs.
    """
    model = next((PATHS[end] for end in PATHS if path.endswith(end)), None)
    if model is None:
        raise Refused(404, f"there is no {path}")
    texts, files = _parts(kind, body)
    later = model.startswith("replace")
    prompt = texts.get("background_prompt" if later else "prompt", "")
    if not prompt:
        raise Refused(400, "prompt: cannot be blank")
    if later and not files.get("subject_image", b""):
        raise Refused(400, "subject_image: is required")
    if texts.get("mode") == "image-to-image" and not (files.get("image") and "strength" in texts):
        raise Refused(400, "image, strength: are required for image-to-image")
    if texts.get("output_format", "png") != "png":
        raise Refused(400, "output_format: the fake draws png only")
    seed = int(texts.get("seed", "0")) or zlib.crc32(prompt.encode())
    ratio = texts.get("aspect_ratio", "1:1")
    return AskedPicture(texts.get("model", model), prompt, seed, ratio, later)


def _parts(kind: str, body: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """Take a form apart; it must end as one does."""
    _, _, boundary = kind.partition("boundary=")
    if not kind.startswith("multipart/form-data") or not boundary:
        raise Refused(400, "content-type: must be multipart/form-data")
    line = b"--" + boundary.encode("latin-1")
    first, *parts, last = (b"\r\n" + body).split(b"\r\n" + line)
    if first.strip() or last.strip() != b"--":
        raise Refused(400, "the form is torn")
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for part in parts:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        found = PART.search(head)
        if found is None:
            raise Refused(400, "a part of the form has no name")
        if found[2] is None:
            texts[found[1].decode()] = data.decode()
        else:
            files[found[1].decode()] = data
    return texts, files


def body_of(asked: AskedPicture, fault: Fault) -> bytes:
    """Return the JSON of a picture, or of one that the filter blurred."""
    filtered = fault.code == "filter"
    picture = _png(asked, plain=filtered)
    key: Key = "result" if asked.later else "image"
    said = "CONTENT_FILTERED" if filtered else "SUCCESS"
    fields = {key: b64encode(picture).decode(), "finish_reason": said, "seed": asked.seed}
    return msgspec.json.encode(fields)


def error_of(fault: Fault, message: str) -> bytes:
    """Return the body of an error."""
    name = NAMES.get(fault.status, "internal_error")
    if fault.code == "filter":
        name = "content_moderation"
    said = message or f"fake {fault.status}"
    return msgspec.json.encode({"id": "fake", "name": name, "errors": [said]})


def _png(asked: AskedPicture, *, plain: bool) -> bytes:
    """Return a PNG of two colours, one above the other."""
    across, _, down = asked.ratio.partition(":")
    shape = int(across) / int(down or "1")
    width, height = round(SIDE * max(1.0, shape)), round(SIDE * max(1.0, 1 / shape))
    mark = zlib.crc32(f"{asked.prompt}\0{asked.seed}".encode())
    colours = [b"\x80\x80\x80"] * 2 if plain else [struct.pack(">I", mark)[:3], b"\xf0\xf0\xf0"]
    rows = b"".join(b"\0" + colours[y * 2 // height] * width for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
