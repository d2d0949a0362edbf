"""`packshot prices`: what is listed, and a file that only grows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packshot.cli.prices import app
from packshot.core.errors import InvalidRequest, OutputError, PackshotError
from packshot.core.types import Usage
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from tests.ledger.prices.test_book import NOON

Prices = Callable[..., str]
IMAGE = ("add", "acme/m", "--unit", "image", "--source", "deal")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "packshot" / "prices.yaml"


@pytest.fixture
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prices:
    """Return a function that runs `packshot prices` with an empty home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, words)
        if isinstance(done.exception, PackshotError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return run


@pytest.mark.parametrize("words", [["list"], ["list", "--provider", "openai"]])
def test_lists_fit_80_columns(prices: Prices, words: list[str]) -> None:
    said = prices(*words)
    assert max(map(len, said.splitlines())) <= 80
    rows = json.loads(prices(*words, "--json"))["prices"]
    assert all(row["source"] and row["price"] for row in rows)
    assert len(rows) > 20


def test_show_has_every_tier_and_the_source(prices: Prices) -> None:
    said = prices("show", "google/gemini-2.5-pro")
    assert "input_token over 200000 in" in said
    assert "genai-prices" in said
    assert max(map(len, said.splitlines())) <= 80
    assert "2.30 EUR" in prices("show", "device/h100")
    assert "s3/*" in prices("show", "s3/anything")


def test_an_unknown_model_is_an_error_that_says_how_to_add_it(prices: Prices) -> None:
    with pytest.raises(InvalidRequest, match="prices add acme/m"):
        prices("show", "acme/m")
    with pytest.raises(InvalidRequest, match="prices list"):
        prices("list", "--provider", "acme")
    with pytest.raises(InvalidRequest, match="PROVIDER/MODEL"):
        prices("show", "acme")


def test_added_prices_are_used_and_only_ever_added(prices: Prices, file: Path) -> None:
    prices(*IMAGE, "--price", "0.04", "--since", "2026-01-01")
    first = file.read_bytes()
    said = json.loads(prices(*IMAGE, "--price", "5e-2", "--since", "2026-06-01", "--json"))
    assert (said["price"], said["file"]) == ("0.05", str(file))
    assert file.read_bytes().startswith(first)
    charge = book_of(load_settings()).charge(Usage("denoise", images=1), "acme", "m", NOON)
    assert (charge.original, charge.price) == ("0.05", "deal: acme/m@2026-06-01")
    shown = json.loads(prices("show", "acme/m", "--json"))["prices"]
    assert [row["since"] for row in shown] == ["2026-06-01", "2026-01-01"]
    assert prices("check").startswith("ok: 2 prices of yours")


@pytest.mark.parametrize("since", ["2026-06-01", "2026-05-31"])
def test_an_equal_or_earlier_date_is_refused(prices: Prices, file: Path, since: str) -> None:
    prices(*IMAGE, "--price", "1", "--since", "2026-06-01")
    before = file.read_bytes()
    with pytest.raises(InvalidRequest, match="holds from 2026-06-01 already"):
        prices(*IMAGE, "--price", "2", "--since", since)
    assert file.read_bytes() == before
    # Of another size it is another thing.
    prices(*IMAGE, "--price", "2", "--since", since, "--size", "512x512")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--price", "-1"], "not negative"),
        (["--price", "NaN"], "finite"),
        (["--price", "cheap"], "decimal number"),
        (["--price", "1", "--currency", "XXX"], "no rate"),
        (["--price", "1", "--since", "soon"], "since of"),
    ],
)
def test_what_is_wrong_is_not_written(
    prices: Prices, file: Path, words: list[str], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        prices(*IMAGE, *words)
    assert not file.exists() or not file.read_bytes()


def test_a_file_written_by_hand_goes_on(prices: Prices, file: Path) -> None:
    file.parent.mkdir(parents=True)
    row = "{provider: acme, model: m, unit: image, price: 1, since: 2026-01-01, source: me}"
    file.write_text(f"book:\n  prices:\n    # mine\n    - {row}")  # no newline at its end
    prices(*IMAGE, "--price", "2", "--since", "2026-02-01")
    assert "# mine" in file.read_text()
    assert prices("check").startswith("ok: 2 prices of yours")


def test_a_file_that_cannot_grow_stays_as_it_is(prices: Prices, file: Path) -> None:
    file.parent.mkdir(parents=True)
    text = "book:\n  prices: []\n"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match="last list of the file"):
        prices(*IMAGE, "--price", "2")
    assert file.read_text() == text


def test_a_folder_in_the_place_of_the_file_is_an_error(prices: Prices, file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"prices\.yaml"):
        prices(*IMAGE, "--price", "2")


def test_check_says_what_is_wrong(prices: Prices, file: Path) -> None:
    file.parent.mkdir(parents=True)
    row = "{provider: acme, model: m, unit: image, price: 1, since: 2026-01-01, source: me}"
    file.write_text(f"book:\n  prices:\n    - {row}\n    - {row}\n")
    with pytest.raises(InvalidRequest, match="two prices of acme/m image start on 2026-01-01"):
        prices("check")
    said = json.loads(prices("check", "--json", code=2))
    assert not said["ok"]
    assert "two prices" in said["error"]
    file.write_text(f"book:\n  prices:\n    - {row.replace('price: 1', 'price: -1')}\n")
    with pytest.raises(InvalidRequest, match="not negative"):
        prices("check")
