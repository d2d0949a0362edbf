"""Tables of items: three formats, one meaning, and every mistake said before any cost."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, OutputError
from packshot.studio.batch.items import Item, read_items


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def items_in(path: Path, **how: object) -> list[Item]:
    return [item for _, item in read_items(path, **how)]  # type: ignore[arg-type]


def test_a_table_says_everything(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "t.csv",
        "id,brief,photo,mask,seed,size,render.steps\n"
        "a1, red mug ,in/mug.png,in/mug-mask.png,7,512x512,30\n"
        'a2,"shoe, white",,,,,\n',
    )
    first, second = items_in(path)
    assert first.id == "a1"
    assert first.brief == "red mug"
    assert first.photo == str(tmp_path / "in" / "mug.png")
    assert first.mask == str(tmp_path / "in" / "mug-mask.png")
    assert (first.seed, first.size, first.parameters) == (7, "512x512", {"render.steps": "30"})
    assert second.brief == "shoe, white"
    assert second.parameters == {}
    assert 0 <= second.seed < 2**32


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spreadsheets_differ(tmp_path: Path, separator: str, begin: str, end: str) -> None:
    rows = [("id", "brief"), ("ä", "Weißer Schuh"), ("", "")]
    text = begin + "".join(separator.join(row) + end for row in rows)
    (item,) = items_in(write(tmp_path, "t.csv", text))
    assert (item.id, item.brief) == ("ä", "Weißer Schuh")


def test_the_formats_agree(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"id": "a", "brief": "mug", "seed": 3, "render.steps": 30},
        {"id": "b", "brief": "shoe", "seed": 4, "render.steps": None},
    ]
    csv = write(tmp_path, "t.csv", "id,brief,seed,render.steps\na,mug,3,30\nb,shoe,4,\n")
    lines = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    nested = write(
        tmp_path,
        "n.ndjson",
        '{"id":"a","brief":"mug","seed":3,"render":{"steps":30}}\n\n'
        '{"id":"b","brief":"shoe","seed":4}\n',
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    tables = [items_in(path) for path in (csv, lines, nested, tmp_path / "t.parquet")]
    for one in tables[1:]:
        assert [item.id for item in one] == ["a", "b"]
        assert [item.seed for item in one] == [3, 4]
        assert one[0].parameters == {"render.steps": 30}
    assert tables[0][0].parameters == {"render.steps": "30"}


def test_parquet_without_pyarrow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InvalidRequest, match=r"pip install \"packshot\[parquet\]\""):
        items_in(write(tmp_path, "t.parquet", b"PAR1"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", "mug\n", "no suffix that tells its format: expected .csv"),
        ("t.csv", "", "no first line with names"),
        ("t.csv", "brief\n", "no rows"),
        ("t.csv", "breif\nmug\n", "Did you mean 'brief'"),
        ("t.csv", "id,brief,brief\na,b,c\n", "these columns twice: brief"),
        ("t.csv", "id,brief\na,mug,more\n", "line 2: 3 cells, expected 2"),
        ("t.csv", 'id,brief\na,"mug\n', "line 2: unexpected end of data; is a quote not closed"),
        ("t.csv", b"brief\nm\xfcg\n", "byte 0xfc): save it as UTF-8"),
        ("t.csv", "brief,seed\nmug,-1\n", "line 2: seed is '-1', expected a whole number"),
        ("t.csv", "brief,seed\nmug,one\n", "seed is 'one'"),
        ("t.csv", "id,brief\na,mug\nb,\n", "line 3: the brief is empty"),
        ("t.csv", "id,size\na,512\n", "no row has a brief, and the recipe needs one"),
        ("t.jsonl", '{"id":"a"}\n{"id":"b"}\n', "no row has a brief"),
        ("t.csv", f"brief\n{'mug ' * 300}\n", "at most 1000"),
        ("t.csv", "brief,mask\nmug,m.png\n", "which photo is it the mask of"),
        ("t.csv", f"id,brief\n{'x' * 300},mug\n", "1 to 200 printable"),
        ("t.jsonl", "[1]\n", "line 1: expected one JSON object a line"),
        ("t.jsonl", '{"brief": 3}\n', "brief is text, got 3"),
        ("t.jsonl", '{"brief":"mug","seed":true}\n', "seed is True"),
        ("t.jsonl", '{"brief":"mug","colour":"red"}\n', "unknown column 'colour'"),
        ("t.jsonl", '{"brief":"' + "x" * (1 << 20) + '"}\n', "longer than 1048576"),
        ("t.parquet", b"no parquet", "no Parquet file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        items_in(write(tmp_path, name, content))
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        items_in(tmp_path / "none.csv")


def test_bad_rows_are_counted_and_the_first_named(tmp_path: Path) -> None:
    rows = "".join(f"mug,{seed}\n" for seed in ["1", *["x"] * 8, "2"])
    with pytest.raises(InvalidRequest) as caught:
        items_in(write(tmp_path, "t.csv", "brief,seed\n" + rows))
    said = str(caught.value)
    assert "8 rows of 10 cannot be used" in said
    assert "line 3" in said
    assert "line 7" in said
    assert "line 8" not in said
    assert "and 3 more" in said


def test_a_row_without_id_is_named_after_what_it_asks_for(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "brief\nmug\nmug\ncup\n")
    mug, again, cup = items_in(path)
    assert mug == again
    assert mug.id != cup.id
    assert not mug.named
    moved = write(tmp_path, "u.csv", "brief\ncup\nmug\n")
    assert [item.id for item in items_in(moved)] == [cup.id, mug.id]


@given(
    st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1), min_size=1)
)
def test_whatever_is_written_is_read(briefs: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"brief": f"mug {brief}"[:900]}) for brief in briefs]
        path = write(Path(folder), "t.jsonl", "\n".join(lines))
        assert [item.brief for item in items_in(path)] == [f"mug {b}"[:900] for b in briefs]


def test_a_parameter_changes_no_seed(tmp_path: Path) -> None:
    one, two, three = items_in(
        write(tmp_path, "t.csv", "brief,size\nmug,64x64\nmug,128x128\ncup,64x64\n")
    )
    assert one.seed == two.seed != three.seed
    assert one.id != two.id


def test_a_long_table_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("id,brief\n")
        file.writelines(f"i{k},white mug {k}\n" for k in range(20_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_items(path)) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
