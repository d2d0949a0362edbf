"""The tokenizer against transformers', and what it does at the edges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from packshot.core.errors import ModelCorrupt
from packshot.engine.tokenizer import Tokenizer

TEXTS = [
    "",
    "white sneakers on a sandy beach, bright daylight",
    "  Tan\tLEATHER \n wristwatch ",
    "it's 85mm; we'll see 1234!",
    "café, cafe\u0301, naïve, Straße, İstanbul",
    "白いスニーカー 👟🏽 на пляже",
    "wow!!! wow ! <|endoftext|> <|startoftext|> end",
    "a\x00b\u200bc\ufeff",
    "long " * 200,
]


@pytest.fixture(scope="module", params=["tokenizer", "tokenizer_2"])
def pair(request: pytest.FixtureRequest, tiny_sdxl: Path) -> tuple[Tokenizer, CLIPTokenizer]:
    path = tiny_sdxl / request.param
    return Tokenizer.open(path), CLIPTokenizer.from_pretrained(path)


def expected(reference: CLIPTokenizer, text: str) -> list[int]:
    return reference(text, padding="max_length", truncation=True, max_length=77).input_ids


@pytest.mark.parametrize("text", TEXTS)
def test_equals_the_reference(pair: tuple[Tokenizer, CLIPTokenizer], text: str) -> None:
    ours, theirs = pair
    assert list(ours.encode(text).ids) == expected(theirs, text)


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_equals_the_reference_on_any_text(pair: tuple[Tokenizer, CLIPTokenizer], text: str) -> None:
    ours, theirs = pair
    assert list(ours.encode(text).ids) == expected(theirs, text)


def test_the_two_pad_differently(tiny_sdxl: Path) -> None:
    first = Tokenizer.open(tiny_sdxl / "tokenizer").encode("white").ids
    second = Tokenizer.open(tiny_sdxl / "tokenizer_2").encode("white").ids
    assert len(first) == len(second) == 77
    assert first[:3] == second[:3]
    assert set(first[3:]) == {first[2]}  # the end token again
    assert set(second[3:]) == {0}  # "!"


def test_what_does_not_fit_is_counted(tiny_sdxl: Path) -> None:
    tokenizer = Tokenizer.open(tiny_sdxl / "tokenizer")
    for words, dropped in ((75, 0), (76, 1), (200, 125)):
        tokens = tokenizer.encode("a " * words)
        assert tokens.dropped == dropped
        assert len(tokens.ids) == tokenizer.length == 77


def test_special_tokens_may_be_written_as_objects(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_sdxl / "tokenizer_2", tmp_path / "tokenizer_2")
    before = Tokenizer.open(path).encode("wow! white")
    change(path, bos_token={"__type": "AddedToken", "content": "<|startoftext|>", "lstrip": False})
    assert Tokenizer.open(path).encode("wow! white") == before


def change(path: Path, **settings: Any) -> None:
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_token": "<pad>"}, r"does not hold the special token '<pad>'"),
        ({"model_max_length": 10**30}, r"model_max_length is 1000+; expected 3 to 4096"),
        ({"model_max_length": "77"}, r"model_max_length is '77'"),
        ({"bos_token": 5}, r"bos_token is 5; expected text"),
    ],
)
def test_bad_settings(
    tiny_sdxl: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = shutil.copytree(tiny_sdxl / "tokenizer", tmp_path / "tokenizer")
    change(path, **settings)
    with pytest.raises(ModelCorrupt, match=message):
        Tokenizer.open(path)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_bad_files(tiny_sdxl: Path, tmp_path: Path, file: str) -> None:
    path = shutil.copytree(tiny_sdxl / "tokenizer", tmp_path / "tokenizer")
    (path / file).write_text("not what it should be")
    with pytest.raises(ModelCorrupt, match=r"vocab\.json and merges\.txt cannot be read"):
        Tokenizer.open(path)


def test_tokens_need_no_torch(tiny_sdxl: Path) -> None:
    code = (
        "import sys, pathlib; from packshot.engine.tokenizer import Tokenizer;"
        f"Tokenizer.open(pathlib.Path({str(tiny_sdxl / 'tokenizer')!r})).encode('white');"
        "sys.exit('torch' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
