"""The content log: sealed, bound to its place, gone after its days, and only for who asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from packshot.core.errors import InvalidRequest, OutputError
from packshot.gateway.content import Content, ContentLog, read_contents
from packshot.providers.fake_script import Settings
from tests.gateway.world import World, world

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "another key, of the same strength"
YAML = """
providers:
  openai: {base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
access:
  virtual_keys:
    - {id: kept, value: env.KEY_KEPT, content_log: true}
    - {id: plain, value: env.KEY_PLAIN}
telemetry: {log: off, content_key: env.KEY_CONTENT, content_log: %s}
"""
HELLO: Any = [{"role": "user", "content": "an unreleased sneaker"}]


def content(n: int) -> Content:
    names = ("vk", "team", "chat", "route", "openai", "gpt-4o")
    return Content(float(n), f"id-{n}", *names, 200, b"asked %d" % n, b"answered %d" % n)


class Days:
    """A calendar that a test turns."""

    def __init__(self) -> None:
        self.day = 1

    def __call__(self) -> datetime:
        return datetime(2026, 11, self.day, tzinfo=UTC)


def written(folder: Path, *contents: Content, days: Days | None = None, keep: int = 30) -> None:
    log = ContentLog(folder, KEY, keep, "gateway-0", days or Days())
    log.start()
    for each in contents:
        log.put(each)
    log.stop()
    assert log.dropped == 0


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read_and_nothing_without_the_key(tmp_path: Path) -> None:
    written(tmp_path, content(1), content(2))
    written(tmp_path, content(3))
    (file,) = tmp_path.iterdir()
    assert file.name == "2026-11-01.gateway-0.sealed"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(read_contents(tmp_path, KEY)) == [content(1), content(2), content(3)]
    assert b"asked" not in file.read_bytes()
    with pytest.raises(InvalidRequest, match="another key"):
        list(read_contents(tmp_path, OTHER))
    assert list(read_contents(tmp_path, KEY, "2026-11-01"))
    with pytest.raises(OutputError, match="no contents"):
        list(read_contents(tmp_path, KEY, "2026-11-02"))
    with pytest.raises(OutputError):
        list(read_contents(tmp_path / "nowhere", KEY))


def test_a_record_that_was_changed_moved_or_taken_out_is_seen(tmp_path: Path) -> None:
    written(tmp_path, *(content(n) for n in range(3)))
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    head = len(b"packshot content 1\n") + 16
    size = (len(good) - head) // 3
    one, two, three = (good[head + n * size : head + (n + 1) * size] for n in range(3))
    changed = two[:-1] + bytes([two[-1] ^ 1])
    for bad in (two + one + three, one + three, one + changed + three, one + one):
        file.write_bytes(good[:head] + bad)
        with pytest.raises(InvalidRequest, match="changed"):
            list(read_contents(tmp_path, KEY))


@pytest.mark.parametrize("cut", [1, 40, 60])
def test_what_a_crash_left_half_is_cut_off_and_written_over(tmp_path: Path, cut: int) -> None:
    written(tmp_path, content(1), content(2))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    assert list(read_contents(tmp_path, KEY)) == [content(1)]
    written(tmp_path, content(3))
    assert list(read_contents(tmp_path, KEY)) == [content(1), content(3)]


def test_a_file_whose_head_is_half_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "2026-11-01.gateway-0.sealed").write_bytes(b"packshot con")
    written(tmp_path, content(1))
    assert list(read_contents(tmp_path, KEY)) == [content(1)]


def test_files_are_deleted_after_their_days(tmp_path: Path) -> None:
    days = Days()
    written(tmp_path, content(1), days=days, keep=3)
    (tmp_path / "notes.txt").write_text("of somebody else")
    for days.day in (2, 4):
        written(tmp_path, content(days.day), days=days, keep=3)
    assert files(tmp_path)[0].startswith("2026-11-01")
    days.day = 5
    written(tmp_path, content(5), days=days, keep=3)
    assert [name[:10] for name in files(tmp_path)] == [
        "2026-11-02", "2026-11-04", "2026-11-05", "notes.txt",
    ]  # fmt: skip


def test_a_new_day_has_a_file_of_its_own_and_deletes_the_oldest(tmp_path: Path) -> None:
    days = Days()
    log = ContentLog(tmp_path, KEY, 1, "gateway-0", days)
    for days.day in (1, 2, 3):
        log._write([content(days.day)])
    log.stop()
    assert [name[:10] for name in files(tmp_path)] == ["2026-11-02", "2026-11-03"]
    assert [each.id for each in read_contents(tmp_path, KEY)] == ["id-2", "id-3"]


# ---------------------------------------------------------------- a gateway
@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("KEY_A", "sk-secret-A")
    monkeypatch.setenv("KEY_KEPT", "k" * 40)
    monkeypatch.setenv("KEY_PLAIN", "p" * 40)
    monkeypatch.setenv("KEY_CONTENT", KEY)
    with world(tmp_path, YAML % (tmp_path / "kept"), one=Settings()) as made:
        yield made


def test_only_the_contents_of_keys_that_ask_are_kept(there: World) -> None:
    told: list[str] = []
    for letter in "kp":
        with openai.OpenAI(
            base_url=there.url + "/v1", api_key=letter * 40, max_retries=0
        ) as caller:
            answer = caller.chat.completions.create(model="gpt-4o", messages=HELLO)
            told.append(str(answer.choices[0].message.content))
            chunks = list(
                caller.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
            )
            with pytest.raises(openai.BadRequestError):
                caller.chat.completions.create(
                    model="gpt-4o", messages=HELLO, extra_body={"stream_options": 5, "n": 0}
                )
    assert chunks
    there.worker.telemetry.stop()
    whole, stream = read_contents(there.folder / "kept", KEY)
    assert {whole.virtual_key, stream.virtual_key} == {"kept"}
    assert json.loads(whole.request)["messages"] == HELLO
    assert json.loads(whole.response)["choices"][0]["message"]["content"] == told[0]
    assert (whole.status, whole.provider, whole.model) == (200, "openai", "gpt-4o")
    assert stream.response.startswith(b"data: ")
    assert stream.response.rstrip().endswith(b"[DONE]")
    assert not there.worker.telemetry._recordings
