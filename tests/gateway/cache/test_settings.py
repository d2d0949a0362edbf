"""The threshold where nobody names one: low behind all guards, high where slots may differ."""

from __future__ import annotations

from typing import get_args

import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.cache.settings import (
    GUARDED,
    LOOSE,
    JudgeEntry,
    RouteCacheEntry,
    SemanticCacheEntry,
    SlotType,
    threshold_of,
)
from packshot.gateway.cache.slots import SLOT_TYPES


def test_the_similarity_only_has_to_do_what_the_guards_do_not() -> None:
    assert set(get_args(SlotType)) == set(SLOT_TYPES)
    routes = {
        "loose": RouteCacheEntry(must_match=("number",)),
        "all": RouteCacheEntry(must_match=get_args(SlotType)),
        "named": RouteCacheEntry(must_match=("number",), similarity_threshold=0.9),
    }
    entry = SemanticCacheEntry(routes=routes)
    found = [threshold_of(entry, name) for name in ("", "loose", "all", "named")]
    assert found == [GUARDED, LOOSE, GUARDED, 0.9]
    loose = SemanticCacheEntry(must_match=("number",), routes=routes)
    assert [threshold_of(loose, name) for name in ("", "all")] == [LOOSE, GUARDED]
    assert threshold_of(SemanticCacheEntry(similarity_threshold=0.97), "") == 0.97


def test_an_account_of_no_name() -> None:
    with pytest.raises(InvalidRequest, match="account is the name"):
        JudgeEntry("bench", "")
