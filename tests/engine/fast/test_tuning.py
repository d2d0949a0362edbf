"""What was measured, from one process to the next: whole and of here, or refused and made anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.engine.fast import tuning as module
from packshot.engine.fast.tuning import Key, Tuning

KEY = Key("NVIDIA H100", "570.86", "2.11.0, CUDA 13.0", "ab" * 32, "bf16", "c0de")
SHAPE = (2, 10, 4096, 64, 4096)
PRODUCT = (512, 1280, 5120, 16, 1)


def kept(folder: Path, key: Key = KEY) -> Path:
    """Write a file, and return it."""
    tuning = Tuning(folder, key)
    tuning.attention[SHAPE] = "cudnn"
    tuning.products[PRODUCT] = 3
    tuning.fp8_largest += [1.5, 20.25]
    tuning.keep()
    assert tuning.told == []
    (file,) = folder.iterdir()
    return file


def test_what_was_kept_is_there_again(tmp_path):
    kept(tmp_path)
    again = Tuning(tmp_path, KEY)
    assert again.attention == {SHAPE: "cudnn"}
    assert again.products == {PRODUCT: 3}
    assert again.fp8_largest == [1.5, 20.25]
    assert again.told == []


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuning = Tuning(None, KEY)
    tuning.attention[SHAPE] = "flash"
    tuning.keep()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("driver", "580.1", "driver 570.86, and this is 580.1"),
        ("torch", "2.13.0", "torch 2.11.0, CUDA 13.0, and this is 2.13.0"),
        ("code", "beef", "code c0de, and this is beef"),
    ],
)
def test_what_was_made_elsewhere_is_refused_and_made_anew(tmp_path, field, value, said):
    file = kept(tmp_path)
    here = msgspec.structs.replace(KEY, **{field: value})
    tuning = Tuning(tmp_path, here)
    assert (tuning.attention, tuning.fp8_largest) == ({}, [])
    (told,) = tuning.told
    assert str(file) in told
    assert said in told
    assert "measured and written anew" in told
    tuning.attention[SHAPE] = "flash"
    tuning.keep()
    assert Tuning(tmp_path, here).attention == {SHAPE: "flash"}
    assert list(tmp_path.iterdir()) == [file]


def test_another_gpu_model_or_precision_has_a_file_of_its_own(tmp_path):
    kept(tmp_path)
    for field in ("device", "model", "precision"):
        other = Tuning(tmp_path, msgspec.structs.replace(KEY, **{field: "other"}))
        assert (other.attention, other.told) == ({}, [])


@given(st.data())
def test_no_damage_goes_unseen(tmp_path_factory, data):
    file = kept(tmp_path_factory.mktemp("tuning"))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    file.write_bytes(content)
    tuning = Tuning(file.parent, KEY)
    assert (tuning.attention, tuning.fp8_largest) == ({}, [])
    (told,) = tuning.told
    assert "is damaged" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention": [{"shape": SHAPE, "kernel": "magic"}]}, "kernels that are not there: magic"),
        ({"fp8_largest": [-1.0]}, "a scale in it is no size"),
        ({"attention": 3}, "Expected `array`"),
    ],
)
def test_a_whole_file_with_nonsense_is_refused(tmp_path, change, said):
    file = kept(tmp_path)
    entry = json.dumps(json.loads(file.read_bytes())["entry"] | change).encode()
    file.write_bytes(b'{"sum":"%s","entry":%s}' % (module._sum(entry).encode(), entry))
    (told,) = Tuning(tmp_path, KEY).told
    assert said in told


def test_a_file_too_large_is_not_read_whole(tmp_path):
    kept(tmp_path).write_bytes(b" " * (module.MAX_BYTES + 1))
    (told,) = Tuning(tmp_path, KEY).told
    assert f"more than {module.MAX_BYTES} bytes" in told


def test_where_it_cannot_be_written_that_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    tuning = Tuning(tmp_path / "file" / "tuning", KEY)
    tuning.attention[SHAPE] = "cudnn"
    tuning.keep()
    tuning.keep()
    (told,) = tuning.told
    assert "cannot be kept" in told


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    file = kept(tmp_path)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    tuning = Tuning(tmp_path, KEY)
    tuning.attention[SHAPE] = "flash"
    tuning.keep()
    assert "No space left" in tuning.told[0]
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_shapes_and_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHAPES", 3)
    monkeypatch.setattr(module, "MAX_FILES", 2)
    for number in range(4):
        tuning = Tuning(tmp_path, msgspec.structs.replace(KEY, model=str(number)))
        tuning.attention.update({(number, n): "cudnn" for n in range(5)})
        tuning.keep()
        os.utime(tuning.path, (number, number))
    assert len(list(tmp_path.iterdir())) == 2
    last = Tuning(tmp_path, msgspec.structs.replace(KEY, model="3"))
    assert list(last.attention) == [(3, 2), (3, 3), (3, 4)]
