"""The recipe record: a picture file that says how to make it again, bit for bit.

It is one JSON object. A PNG holds it as the iTXt chunk ``packshot``, a JPEG or WebP as the EXIF
user comment; the brief and the maker are in the usual fields beside it, for other programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import packshot
from packshot.core.errors import InvalidRequest, OutputError
from packshot.core.types import Precision, Sampler, Schedule, Spacing
from packshot.studio.caption import RULES, Writer
from packshot.studio.finish import Sharpen
from packshot.studio.original import Source

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Hosted",
    "Maker",
    "Making",
    "Record",
    "code_mark",
    "library_versions",
    "metadata",
    "read_making",
    "read_record",
]

KEY = "packshot"
EXIF_IFD, USER_COMMENT, DESCRIPTION, SOFTWARE = 0x8769, 0x9286, 0x010E, 0x0131  # EXIF 2.32
ASCII = b"ASCII\0\0\0"  # the character code that opens an EXIF user comment
MAX_CONTENT = 60_000  # bytes; EXIF as a whole holds 65,533
LIBRARIES = ("torch", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Maker:
    """A model or the program: name, version, and a fingerprint of what it consists of."""

    name: str
    version: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Hosted:
    """Who made a picture in our stead: asked for as ``route``, since ``why`` ("device": none was
    alive; "wait": the line was too long; "deadline": it would have been late), with their ``seed``.
    """

    provider: str
    model: str
    route: str
    why: str
    seed: int


@dataclass(frozen=True, slots=True)
class Record:
    """Every resolved parameter of one picture. ``width`` and ``height`` are the engine's pixels,
    ``size`` the finished picture's; ``device`` is its kind, ``threads`` those of its CPU,
    ``libraries`` those whose arithmetic the bits depend on. ``writer`` is who wrote the caption,
    ``source`` the files of the picture that it started from. With ``hosted`` a provider made it:
    then nothing is known of steps and arithmetic, and it cannot be made again.
    """

    brief: str
    caption: str
    raw: bool
    negative: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    sampler: Sampler
    schedule: Schedule
    spacing: Spacing
    precision: Precision
    vae_precision: Precision
    device: str
    threads: int
    size: tuple[int, int]
    sharpen: Sharpen | None
    model: Maker
    code: Maker
    libraries: dict[str, str]
    format: int = 1
    writer: Writer = RULES
    source: Source | None = None
    hosted: Hosted | None = None


@dataclass(frozen=True, slots=True)
class Making:
    """How a recipe made a picture: every parameter of every step, and what the steps found.

    ``recipe`` is `Recipe.facts`; ``photo`` the SHA-256 of the customer's file, "" without one;
    ``render`` the record of what the engine made, None where it made nothing. What it cost is in
    the ledger, under the picture's id, and in the manifest: times differ, and the same picture is
    to be the same file.
    """

    recipe: Mapping[str, Any]
    brief: str
    caption: str
    seed: int
    photo: str
    facts: Mapping[str, Any]
    render: Record | None
    code: Maker
    format: int = 2


@lru_cache(maxsize=1)
def code_mark() -> Maker:
    """Return the version of packshot and a fingerprint of the source that decides a picture's bits.

    That is the engine and the studio: 16 hex digits of SHA-256 over names and contents.
    """
    root = Path(packshot.__file__).parent
    digest = hashlib.sha256()
    for part in ("core", "engine", "studio"):
        for file in sorted((root / part).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(file.read_bytes() + b"\0")
    return Maker("packshot", packshot.__version__, digest.hexdigest()[:16])


def library_versions() -> dict[str, str]:
    """Return the installed version of each library that the bits of a picture depend on."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def metadata(
    image_format: str, record: Record | Making | None, description: str
) -> Mapping[str, Any]:
    """Return Pillow's ``save`` arguments that put ``record`` into a PNG, JPEG or WEBP file.

    A file that is more than one render (a contact sheet) has None, and its ``description`` alone.

    Raises:
        InvalidRequest: the record is longer than EXIF has room for.
    """
    from PIL.Image import Exif
    from PIL.PngImagePlugin import PngInfo

    content = json.dumps(msgspec.to_builtins(record), separators=(",", ":")) if record else ""
    if len(content) > MAX_CONTENT:
        raise InvalidRequest(
            f"the record of how the picture was made has {len(content)} bytes, more than the "
            f"{MAX_CONTENT} that a file has room for: its steps note too much in `facts`"
        )
    software = f"packshot {packshot.__version__}"
    if image_format == "PNG":
        info = PngInfo()
        info.add_itxt("Description", description)
        info.add_itxt("Software", software)
        if content:
            info.add_itxt(KEY, content)
        return {"pnginfo": info}
    exif = Exif()
    exif[DESCRIPTION] = description.encode("ascii", "replace").decode()
    exif[SOFTWARE] = software
    if content:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + content.encode("ascii")
    return {"exif": exif}


def read_record(path: Path) -> Record:
    """Return the record that a picture of ours carries.

    Raises:
        OutputError: the file cannot be read, or is not a picture.
        InvalidRequest: it carries no record, or one of another kind or format.
    """
    content = _content(path)
    if content is None:
        raise InvalidRequest(
            f"{path} carries no packshot record; it was not made by `packshot render`, "
            "or a program that rewrote it dropped its metadata"
        )
    try:
        if "recipe" in (made := msgspec.json.decode(content, type=dict[str, Any])):
            raise InvalidRequest(
                f"{path} was made by the recipe {made['recipe'].get('name')!r}, not by `packshot "
                "render`: run the recipe again, with the same photo, brief and seed"
            )
        return msgspec.json.decode(content, type=Record)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(
            f"the record in {path} is not one of a single render: {error}"
        ) from error


def read_making(path: Path) -> Making:
    """Return how the recipe made the picture at ``path``.

    Raises:
        OutputError: the file cannot be read, or is not a picture.
        InvalidRequest: no recipe made it.
    """
    content = _content(path)
    if content is None:
        raise InvalidRequest(f"{path} carries no packshot record; no recipe made it")
    try:
        return msgspec.json.decode(content, type=Making)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the record in {path} is not one of a recipe: {error}") from error


def _content(path: Path) -> bytes | None:
    """Return the raw JSON in a file's metadata, or None."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            return _png_text(image) if image.format == "PNG" else _exif_comment(image)
    except UnidentifiedImageError as error:
        raise OutputError(f"{path} is not a PNG, JPEG or WebP picture") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def _png_text(image: Image) -> bytes | None:
    text = image.info.get(KEY)
    return text.encode() if isinstance(text, str) else None


def _exif_comment(image: Image) -> bytes | None:
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(ASCII + b"{"):
        return comment[len(ASCII) :]
    return None
