"""The configuration file: YAML in, typed records out, and every mistake with its line.

`read` checks the document as a whole (size, depth, duplicate keys; no tags, anchors or second
document). `Document.section` decodes one section into a dataclass or a msgspec Struct, whose field
names are the keys and whose types say what a value must be. Numbers that are money are declared
`Decimal`, and are made from the text as it was typed: 2.30 never passes through a float.

A value may be ``env.NAME`` or hold ``${NAME}`` or ``${NAME:-default}`` (the environment), or be
``file:PATH`` (the text of a file, relative to the configuration's folder). What came from there is
never shown in an error.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from packshot.core.errors import InvalidRequest, OutputError, PackshotError, unknown_name
from packshot.core.money import decimal_of

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Document", "Secret", "read"]

MAX_BYTES = 1 << 20
"""Of the file. The largest that we know of, a thousand virtual keys, has a fifth of it."""

MAX_DEPTH = 32
"""Of nesting; what we define needs seven."""

MAX_SECRET_BYTES = 64 << 10
"""Of a file named by ``file:PATH``."""

T = TypeVar("T")

Kind: TypeAlias = Any
"""A type as `get_type_hints` returns it, for which Python has no type of its own."""

Value: TypeAlias = Any
"""A value of the kind that was asked for."""

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
WHOLE_VARIABLE = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)")
ELSEWHERE = re.compile(r"env\.\w+|file:.+|\$\{\w+\}")
"""What stands for a secret: a reference to where it really is."""

MOST_NAMED = 10
"""Variables that are missing and named in one message, beside the one that is asked for."""

INTEGER = re.compile(r"[+-]?[0-9][0-9_]*")
TRUTH = {"true": True, "false": False}
NOTHING = frozenset(("", "~", "null"))


class Secret(str):
    """A text that no ``repr`` shows and no configuration holds: env.NAME or file:PATH does."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return what may stand in a log."""
        return "Secret(…)"


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration file: the node of each of its sections, and what the values may refer to."""

    path: Path
    sections: Mapping[str, Node]
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    literal: bool = False
    """Whether values stand as they are typed: ``env.NAME``, ``${NAME}`` and ``file:`` are text."""

    def section(self, name: str, kind: type[T]) -> T | None:
        """Return section ``name`` as a ``kind``, or None where the file does not have it.

        Raises:
            InvalidRequest: a key is unknown or missing, or a value is not of its type.
        """
        node = self.sections.get(name)
        if node is None or _is_null(node):
            return None
        return _Decoder(self).decode(node, kind, name)

    def tagged(
        self, name: str, tag: str, body: str, kinds: Mapping[str, type[Any]]
    ) -> tuple[Value, ...]:
        """Return section ``name``, a list of ``{tag: NAME, body: {…}}``: each a ``kinds[NAME]``.

        Raises:
            InvalidRequest: as for `section`, or a NAME is none of ``kinds``.
        """
        node = self.sections.get(name)
        if node is None:
            return ()
        return _Decoder(self).tagged(node, name, (tag, body), kinds)


def read(
    path: Path,
    known: frozenset[str],
    environment: Mapping[str, str] | None = None,
    *,
    literal: bool = False,
) -> Document:
    """Return the document in ``path``; ``known`` are the sections that it may have.

    ``literal`` takes values as they are typed: nothing of the environment or of other files.

    Raises:
        OutputError: the file cannot be read.
        InvalidRequest: it is no YAML of the kind described above, or has an unknown section.
    """
    text = _text_of(path)
    environment = os.environ if environment is None else environment
    try:
        _check_events(path, text)
        root = cast("Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or "it holds a character that YAML does not allow"
        raise InvalidRequest(f"{path}{line}: not valid YAML: {said}") from error
    if root is None or _is_null(root):
        return Document(path, {}, environment, literal)
    if not isinstance(root, MappingNode):
        raise _at(path, root, "expected sections (`ledger:` and so on) at the top of the file")
    _check_keys(path, root)
    sections = {key.value: value for key, value in root.value}
    for key, _ in root.value:
        if key.value not in known:
            raise _at(path, key, str(unknown_name("section", key.value, known)))
    return Document(path, sections, environment, literal)


def _text_of(path: Path, limit: int = MAX_BYTES) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise InvalidRequest(f"{path} is larger than {limit} bytes; split it or shorten it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text") from error


def unset(document: Document) -> list[str]:
    """Return the environment variables that a file needs and that are not there, in its order."""
    found: dict[str, None] = {}
    for node in document.sections.values():
        for text in _texts(node):
            whole = WHOLE_VARIABLE.fullmatch(text)
            bare = (m[1] for m in VARIABLE.finditer(text) if m[2] is None)
            found |= dict.fromkeys([whole[1]] if whole else bare)
    return [name for name in found if not document.environment.get(name)]


def _texts(node: Node) -> Iterator[str]:
    """Yield the scalars of a node, keys aside; the file's depth is bounded."""
    if isinstance(node, MappingNode):
        for _, value in node.value:
            yield from _texts(value)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from _texts(value)
    elif isinstance(node, ScalarNode):
        yield str(node.value)


def _at(path: Path, node: Node, said: str) -> InvalidRequest:
    return InvalidRequest(f"{path}, line {node.start_mark.line + 1}: {said}")


def _check_events(path: Path, text: str) -> None:
    """Refuse, before any tree is built, what could make one of another size than the file's."""
    depth = documents = 0
    events = cast("Iterator[Any]", yaml.parse(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.events.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.events.CollectionEndEvent):
            depth -= 1
        documents += isinstance(event, yaml.events.DocumentStartEvent)
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{path}, line {line}: nested deeper than {MAX_DEPTH} levels")
        if documents > 1:
            raise InvalidRequest(f"{path}, line {line}: a second document (`---`); expected one")
        if getattr(event, "anchor", None) is not None:
            raise InvalidRequest(
                f"{path}, line {line}: anchors and aliases (`&`, `*`) are not read; "
                "write the value out, or put it in quotes"
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise InvalidRequest(f"{path}, line {line}: the tag {tag!r} is not read; leave it out")


def _check_keys(path: Path, node: Node) -> None:
    """Refuse keys that are no text, and the same key twice: one of the two would be lost."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_keys(path, item)
    if not isinstance(node, MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise _at(path, key, "a key must be a word, got a list or a mapping")
        if key.value in first:
            raise _at(path, key, f"the key {key.value!r} stands in line {first[key.value]} already")
        first[key.value] = key.start_mark.line + 1
        _check_keys(path, value)


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in NOTHING


class _Decoder:
    """Turns nodes into values of a declared type; ``where`` is the dotted name of the value."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def decode(self, node: Node, kind: Kind, where: str) -> Value:
        """Return ``node`` as a ``kind``."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in {Union, types.UnionType} and type(None) in arguments:
            if _is_null(node):
                return None
            (kind,) = (a for a in arguments if a is not type(None))
            return self.decode(node, kind, where)
        if origin in {dict, Mapping}:
            pairs = self._pairs(node, where).items()
            return {k: self.decode(v, arguments[1], f"{where}.{k}") for k, (_, v) in pairs}
        if origin is tuple:
            items = enumerate(self._items(node, where))
            return tuple(self.decode(item, arguments[0], f"{where}[{i}]") for i, item in items)
        if dataclasses.is_dataclass(kind) or hasattr(kind, "__struct_fields__"):
            return self._record(node, kind, where)
        return self._scalar(node, kind, where)

    def tagged(
        self, node: Node, where: str, keys: tuple[str, str], kinds: Mapping[str, type[Any]]
    ) -> tuple[Value, ...]:
        """Return a list of records, each of the kind that its own tag names."""
        made: list[Value] = []
        for number, item in enumerate(self._items(node, where)):
            here = f"{where}[{number}]"
            pairs = self._pairs(item, here)
            for name, (key, _) in pairs.items():
                if name not in keys:
                    raise self._wrong(key, here, str(unknown_name("key", name, keys)))
            if keys[0] not in pairs:
                raise self._wrong(item, here, f"{keys[0]} must be given")
            tag = pairs[keys[0]][1]
            chosen = self._scalar(tag, str, f"{here}.{keys[0]}")
            if chosen not in kinds:
                raise self._wrong(tag, here, str(unknown_name(keys[0], chosen, kinds)))
            body = pairs[keys[1]][1] if keys[1] in pairs else None
            made.append(self._record(body or tag, kinds[chosen], chosen, empty=body is None))
        return tuple(made)

    def _record(self, node: Node, kind: Kind, where: str, *, empty: bool = False) -> Value:
        """Return a dataclass or Struct of the mapping ``node``, whose keys are its fields."""
        hints, required = _fields(kind), _required(kind)
        values: dict[str, Any] = {}
        for name, (key, value) in ({} if empty else self._pairs(node, where)).items():
            if name not in hints:
                raise self._wrong(key, where, _unknown_key(name, hints))
            values[name] = self.decode(value, hints[name], f"{where}.{name}")
        missing = sorted(required - values.keys())
        if missing:
            raise self._wrong(node, where, f"{', '.join(missing)} must be given")
        try:
            return kind(**values)
        except PackshotError as error:
            raise self._wrong(node, where, str(error)) from error

    def _scalar(self, node: Node, kind: Kind, where: str) -> Value:
        if not isinstance(node, ScalarNode):
            raise self._wrong(node, where, f"expected {_name_of(kind)}, got {_shape(node)}")
        if kind is Secret and node.value and not ELSEWHERE.fullmatch(node.value):
            raise self._wrong(
                node, where, "a secret may not stand in the file: write env.NAME or file:PATH"
            )
        text, shown = self._resolve(node, where)
        if get_origin(kind) is Literal:
            if text not in get_args(kind):
                raise self._wrong(node, where, str(unknown_name("value", shown, get_args(kind))))
            return text
        try:
            value = READERS[kind](text)
        except (ValueError, InvalidRequest):
            said = f"expected {_name_of(kind)}, got {shown!r}"
            raise self._wrong(node, where, said) from None  # the cause would show the value
        return self.document.path.parent / value if isinstance(value, Path) else value

    def _resolve(self, node: ScalarNode, where: str) -> tuple[str, str]:
        """Return the text that a scalar stands for, and what an error may show of it."""
        text: str = node.value
        if self.document.literal:
            return text, text
        if text.startswith("file:"):
            path = self.document.path.parent / Path(text.removeprefix("file:")).expanduser()
            return _text_of(path, MAX_SECRET_BYTES).strip(), text
        whole = WHOLE_VARIABLE.fullmatch(text)
        if whole:
            return self._variable(node, where, whole[1], None), text
        return VARIABLE.sub(lambda m: self._variable(node, where, m[1], m[2]), text), text

    def _variable(self, node: Node, where: str, name: str, default: str | None) -> str:
        """Return an environment variable; an empty one counts as absent, as in a shell's ``:-``."""
        value = self.document.environment.get(name) or default
        if value is None:
            others = [each for each in unset(self.document) if each != name]
            more = f" (nor is {', nor is '.join(others[:MOST_NAMED])})" if others else ""
            raise self._wrong(node, where, f"the environment variable {name} is not set{more}")
        return value

    def _pairs(self, node: Node, where: str) -> dict[str, tuple[Node, Node]]:
        if _is_null(node):
            return {}
        if not isinstance(node, MappingNode):
            raise self._wrong(node, where, f"expected keys and values, got {_shape(node)}")
        return {key.value: (key, value) for key, value in node.value}

    def _items(self, node: Node, where: str) -> list[Node]:
        if _is_null(node):
            return []
        if not isinstance(node, SequenceNode):
            raise self._wrong(node, where, f"expected a list, got {_shape(node)}")
        return node.value

    def _wrong(self, node: Node, where: str, said: str) -> InvalidRequest:
        return _at(self.document.path, node, f"{where}: {said}")


def _fields(kind: Kind) -> dict[str, Kind]:
    """Return the fields of a dataclass or Struct, and their types; a `ClassVar` is none."""
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def _unknown_key(name: str, fields: Mapping[str, Kind]) -> str:
    return str(unknown_name("key", name, fields)) if fields else f"{name!r} is not taken: no key is"


def _required(kind: Kind) -> set[str]:
    """Return the fields of a dataclass or Struct that have no default."""
    if dataclasses.is_dataclass(kind):
        absent = dataclasses.MISSING
        return {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is absent and f.default_factory is absent
        }
    return {f.name for f in msgspec.structs.fields(kind) if f.required}


def _integer(text: str) -> int:
    if not INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value


def _bool(text: str) -> bool:
    if text not in TRUTH:
        raise ValueError(text)
    return TRUTH[text]


READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _integer,
    float: _float,
    bool: _bool,
    Decimal: decimal_of,
    Path: lambda text: Path(text).expanduser(),
    Secret: Secret,
}
"""How the text of a scalar becomes a value, by its declared type."""

NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    Decimal: "a finite decimal number",
    Path: "a path",
    Secret: "a secret",
}


def _name_of(kind: Kind) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return NAMES[kind]


def _shape(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "keys and values"
    return "a list" if isinstance(node, SequenceNode) else repr(node.value)
