"""packshot gateway bench: what it measures, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from packshot.core.errors import InvalidRequest, PackshotError
from packshot.gateway.bench import (
    SECRET,
    VARIABLE,
    Options,
    bench,
    drive,
    prepared,
    request_of,
    started_fake,
)
from packshot.gateway.plan import build_plan
from packshot.gateway.settings import load_gateway
from packshot.ledger.settings import load_settings

FULL = """
providers:
  openai: {keys: [{value: env.NO_SUCH_A, weight: 0.7}, {value: env.NO_SUCH_B, weight: 0.3}]}
  far: {kind: anthropic, keys: [{value: file:no-such-file}], network: {proxy: "http://p:1"}}
  local: {base_url: "https://llm.example/api/v1", keys: [], models: {tiny: {}}}
routes: [{id: captions, primary: openai/gpt-4o-mini, fallbacks: [far/claude-haiku-4-5]}]
access:
  pepper: env.NO_SUCH_C
  virtual_keys: [{id: shop, value: env.NO_SUCH_D, limits: {requests_per_minute: 1}}]
server: {workers: 2, limits: "redis://cache.example", max_attempts: 3}
telemetry: {otlp: "https://traces.example", log: json}
ledger:
  store: postgresql://books.example/ledger
  durability: store
  caps: [{scope: total, eur: 2.30}]
semantic_cache: {enabled:}
"""


@pytest.fixture(autouse=True)
def _variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)


def copy_of(tmp_path: Path, text: str, model: str = "") -> tuple[Path, str]:
    given, folder = tmp_path / "given.yaml", tmp_path / "copy"
    folder.mkdir()
    given.write_text(text, encoding="utf-8")
    return prepared(given, folder, 4321, model)


def test_nothing_of_the_copy_leads_anywhere_but_to_the_fake(tmp_path: Path) -> None:
    copy, _ = copy_of(tmp_path, FULL)
    text = copy.read_text()
    assert "example" not in text
    assert "NO_SUCH" not in text
    assert "no-such-file" not in text
    settings = load_gateway(copy)
    assert {p.origin.port for p in build_plan(settings).providers.values()} == {4321}
    assert settings.providers["local"].base_url == "http://127.0.0.1:4321/api/v1"
    money = load_settings(copy)
    assert Path(money.store).parent == money.journal.parent == tmp_path / "copy"
    assert settings.server.folder == tmp_path / "copy" / "state"


def test_what_costs_time_stays_as_it_is_configured(tmp_path: Path) -> None:
    settings = load_gateway(copy_of(tmp_path, FULL)[0])
    assert [key.weight for key in settings.providers["openai"].keys] == [0.7, 0.3]
    assert settings.providers["far"].kind == "anthropic"
    assert settings.server.workers == 2
    assert settings.server.max_attempts == 3
    assert settings.telemetry.log == "json"
    (key,) = settings.access.virtual_keys
    assert key.budget is not None
    assert key.limits.tokens_per_minute is not None


def test_limits_and_caps_are_at_work_and_out_of_reach(tmp_path: Path) -> None:
    money = load_settings(copy_of(tmp_path, FULL)[0])
    assert money.durability == "power"  # its own store is not ours to write to
    (cap,) = money.caps
    assert cap.scope == "total"
    assert cap.eur > 1_000_000


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        (FULL, "", "captions"),
        (FULL, "local/tiny", "local/tiny"),
        ("providers: {ollama: {models: {tiny: {}}}}", "", "ollama/tiny"),
        ("providers: {ollama: {}}", "", "ollama/gpt-4o-mini"),
    ],
)
def test_the_model_is_the_one_asked_for_or_the_first(
    tmp_path: Path, text: str, model: str, expected: str
) -> None:
    assert copy_of(tmp_path, text, model)[1] == expected


@pytest.mark.parametrize("text", ["", "providers:\n", "providers: {openai: {kind: nobody}}"])
def test_a_configuration_with_a_mistake_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest):
        build_plan(load_gateway(copy_of(tmp_path, text)[0]))


def test_a_call_that_fails_ends_the_measurement_with_its_answer() -> None:
    with (
        started_fake("--keys", "another", static=False) as (port, _),
        pytest.raises(PackshotError, match="401"),
    ):
        drive(port, request_of(port, "gpt-4o-mini", SECRET), 2, 0.05)


def test_every_call_that_was_begun_is_waited_for() -> None:
    with started_fake("--every-ms", "1", "--static-events", "20") as (port, _):
        load = drive(port, request_of(port, "m", SECRET, stream=True), 3, 0.001)
    assert load.calls == len(load.times_us) >= 3


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_configuration_is_measured_from_end_to_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "packshot.yaml"
    entry = {"kind": kind, "keys": [{"value": "env.NO_SUCH_KEY"}]}
    path.write_text(yaml.safe_dump({"providers": {"one": entry}}), encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    model = "one/gpt-4o-mini" if kind == "openai" else "one/claude-haiku-4-5"
    found = bench(path, Options(rounds=1, seconds=0.05, connections=2, model=model))
    assert found.model == model
    assert found.calls > 2
    assert found.per_s > 0
    assert found.cpu_us is None or found.cpu_us > 0
    assert (found.cpu_us is None) == (not Path("/proc/self/schedstat").exists())
    assert sorted(tmp_path.iterdir()) == before
    assert os.environ[VARIABLE] == SECRET
