"""The configuration file: types, references, and errors that name their line."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from traceback import format_exception
from typing import ClassVar, Literal

import msgspec
import pytest

from packshot.core.config import MAX_BYTES, MAX_DEPTH, Secret, read
from packshot.core.errors import InvalidRequest, OutputError


class Row(msgspec.Struct, frozen=True):
    name: str
    share: Decimal = Decimal(1)


@dataclass(frozen=True)
class Section:
    count: int = 0
    ratio: float = 0.0
    on: bool = False
    colour: Literal["red", "blue"] = "red"
    note: str | None = None
    folder: Path | None = None
    prices: dict[str, Decimal] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InvalidRequest(f"count must not be negative, got {self.count}")


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Section | None:
    path = tmp_path / "packshot.yaml"
    path.write_text(text)
    return read(path, frozenset(("part", "other")), environment or {}).section("part", Section)


def test_every_type_and_money_is_exact(tmp_path: Path) -> None:
    text = """
    part:
      count: 1_000
      ratio: 0.5
      on: true
      colour: blue
      note: null
      folder: a/b
      prices: {h100: 2.30, cpu: 1e-3}
      rows: [{name: x, share: 0.1}, {name: "2.30"}]
    """
    assert load(tmp_path, text) == Section(
        count=1000,
        ratio=0.5,
        on=True,
        colour="blue",
        folder=tmp_path / "a" / "b",
        prices={"h100": Decimal("2.30"), "cpu": Decimal("0.001")},
        rows=(Row("x", Decimal("0.1")), Row("2.30")),
    )
    assert str(load(tmp_path, text).prices["h100"]) == "2.30"


@pytest.mark.parametrize("text", ["", "# nothing\n", "other: {}", "part:", "part: null"])
def test_what_is_absent_is_none(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) is None


def test_values_from_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    environment = {"NAME": "n", "EMPTY": ""}
    for value, expected in {
        "env.NAME": "n",
        "${NAME}": "n",
        "a-${NAME}-${NO:-d}": "a-n-d",
        "${EMPTY:-d}": "d",
        "file:secret": "s3cret",
        "environment.NAME": "environment.NAME",
    }.items():
        assert load(tmp_path, f"part: {{note: '{value}'}}", environment).note == expected
    assert load(tmp_path, "part: {count: '${N:-7}'}").count == 7
    with pytest.raises(InvalidRequest, match=r"line 1: part\.note: .* NO is not set$"):
        load(tmp_path, "part: {note: env.NO}")
    text = "part: {note: env.NO, colour: 'a-${NOR}-${NAME}-${N:-7}', rows: [{name: env.NEITHER}]}"
    with pytest.raises(InvalidRequest, match=r"NO is not set \(nor is NOR, nor is NEITHER\)$"):
        load(tmp_path, text, environment)
    with pytest.raises(OutputError, match="cannot read"):
        load(tmp_path, "part: {note: 'file:none'}")


def test_what_came_from_outside_is_in_no_error(tmp_path: Path) -> None:
    secret = "s3" + "cret"  # so that no line of a traceback shows it as source
    (tmp_path / "key").write_text(secret)
    for kind in ("count", "colour", "on", "ratio"):
        for value in ("env.KEY", "${KEY}", "file:key"):
            with pytest.raises(InvalidRequest) as error:
                load(tmp_path, f"part: {{{kind}: '{value}'}}", {"KEY": secret})
            assert value in str(error.value)
            assert secret not in "".join(format_exception(error.value))


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("part:\n  cuont: 1", 2, "unknown key 'cuont'. Did you mean 'count'?"),
        ("\nprat: {}", 2, "unknown section 'prat'. Did you mean 'part'?"),
        ("part:\n  count: 1\n  count: 2", 3, "the key 'count' stands in line 2 already"),
        ("part: {}\nother: {a: [{b: 1,\n b: 2}]}", 3, "the key 'b' stands in line 2 already"),
        ("part:\n  count: 1.5", 2, "part.count: expected a whole number, got '1.5'"),
        ("part:\n  ratio: .nan", 2, "part.ratio: expected a finite number, got '.nan'"),
        ("part:\n  ratio: inf", 2, "part.ratio: expected a finite number, got 'inf'"),
        ("part:\n  prices:\n    a: NaN", 3, "part.prices.a: expected a finite decimal number"),
        ("part:\n  prices:\n    a: 1,5", 3, "expected a finite decimal number, got '1,5'"),
        ("part:\n  on: yes", 2, "part.on: expected true or false, got 'yes'"),
        ("part:\n  colour: rd", 2, "part.colour: unknown value 'rd'. Did you mean 'red'?"),
        ("part:\n  rows:\n  - share: 1", 3, "part.rows[0]: name must be given"),
        ("part:\n  rows: 3", 2, "part.rows: expected a list, got '3'"),
        ("part: [1]", 1, "part: expected keys and values, got a list"),
        ("part:\n  note: [1]", 2, "part.note: expected text, got a list"),
        ("part:\n  count: -1", 2, "part: count must not be negative, got -1"),
        ("part: 1\n- x", 2, "not valid YAML"),
        ("part: {a: &x 1, b: *x}", 1, "anchors and aliases"),
        ("part:\n  note: *x", 2, "anchors and aliases"),
        ("part: !!python/object:os.system {}", 1, "the tag"),
        ("part:\n  note: !!str 1", 2, "the tag"),
        ("part: {}\n---\npart: {}", 2, "a second document"),
        ("- part", 1, "expected sections"),
        ("? [a]\n: 1", 1, "a key must be a word"),
        ("part: " + "[" * (MAX_DEPTH + 1), 1, "nested deeper"),
        ("part: \x07", 1, "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert said in message
    if "\x07" not in text:
        assert f"packshot.yaml, line {line}: " in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot read"):
        read(tmp_path / "none.yaml", frozenset())
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(InvalidRequest, match="larger than"):
        read(path, frozenset())
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        read(path, frozenset())


@dataclass(frozen=True)
class Vault:
    key: Secret


@pytest.mark.parametrize("text", ["env.KEY", "${KEY}", "file:key.txt"])
def test_a_secret_comes_from_elsewhere(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.txt").write_text("hunter2\n")
    path = tmp_path / "packshot.yaml"
    path.write_text(f"vault: {{key: '{text}'}}")
    found = read(path, frozenset({"vault"}), {"KEY": "hunter2"}).section("vault", Vault)
    assert found is not None
    assert found.key == "hunter2"
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize("text", ["hunter2", "x${KEY}", "${KEY:-hunter2}"])
def test_a_secret_in_the_file_itself_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text(f"vault: {{key: '{text}'}}")
    with pytest.raises(InvalidRequest, match="may not stand in the file") as refused:
        read(path, frozenset({"vault"}), {"KEY": "a"}).section("vault", Vault)
    assert "hunter2" not in str(refused.value)


# ---- lists of tagged records, and documents of text


class Tagged(msgspec.Struct, frozen=True):
    kind: ClassVar[str] = "tagged"
    size: int = 1


def tagged(tmp_path: Path, text: str) -> tuple[object, ...]:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    document = read(path, frozenset(("part",)), {}, literal=True)
    return document.tagged("part", "is", "with", {"small": Tagged, "row": Row})


def test_each_record_is_of_the_kind_that_its_tag_names(tmp_path: Path) -> None:
    text = (
        "part:\n  - is: small\n  - {is: row, with: {name: x}}\n  - {is: small, with: {size: 3}}\n"
    )
    assert tagged(tmp_path, text) == (Tagged(), Row("x"), Tagged(3))
    assert tagged(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{is: smal}]", "unknown is 'smal'. Did you mean 'small'"),
        ("[{is: small, wiht: {}}]", "unknown key 'wiht'. Did you mean 'with'"),
        ("[{with: {}}]", "is must be given"),
        ("[{is: row}]", "row: name must be given"),
        ("[{is: small, with: {kind: x}}]", "small: unknown key 'kind'. Valid: size"),
        ("[{is: small, with: {size: x}}]", "small.size: expected a whole number, got 'x'"),
        ("[small]", "expected keys and values, got 'small'"),
        ("{is: small}", "expected a list, got keys and values"),
    ],
)
def test_mistakes_in_such_a_list(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tagged(tmp_path, f"part: {text}")
    assert "line 1: " in str(caught.value)
    assert said in str(caught.value)


def test_in_a_document_of_text_references_are_text(tmp_path: Path) -> None:
    path = tmp_path / "text.yaml"
    path.write_text("part: {note: env.HOME, count: 3}\nother: {note: '${HOME:-x}'}\n")
    document = read(path, frozenset(("part", "other")), {"HOME": "/root"}, literal=True)
    assert document.section("part", Section) == Section(count=3, note="env.HOME")
    assert document.section("other", Section) == Section(note="${HOME:-x}")
