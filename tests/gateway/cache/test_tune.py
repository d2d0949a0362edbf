"""Thresholds on labelled pairs: what is counted, what is recommended, what is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.plot import plot
from packshot.gateway.cache.slots import SLOT_TYPES
from packshot.gateway.cache.tune import (
    THRESHOLDS,
    LabelledPair,
    Scored,
    best,
    load_pairs,
    outcomes,
    score,
)


def scored(*rows):
    return [
        Scored(LabelledPair("a", "b", same, nano_eur=cost), near, agrees)
        for same, near, agrees, cost in rows
    ]


ROWS = scored(
    (True, 0.95, True, 100),
    (True, 0.85, True, 10),
    (True, 0.99, False, 1),
    (False, 0.88, True, 0),
    (False, 0.99, False, 0),
)


def test_a_hit_is_what_agrees_and_is_near_enough():
    by_threshold = {row.threshold: row for row in outcomes(ROWS)}
    assert (by_threshold[0.80].hit_count, by_threshold[0.80].false_count) == (2, 1)
    assert (by_threshold[0.85].hit_count, by_threshold[0.85].false_count) == (2, 1)
    assert (by_threshold[0.90].hit_count, by_threshold[0.90].false_count) == (1, 0)
    assert (by_threshold[0.99].hit_count, by_threshold[0.99].false_count) == (0, 0)
    assert by_threshold[0.80].hits.rate == pytest.approx(2 / 3)
    assert by_threshold[0.80].saved_nano_eur == 110
    assert (by_threshold[0.80].same, by_threshold[0.80].other) == (3, 2)


def test_the_most_hits_within_the_limit_are_recommended():
    chosen = best(outcomes(ROWS), 0.001)
    assert chosen is not None
    assert chosen.threshold == 0.95  # as many hits as at 0.89, and more careful
    assert best(outcomes(ROWS), 0.6).threshold == 0.85
    assert best(outcomes(scored((True, 0.9, True, 0), (False, 1.0, True, 0))), 0.001) is None


def test_thresholds_go_from_080_to_099():
    assert THRESHOLDS[0] == 0.80
    assert THRESHOLDS[-1] == 0.99
    assert len(THRESHOLDS) == 20


def letters(texts):
    """Embed a text by its letters."""
    rows = np.zeros((len(texts), 256), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for letter, count in Counter(text.encode()).items():
            row[letter] = count
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pairs_are_scored_with_and_without_guards():
    pairs = [
        LabelledPair("red mug", "please write a caption for a red mug", same=True),
        LabelledPair("white mug, size 42", "white mug, size 43", same=False),
    ]
    told = []
    ours, alone = score(pairs, letters, SLOT_TYPES, lambda: told.append(1))
    assert [row.agrees for row in ours] == [True, False]
    assert ours[0].similarity == pytest.approx(1)  # the opening is not embedded
    assert alone[0].similarity < 0.95
    assert all(row.agrees for row in alone)
    assert alone[1].similarity > 0.95
    assert len(told) == 2
    _, (_, plain) = score(pairs, letters, ())
    assert plain.agrees


def test_a_file_is_read_and_its_errors_name_the_line(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"a": "x", "b": "y", "same": true, "more": 1}\n\n{"a": "x"}\n')
    with pytest.raises(InvalidRequest, match=r"line 3: .*missing.*`b`"):
        load_pairs(file)
    file.write_text('{"a": "x", "b": "y", "same": true, "more": 1, "route": "r"}\n')
    assert load_pairs(file) == [LabelledPair("x", "y", same=True, route="r")]
    file.write_text("")
    with pytest.raises(InvalidRequest, match="no pairs"):
        load_pairs(file)
    with pytest.raises(InvalidRequest, match="cannot read"):
        load_pairs(tmp_path / "nowhere.jsonl")


def test_the_plot_is_well_formed_and_within_its_frame():
    rows = outcomes(ROWS)
    drawn = ET.fromstring(plot("a < b & c", rows, rows, 0.001))  # noqa: S314 - our own
    width, height = (float(part) for part in drawn.attrib["viewBox"].split()[2:])
    lines = [node for node in drawn.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 4
    for line in lines:
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        assert len(points) == len(THRESHOLDS)
        assert all(0 < x < width and 0 < y < height for x, y in points)
    assert "a < b & c" in [node.text for node in drawn.iter()]
