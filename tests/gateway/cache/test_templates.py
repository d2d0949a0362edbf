"""Templates out of traffic, within bounds."""

from __future__ import annotations

import random

from packshot.gateway.cache.templates import LEAST_SEEN, MOST_TOKENS, TemplateMiner

NAMES = "mug vase lamp sofa desk clock chair tent".split()


def fed(*texts, most=1000):
    miner = TemplateMiner(most)
    for text in texts:
        miner.learn(text)
    return miner


def caption(name, tone="playful"):
    return f"Write a caption for our {name} in a {tone} tone"


def test_what_varies_is_the_parameter():
    miner = fed(*(caption(name) for name in NAMES))
    filled = miner.filled(caption("kettle"))
    assert filled is not None
    assert filled.values == ("kettle",)


def test_two_parameters():
    miner = fed(*(caption(name, tone) for name in NAMES for tone in ("formal", "witty")))
    filled = miner.filled(caption("kettle", "dry"))
    assert filled is not None
    assert filled.values == ("kettle", "dry")


def test_a_few_texts_are_no_template_yet():
    miner = fed(*(caption(name) for name in NAMES[: LEAST_SEEN - 1]))
    assert miner.filled(caption("kettle")) is None
    miner.learn(caption("tent"))
    assert miner.filled(caption("kettle")) is not None


def test_other_texts_have_none():
    miner = fed(*(caption(name) for name in NAMES))
    assert miner.filled("a red mug") is None
    assert miner.filled("Write a poem about our mug in a playful tone") is None
    assert miner.filled("") is None


def test_memory_has_a_bound():
    rng = random.Random(1)
    miner = TemplateMiner(50)
    for _ in range(2000):
        miner.learn(" ".join(rng.choice(NAMES) + str(rng.random()) for _ in range(6)))
    assert len(miner) <= 50
    miner.learn("word " * (MOST_TOKENS + 1))
    assert len(miner) <= 50


def test_the_template_least_lately_used_goes_first():
    miner = fed(*(caption(name) for name in NAMES), most=3)
    for at in range(10):
        miner.learn(f"x{at} y{at} z{at}")
        miner.learn(caption("mug"))
    assert miner.filled(caption("kettle")) is not None
