"""The benchmark's development half: the guards stay as good on it as they were."""

from __future__ import annotations

from collections import Counter

from benchmarks.cache_pairs import dev, heldout
from packshot.gateway.cache.guards import compare
from packshot.gateway.cache.slots import read


def test_no_false_hit_and_nine_of_ten_hits_on_a_sample():
    pairs = dev.generate()[:1500]
    agree = [compare(read(pair.a), read(pair.b)).agree for pair in pairs]
    false = [pair for pair, hit in zip(pairs, agree, strict=True) if hit and not pair.same]
    hits = sum(hit for pair, hit in zip(pairs, agree, strict=True) if pair.same)
    assert not false
    assert hits >= 0.9 * sum(pair.same for pair in pairs)


def test_the_halves_are_as_large_as_they_say_and_the_same_each_time():
    for half, least_other in ((dev, 5000), (heldout, 5000)):
        pairs = half.generate()
        counts = Counter(pair.same for pair in pairs)
        assert len(pairs) >= 10_000
        assert counts[False] >= least_other
        assert all(pair.a != pair.b for pair in pairs)
    assert heldout.generate()[:50] == pairs[:50]
