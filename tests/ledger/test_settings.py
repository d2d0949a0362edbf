"""The ``ledger:`` section, and where the ledger lives without a file."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from packshot.core.errors import InvalidRequest, OutputError
from packshot.ledger.settings import CapRow, Settings, load_settings

EXAMPLE = """
engine: {model: packshot-mini, device: auto, precision: auto, buckets: [1024x1024, 832x1216]}
studio: {store: ./out, overflow: {to: stability/sd3.5-large, when_wait_exceeds_s: 20}}
ledger:
  store: packshot.db
  journal: /var/lib/packshot/journal
  durability: power
  gpu_eur_per_hour: {h100: 2.30, cpu: 0.05}
  caps:
    - {scope: total, eur: 1000}
    - {scope: team, name: research, eur: 50.00, per: day, unpriced: refuse}
  timezone: Europe/Berlin
  unpriced: refuse
"""

GATEWAY = """
providers:
  openai:
    keys: [{value: env.OPENAI_KEY, weight: 0.7}]
    network: {retry: {max_retries: 2, backoff_initial_ms: 100}}
mcp:
  - {id: prompt-rewrite, primary: openai/gpt-4o-mini, fallbacks: [anthropic/claude-haiku-4-5]}
fallbacks:
  - {primary: openai/gpt-4o-mini, secondary: anthropic/claude-haiku-4-5}
semantic_cache: {enabled: true, similarity_threshold: 0.94, ttl_seconds: 604800}
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_without_a_file_the_ledger_is_this_user_s(tmp_path: Path, monkeypatch) -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.store == str(tmp_path / "state" / "packshot" / "ledger.db")
    assert settings.journal == tmp_path / "state" / "packshot" / "journal"
    assert (settings.durability, settings.unpriced, settings.caps) == ("process", "allow", ())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for home in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", home)
        expected = tmp_path / "home" / ".local" / "state" / "packshot" / "ledger.db"
        assert load_settings().store == str(expected)


def test_the_file_of_the_working_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "packshot.yaml").write_text(EXAMPLE)
    settings = load_settings()
    assert settings == Settings(
        store="packshot.db",
        journal=Path("/var/lib/packshot/journal"),
        durability="power",
        gpu_eur_per_hour={"h100": Decimal("2.30"), "cpu": Decimal("0.05")},
        caps=(
            CapRow("total", Decimal(1000)),
            CapRow("team", Decimal(50), "day", "research", "refuse"),
        ),
        timezone="Europe/Berlin",
        unpriced="refuse",
    )


def test_a_named_file_is_read_and_its_paths_count_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "p.yaml").write_text("ledger: {store: l.db, journal: j}")
    settings = load_settings(folder / "p.yaml")
    assert (settings.store, settings.journal) == (str(folder / "l.db"), folder / "j")
    with pytest.raises(OutputError, match="cannot read"):
        load_settings(tmp_path / "none.yaml")


def test_the_sections_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "packshot.yaml").write_text(GATEWAY)
    assert load_settings() == Settings()


def test_a_password_is_in_no_repr(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LEDGER", "postgresql://u:s3cret@localhost/l")
    (tmp_path / "packshot.yaml").write_text("ledger: {store: env.LEDGER, durability: store}")
    settings = load_settings()
    assert settings.store.endswith("s3cret@localhost/l")
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{stroe: x}", "unknown key 'stroe'. Did you mean 'store'?"),
        ("{gpu_eur_per_hour: {h100: -1}}", "gpu_eur_per_hour.h100 must not be negative, got -1"),
        ("{gpu_eur_per_hour: {h100: .inf}}", "expected a finite decimal number"),
        ("{timezone: Europe/Berln}", "timezone 'Europe/Berln' is not known"),
        ("{timezone: ../../etc/passwd}", "is not known"),
        ("{durability: store}", "expected a postgresql:// store"),
        ("{durability: disk}", "unknown value 'disk'"),
        ("{caps: [{scope: team, eur: 5}]}", "scope team needs a name"),
        ("{caps: [{scope: total, name: x, eur: 5}]}", "scope total has no name"),
        ("{caps: [{scope: total, eur: -5}]}", "must not be negative"),
        ("{caps: [{scope: total}]}", "eur must be given"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "packshot.yaml").write_text(f"\nledger: {text}\n")
    with pytest.raises(InvalidRequest) as error:
        load_settings()
    assert said in str(error.value)
    assert "packshot.yaml, line 2: ledger" in str(error.value)
