"""The index: exact and by graph, against a plain scan."""

from __future__ import annotations

import numpy as np
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache import similarity
from packshot.gateway.cache.similarity import VectorIndex

DIMENSION = 32


def vectors(count, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(count, exact_up_to):
    index, rows = VectorIndex(DIMENSION, exact_up_to), vectors(count)
    for key, row in enumerate(rows):
        index.add(key, row)
    return index, rows


@pytest.mark.parametrize("exact_up_to", [10_000, 100])
def test_the_nearest_is_found_with_its_true_similarity(exact_up_to):
    index, rows = filled(600, exact_up_to)
    near = rows + 0.02 * vectors(600, seed=1)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    for key in range(0, 600, 7):
        found = index.nearest(near[key], 3, at_least=-1)
        assert found[0].key == key
        assert found[0].similarity == pytest.approx(float(rows[key] @ near[key]), abs=1e-5)
        assert [match.similarity for match in found] == sorted(
            (match.similarity for match in found), reverse=True
        )


def test_what_is_below_the_threshold_is_left_out():
    index, rows = filled(50, 1000)
    found = index.nearest(rows[3], 50, at_least=0.3)
    scan = {key for key in range(50) if rows[key] @ rows[3] >= 0.3}
    assert {match.key for match in found} == scan


@pytest.mark.parametrize("exact_up_to", [10_000, 20])
def test_what_is_removed_is_not_found_and_the_rest_is(exact_up_to):
    index, rows = filled(120, exact_up_to)
    for key in range(0, 120, 2):
        index.remove(key)
        index.remove(key)
    assert len(index) == 60
    for key in range(120):
        found = index.nearest(rows[key], 1, at_least=0.999)
        assert [match.key for match in found] == ([key] if key % 2 else [])
        assert (key in index) == bool(key % 2)


@pytest.mark.parametrize("exact_up_to", [10_000, 20])
def test_adding_again_replaces(exact_up_to):
    index, rows = filled(40, exact_up_to)
    index.add(5, rows[6])
    assert len(index) == 40
    assert index.nearest(rows[5], 1, at_least=0.999) == []
    assert {match.key for match in index.nearest(rows[6], 2, at_least=0.999)} == {5, 6}


def test_a_vector_of_another_model_is_refused():
    with pytest.raises(InvalidRequest, match="another embedding model"):
        VectorIndex(DIMENSION).add(1, np.ones(8, np.float32))


def test_an_empty_index_finds_nothing():
    assert VectorIndex(DIMENSION).nearest(vectors(1)[0], 5, at_least=-1) == []


def test_no_entry_pays_for_the_whole_graph(monkeypatch):
    class Counting(similarity._graph(DIMENSION).__class__):
        calls = 0

        def add(self, *words, **options):
            Counting.calls += 1
            return super().add(*words, **options)

    monkeypatch.setattr(
        similarity, "_graph", lambda size: Counting(ndim=size, metric="cos", dtype="i8")
    )
    index, before = VectorIndex(DIMENSION, 200), 0
    for key, row in enumerate(vectors(400)):
        index.add(key, row)
        assert Counting.calls - before <= 1 + similarity.FED_AT_ONCE
        before = Counting.calls
    assert Counting.calls == 400  # each once
    assert [match.key for match in index.nearest(vectors(400)[7], 1, at_least=0.99)] == [7]


def test_without_the_graph_all_are_scanned(monkeypatch):
    monkeypatch.setattr(similarity, "_graph", lambda _: None)
    index, rows = filled(60, 20)
    assert all(index.nearest(row, 1, at_least=0.99)[0].key == key for key, row in enumerate(rows))
