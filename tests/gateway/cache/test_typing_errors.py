"""Slips of the hand: only what is certain is mended."""

from __future__ import annotations

import pytest

from packshot.gateway.cache.lexicon import ranks
from packshot.gateway.cache.typing_errors import COMMON, meant

WORDS = {word: at for at, word in enumerate("lantern candle cable tables table mugs mogul".split())}


@pytest.mark.parametrize(
    ("slip", "word"),
    [
        ("lantenr", "lantern"),  # the wrong way round
        ("lanern", "lantern"),  # left out
        ("lanttern", "lantern"),  # struck twice
        ("lanyern", "lantern"),  # the key beside it
    ],
)
def test_these_are_mended(slip, word):
    assert meant(slip, WORDS) == word


@pytest.mark.parametrize(
    ("slip", "word", "why"),
    [
        ("table", "cable", "it is a word"),
        ("tables", "table", "it is a word"),
        ("candles", "candle", "an ending carries meaning"),
        ("lanterns", "lantern", "an ending carries meaning"),
        ("lanterm", "lantern", "the ending"),
        ("mantern", "lantern", "the first letter"),
        ("lanpern", "lantern", "a key far away"),
        ("lanxern", "lantern", "a key far away"),
        ("lantren s", "lantern", "not a word at all"),
        ("latnenr", "lantern", "two movements"),
        ("mgus", "mugs", "too short"),
        ("zorbex", "zorbax", "nobody knows what was meant"),
        ("lantérn", "lantern", "not of our keys"),
    ],
)
def test_these_are_not(slip, word, why):
    assert meant(slip, WORDS) != word, why


def test_two_words_as_near_leave_it_open():
    words = {"cable": 0, "candle": 1}
    assert meant("cabel", words) == "cable"
    assert meant("cabel", {**words, "cabeel": 2, "cabell": 3}) is None
    assert meant("tabel", {"table": 0, "tabel": 1}) is None
    rare = {"cable": 0, "cadle": COMMON}
    assert meant("cabel", rare) == "cable"


def test_the_dictionary_knows_words_by_how_common_they_are():
    known = ranks()
    assert len(known) == 82_834
    assert known["the"] == 0
    assert known["table"] < 2_000 < known["taupe"]
    assert "snekaer" not in known
