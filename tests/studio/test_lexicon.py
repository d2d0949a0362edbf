"""Reading lexicon.json: the whole of it, or a clear error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from packshot.core.errors import ModelCorrupt
from packshot.studio.lexicon import load_lexicon
from tests.studio.lexicons import SMALL


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "lexicon.json").write_bytes(msgspec.json.encode(SMALL))
    lexicon = load_lexicon(tmp_path / "lexicon.json")
    assert lexicon == SMALL
    assert SMALL.product("vase").colours == ("white", "blue")
    assert SMALL.categories[:3] == ("shoes", "accessories", "bags")
    assert SMALL.materials[:3] == ("canvas", "leather", "suede")


def test_a_model_need_not_have_one() -> None:
    assert load_lexicon(None) is None


def test_a_name_that_is_no_product_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        SMALL.product("trainers")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "got version 2, expected 1"),
        ({"products": [{"name": "x", "colours": ["mauve"]}]}, "'mauve'"),
        ({"products": [{"name": "x", "colour": "mauve"}]}, "'mauve'"),
        ({"default": {"light": "moonlight"}}, "default light 'moonlight'"),
        ({"products": "none"}, "not a lexicon"),
        ({"colours": [{"name": "red"}]}, "not a lexicon"),
    ],
)
def test_what_does_not_hang_together_is_refused(tmp_path: Path, change, said: str) -> None:
    content = msgspec.json.decode(msgspec.json.encode(SMALL)) | change
    (tmp_path / "lexicon.json").write_bytes(msgspec.json.encode(content))
    with pytest.raises(ModelCorrupt, match=said):
        load_lexicon(tmp_path / "lexicon.json")


def test_broken_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lexicon.json").write_text("{")
    with pytest.raises(ModelCorrupt, match=r"lexicon\.json"):
        load_lexicon(tmp_path / "lexicon.json")
