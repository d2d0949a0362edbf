"""``packshot config check``: what a file comes to, what it warns of, and where its mistakes are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Packshot
from tests.gateway.test_compat import CAPTION, MISTAKES, ROUTING

VARIABLES = ("PRIMARY", "BACKUP", "SECONDARY")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(f"OPENAI_KEY_{name}", f"hush-{name}")
    monkeypatch.setenv("ANTHROPIC_KEY", "hush-ANTHROPIC")
    monkeypatch.setenv("STABILITY_KEY", "hush-STABILITY")


def check(packshot: Packshot, folder: Path, text: str, *words: str):
    path = folder / "packshot.yaml"
    path.write_text(text)
    return packshot("config", "check", str(path), *words)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            CAPTION.replace("0.94", "0.94\n  model: nowhere"),
            "semantic_cache: no embedding model in",
        ),
        (
            ROUTING.replace("stability", "replicate"),
            "providers.replicate is read but not built yet",
        ),
    ],
)
def test_good_files_are_0_and_warn_of_what_is_not_built(
    packshot: Packshot, tmp_path: Path, text: str, warning: str
) -> None:
    done = check(packshot, tmp_path, text)
    assert done.code == 0
    assert warning in flat(done.err)
    assert "ok" in done.out
    assert "hush" not in done.out + done.err


def test_as_json(packshot: Packshot, tmp_path: Path) -> None:
    done = check(packshot, tmp_path, ROUTING, "--json")
    assert done.code == 0
    assert done.json["providers"]["openai"] == {
        "base_url": "https://api.openai.com/v1",
        "keys": [{"name": "key-1", "weight": 0.7}, {"name": "key-2", "weight": 0.3}],
        "max_retries": 2,
    }
    assert done.json["routes"] == {
        "prompt-rewrite": ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"]
    }
    assert done.json["providers"]["stability"]["base_url"] == "https://api.stability.ai/v2beta"
    assert done.json["warnings"] == []
    assert "hush" not in done.out


@pytest.mark.parametrize(("text", "right", "wrong", "line", "nearest"), MISTAKES)
def test_an_unknown_key_is_2_with_its_line_and_the_nearest(
    packshot: Packshot,
    tmp_path: Path,
    text: str,
    right: str,
    wrong: str,
    line: int,
    nearest: str,
) -> None:
    done = check(packshot, tmp_path, text.replace(right, wrong))
    assert done.code == 2
    assert f"line {line}:" in flat(done.err)
    assert f"Did you mean '{nearest}'" in flat(done.err)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("weight: 0.7", "weight: -1", "weight"),
        ("weight: 0.7", "weight: .nan", "line 5"),
        ("weight: 0.7", "weight: .inf", "line 5"),
        ("env.OPENAI_KEY_PRIMARY", "env.NOBODY_SET_THIS", "NOBODY_SET_THIS"),
        ("env.OPENAI_KEY_PRIMARY", "sk-written-into-the-file", "line 4"),
        ("max_retries: 2", "max_retries: 99", "max_retries"),
        ("max_retries: 2", "max_retries: two", "line 10"),
        ("anthropic/claude-haiku-4-5", "nobody/claude", "nobody"),
        ("id: prompt-rewrite", "id: a/b", "slash"),
        ("  openai:", "  openai: &a\n    x: *a\n  other:", "line"),
        ("providers:", "providers: !!python/object:os.system", "line"),
        (
            "mcp:",
            "ledger: {caps: [{scope: total, eur: 1}, {scope: total, eur: 2}]}\nmcp:",
            "two caps",
        ),
        ("      retry:", "      ca: none.pem\n      retry:", "none.pem"),
        ("      retry:", "      proxy: hush-hush\n      retry:", "line 9"),
        ("      retry:", "      proxy: http://u:hush@/\n      retry:", "proxy"),
        ("      retry:", "      max_connections: 0\n      retry:", "max_connections"),
        ("weight: 0.3", "weight: 0.3\n        weight: 0.4", "line 8"),
        ("  openai:", "  acme:", "providers.acme: unknown kind of provider 'acme'"),
        ("  openai:", "  acme:", "kind: openai-compatible"),
        ("anthropic/claude-haiku-4-5", "nobody/claude", "routes, prompt-rewrite: unknown provider"),
        ("mcp:", "server: {host: 0.0.0.0}\nmcp:", "server.behind_proxy"),
        ("mcp:", "engine: {buckets: [1000x10]}\nmcp:", "'1000x10' is no size to render at"),
    ],
)
def test_other_mistakes_are_2(
    packshot: Packshot, tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    done = check(packshot, tmp_path, ROUTING.replace(right, wrong))
    assert done.code == 2, done.out + done.err
    assert said in flat(done.err)
    assert "hush" not in done.err
    assert "sk-written" not in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_not_there_is_told(packshot: Packshot, tmp_path: Path) -> None:
    done = packshot("config", "check", str(tmp_path / "none.yaml"))
    assert done.code not in {0, 1}
    assert "none.yaml" in flat(done.err)
    assert "examples/gateway.yaml" in flat(done.err)
