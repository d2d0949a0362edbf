"""``packshot gateway``: what its commands print; serving has its own tests in tests/gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from packshot.cli import machine
from packshot.gateway import bench
from packshot.gateway.content import Content, ContentLog
from tests.cli.conftest import Packshot

FOUND = bench.Figures(
    model="a-route-with-a-name-that-is-longer-than-any-line-of-a-terminal-would-take",
    calls=12_345_678,
    direct_p50_us=61.5,
    added_p50_us=12_345.67,
    added_p99_us=123_456.78,
    per_s=18_000.4,
    direct_per_s=210_000.0,
    cpu_us=45.25,
    drain_us=None,
    chunk_us=6.85,
    load=12.0,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bench.Options]]:
    calls: list[tuple[Path, bench.Options]] = []

    def measured(path: Path, options: bench.Options) -> bench.Figures:
        calls.append((path, options))
        return FOUND

    monkeypatch.setattr(bench, "bench", measured)
    return calls


def test_bench_prints_what_fits_a_terminal(
    packshot: Packshot, asked: list[tuple[Path, bench.Options]]
) -> None:
    done = packshot("gateway", "bench", "-c", "x.yaml", "--rounds", "3", "--connections", "7")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    assert "12,345.7 us" in done.out
    assert ("built without PGO" in done.out) is not machine.optimized()
    assert "unknown" in done.out
    assert asked == [(Path("x.yaml"), bench.Options(rounds=3, connections=7))]


def test_bench_prints_one_json_object(
    packshot: Packshot, asked: list[tuple[Path, bench.Options]]
) -> None:
    done = packshot("gateway", "bench", "--json")
    assert done.json["per_s"] == 18_000.4
    assert done.json["drain_us"] is None
    assert asked == [(Path("packshot.yaml"), bench.Options())]


def test_bench_says_what_is_wrong_with_the_file(packshot: Packshot) -> None:
    Path("packshot.yaml").write_text("providers: {openai: {colour: red}}\n")
    done = packshot("gateway", "bench")
    assert done.code != 0
    assert "colour" in done.err
    assert not done.out


def test_content_prints_what_the_log_holds(
    packshot: Packshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef"
    monkeypatch.setenv("CONTENT", key)
    Path("packshot.yaml").write_text(
        "server: {state: here}\ntelemetry: {content_key: env.CONTENT}\n"
    )
    names = ("shop", "", "chat", "", "openai", "gpt-4o")
    log = ContentLog(Path("here/content"), key, 30, "gateway-0")
    log.start()
    log.put(Content(1.5, "id-1", *names, 200, b'{"n":1}', b"\xff"))
    log.stop()
    done = packshot("gateway", "content")
    assert done.code == 0, done.err
    assert done.json["request"] == '{"n":1}'
    assert done.json["response"] == "\\xff"
    assert packshot("gateway", "content", "--day", "2020-01-01").code != 0
    monkeypatch.setenv("CONTENT", "x" * 32)
    assert "another key" in packshot("gateway", "content").err
    Path("packshot.yaml").write_text("server: {state: here}\n")
    assert "content_key is not set" in packshot("gateway", "content").err
