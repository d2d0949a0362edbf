"""The sections `studio` and `engine`."""

from __future__ import annotations

from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest
from packshot.studio.settings import (
    EngineSettings,
    StudioSettings,
    load_engine_settings,
    load_studio,
)


def load(tmp_path: Path, text: str) -> StudioSettings:
    path = tmp_path / "packshot.yaml"
    path.write_text(text)
    return load_studio(path)


def test_without_a_file_or_section_captions_are_the_rules(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_studio() == load(tmp_path, "ledger: {}\n") == StudioSettings()
    assert StudioSettings().caption_route == ""


def test_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PK", "pk-1")
    settings = load(
        tmp_path,
        "studio: {caption_route: r, caption_deadline_s: 3, gateway_url: 'http://127.0.0.1:8080', "
        "gateway_key: env.PK}",
    )
    assert (settings.caption_route, settings.caption_deadline_s) == ("r", 3.0)
    assert settings.gateway_key == "pk-1"
    assert "pk-1" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{caption_deadline_s: 0}", "caption_deadline_s is above 0, at most 60, got 0"),
        ("{caption_deadline_s: 61}", "got 61"),
        ("{gateway_key: env.PK}", "give its gateway_url"),
        ("{store: 's3://key:secret@bucket'}", "keys and the endpoint come from the environment"),
        ("{store: 'ftp://there'}", "unknown kind of store 'ftp'"),
        ("{gateway_url: 'http://x', gateway_key: pk-1}", "gateway_key"),
        ("{caption_rote: x}", "Did you mean 'caption_route'?"),
    ],
)
def test_mistakes_have_their_line(tmp_path, monkeypatch, text: str, said: str) -> None:
    monkeypatch.setenv("PK", "pk-1")
    with pytest.raises(InvalidRequest, match=r"packshot\.yaml, line 1") as raised:
        load(tmp_path, f"studio: {text}")
    assert said in str(raised.value)


def test_buckets_are_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_engine_settings() == EngineSettings()
    assert EngineSettings().sizes is None
    (tmp_path / "packshot.yaml").write_text("engine: {buckets: [1024x1024, 832x1216]}\n")
    assert load_engine_settings().sizes == ((1024, 1024), (832, 1216))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{buckets: [1024]}", "'1024' is no size to render at"),
        ("{buckets: [1024x1024, 1024x1024]}", "a bucket stands twice"),
        ("{buckets: []}", "buckets are 1 to 24, got 0"),
        ("{bucket: [64x64]}", "Did you mean 'buckets'?"),
    ],
)
def test_a_wrong_bucket_has_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "packshot.yaml"
    path.write_text(f"engine: {text}\n")
    with pytest.raises(InvalidRequest, match=r"packshot\.yaml, line 1") as raised:
        load_engine_settings(path)
    assert said in str(raised.value)
