"""The machine's cache of embeddings: what it keeps, how long, and what it says when it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packshot.core.errors import InvalidRequest
from packshot.core.types import NOTHING_READ, EmbeddingUse
from packshot.state.blobs import OVERHEAD, MemoryBlobs, TieredBlobs
from packshot.state.sqlite_blobs import SqliteBlobs
from packshot.studio import embeddings as embeddings_module
from packshot.studio.embeddings import (
    EmbeddingSettings,
    KeptEmbeddings,
    cache_folder,
    embeddings_page,
    kept_embeddings,
    open_embeddings,
)
from packshot.studio.plan import Options, plan
from packshot.studio.record import Maker
from packshot.studio.render import load_engine, render
from packshot.studio.sheet import render_sheet
from tests.state.conftest import Clock, new_valkey

MIB = 1024 * 1024


def test_what_is_put_is_found_in_another_process_of_the_machine() -> None:
    with kept_embeddings(EmbeddingSettings()) as first:
        assert first is not None
        assert first.get("k") is None
        first.put("k", b"value")
    with kept_embeddings(EmbeddingSettings()) as second:
        assert second is not None
        assert second.get("k") == b"value"
        assert second.problem == ""
    assert (cache_folder() / "embeddings.db").stat().st_mode & 0o777 == 0o600


def test_nothing_is_on_disk_where_nothing_is_to_be() -> None:
    for settings in (EmbeddingSettings(keep=False), EmbeddingSettings(file_mb=0)):
        with kept_embeddings(settings) as kept:
            assert (kept is None) is not settings.keep
            if kept is not None:
                kept.put("k", b"value")
                assert kept.get("k") == b"value"
    assert not cache_folder().exists()


def test_the_settings_are_those_of_the_shelves(tmp_path: Path) -> None:
    settings = EmbeddingSettings(days=2, memory_mb=3, file=str(tmp_path / "x.db"), file_mb=5)
    with kept_embeddings(settings) as kept:
        assert kept is not None
        assert isinstance(kept.blobs, TieredBlobs)
        assert kept.ttl_s == 2 * 24 * 3600
        assert (kept.blobs.front.max_bytes, kept.blobs.back.max_bytes) == (3 * MIB, 5 * MIB)
    assert (tmp_path / "x.db").exists()


def test_machines_share_what_is_kept_and_go_on_alone(tmp_path: Path) -> None:
    with new_valkey() as server:
        url = f"valkey://127.0.0.1:{server.port}"
        settings = EmbeddingSettings(shared=url, file=str(tmp_path / "no"))
        assert url not in repr(settings)
        one, two = open_embeddings(settings), open_embeddings(settings)
        assert one is not None
        assert two is not None
        one.put("k", b"value")
        assert two.get("k") == b"value"
        one.close()
        two.close()
    alone = open_embeddings(settings)
    assert alone is not None
    alone.put("k", b"value")
    assert alone.get("k") == b"value"
    assert "does not answer" in alone.problem
    alone.close()
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"days": 0}, "days is above 0, at most 365, got 0"),
        ({"days": 366.0}, "got 366"),
        ({"days": float("nan")}, "got nan"),
        ({"memory_mb": 0}, "memory_mb is 1 to 1048576, got 0"),
        ({"file_mb": -1}, "file_mb is 0 to 1048576, got -1"),
    ],
)
def test_settings_that_are_none_are_refused(choice: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        EmbeddingSettings(**choice)


def test_what_is_kept_ends_after_its_days() -> None:
    clock = Clock()
    kept = KeptEmbeddings(MemoryBlobs(MIB, clock))
    kept.put("k", b"value")
    clock.move(30 * 24 * 3600 - 1)
    assert kept.get("k") == b"value"
    clock.move(1)
    assert kept.get("k") is None


def test_what_another_version_made_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = MemoryBlobs(MIB)
    KeptEmbeddings(blobs).put("k", b"value")
    assert KeptEmbeddings(blobs).get("k") == b"value"
    monkeypatch.setattr(embeddings_module, "code_mark", lambda: Maker("packshot", "2", "f" * 16))
    assert KeptEmbeddings(blobs).get("k") is None


def test_a_file_that_cannot_be_used_is_a_problem_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with kept_embeddings(EmbeddingSettings(file=str(tmp_path / "x.db"))) as kept:
        assert kept is not None
        kept.put("k", b"value")
        assert kept.get("k") == b"value"
        assert "x.db is damaged" in kept.problem


def test_all_renders_are_counted() -> None:
    kept = KeptEmbeddings(MemoryBlobs(MIB))
    kept.count(EmbeddingUse(1, 2, 0.5))
    kept.count(EmbeddingUse(3, 0, 0.25))
    assert kept.total == EmbeddingUse(4, 2, 0.75)
    assert kept.total.rate == pytest.approx(2 / 3)
    assert NOTHING_READ.rate == 0


def page(settings: EmbeddingSettings) -> dict[str, float]:
    lines = embeddings_page(settings).splitlines()
    rows = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.removeprefix("packshot_embedding_"): float(value) for name, _, value in rows}


@pytest.mark.parametrize("shared", [False, True])
def test_the_page_of_metrics_has_what_all_processes_counted(shared: bool, tmp_path: Path) -> None:
    with new_valkey() as server:
        url = f"valkey://127.0.0.1:{server.port}" if shared else ""
        settings = EmbeddingSettings(shared=url, file=str(tmp_path / "e.db"))
        assert embeddings_page(settings) == ""
        assert not (tmp_path / "e.db").exists()  # who only looks makes no file
        for _ in range(2):
            with kept_embeddings(settings) as one, kept_embeddings(settings) as two:
                assert one is not None
                assert two is not None
                one.count(EmbeddingUse(3, 1, 0.5))
                one.count(EmbeddingUse(1, 0, 0.25))
                two.count(EmbeddingUse(0, 2, 0.0))
        assert page(settings) == {
            'texts_total{result="hit"}': 8,
            'texts_total{result="miss"}': 6,
            "saved_seconds_total": 1.5,
        }
    if shared:
        with kept_embeddings(settings) as alone:  # the server is gone: no harm, and no page
            assert alone is not None
            alone.count(EmbeddingUse(1, 0, 0.1))
        assert embeddings_page(settings) == ""
    assert embeddings_page(replace(settings, keep=False)) == ""
    assert embeddings_page(replace(settings, file_mb=0)) == ""


def test_a_process_that_goes_on_counts_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(embeddings_module, "monotonic", lambda: now)
    settings = EmbeddingSettings(file=str(tmp_path / "e.db"))
    with kept_embeddings(settings) as kept:
        assert kept is not None
        seen: list[float] = []
        for step in (0.0, 1.0, 9.5, 0.1):
            now += step
            kept.count(EmbeddingUse(1, 0, 0.0))
            seen.append(page(settings)['texts_total{result="hit"}'])
        assert seen == [1, 1, 3, 3]
    assert page(settings)['texts_total{result="hit"}'] == 4


# ---------------------------------------------------------------- renders


@pytest.fixture
def options(tiny_sdxl: Path, tmp_path: Path) -> Options:
    return Options(
        "a red shoe", model=str(tiny_sdxl), out=str(tmp_path / "out"), seed=1, steps=1, size="64"
    )


def test_a_delivery_says_what_the_cache_had_and_its_pictures_are_the_same(
    options: Options, tmp_path: Path
) -> None:
    made = []
    with kept_embeddings(EmbeddingSettings()) as kept:
        for cache in (None, kept, kept):
            planned = plan(replace(options, negative="blurred"))
            made.append(render(planned, load_engine(planned, None, cache)))
        assert kept is not None
        assert kept.total == made[1].embeddings + made[2].embeddings
        assert kept.blobs.held().values == 2
    used = [(each.embeddings.hits, each.embeddings.misses) for each in made]
    assert used == [(0, 2), (0, 2), (2, 0)]
    pixels = [np.asarray(Image.open(each.pictures[0].path)) for each in made]
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[0], pixels[2])


def test_a_sheet_says_what_the_cache_had(options: Options) -> None:
    with kept_embeddings(EmbeddingSettings()) as kept:
        plans = [plan(replace(options, brief=brief)) for brief in ("a shoe", "a mug", "a shoe")]
        sheet = render_sheet(plans, load_engine(plans[0], None, kept), 3)
    assert (sheet.embeddings.hits, sheet.embeddings.misses) == (1, 2)


def test_a_problem_is_a_warning_of_the_render(options: Options, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with kept_embeddings(EmbeddingSettings(file=str(tmp_path / "x.db"))) as kept:
        planned = plan(options)
        said = render(planned, load_engine(planned, None, kept)).warnings
    assert "text embeddings are kept in memory only" in said[-1]


# ---------------------------------------------------------------- a workload


STEMS, RENDERS = 4000, 40_000


def asked() -> list[int]:
    """Return which of 4,000 stems each of 40,000 renders asks for, by Zipf's law."""
    share = 1 / np.arange(1, STEMS + 1)
    source = np.random.default_rng(1)
    return source.choice(STEMS, RENDERS, p=share / share.sum()).tolist()


def hits_of(kept: KeptEmbeddings, order: list[int], clock: Clock, days: float) -> int:
    hits = 0
    for stem in order:
        clock.move(days * 24 * 3600 / len(order))
        found = kept.get(str(stem))
        assert found in {None, str(stem).encode()}
        if found is None:
            kept.put(str(stem), str(stem).encode())
        else:
            hits += 1
    return hits


def test_four_thousand_stems_with_a_long_tail_hit_in_91_of_100() -> None:
    """A month of it: every stem is encoded once, when it is first asked for."""
    order, clock = asked(), Clock()
    kept = KeptEmbeddings(MemoryBlobs(64 * MIB, clock))
    hits = hits_of(kept, order, clock, days=30)
    assert hits == RENDERS - len(set(order))
    assert 0.91 <= hits / RENDERS < 0.92
    # In the next month each of them ends once, and is encoded once again where it is asked for.
    assert 0.92 <= hits_of(kept, order, clock, days=30) / RENDERS < 0.95


def test_a_shelf_that_is_too_small_keeps_what_is_asked_for_most() -> None:
    """Against a list that is moved to the front at each use."""
    room, order, clock = 200, asked()[:8000], Clock()
    kept = KeptEmbeddings(MemoryBlobs(room * (4 + OVERHEAD), clock))
    recent: list[int] = []
    expected = 0
    for stem in order:
        expected += stem in recent
        recent = [stem, *(other for other in recent[:room] if other != stem)][:room]
    hits = hits_of(kept, [stem + 1000 for stem in order], clock, days=1)
    assert hits == expected
    assert 0.4 < hits / len(order) < 0.8


def test_behind_a_small_memory_the_file_has_the_rest(tmp_path: Path) -> None:
    order, clock = asked()[:3000], Clock()
    memory = MemoryBlobs(100 * (4 + OVERHEAD), clock)
    file = SqliteBlobs(tmp_path / "x.db", MIB, clock)
    kept = KeptEmbeddings(TieredBlobs(memory, file, clock))
    assert hits_of(kept, order, clock, days=1) == len(order) - len(set(order))
    assert memory.held().values <= 104
    file.close()
