"""brief -> caption: what is understood, what is said about the rest, and what never happens."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, UnknownConcept
from packshot.studio.caption import TEXT_LIMIT, caption_brief, caption_text
from packshot.studio.lexicon import Defaults
from packshot.studio.slots import Slots
from tests.studio.lexicons import SMALL, SUFFIX

USUAL = Slots(ground="white studio", light="soft light", view="eye level")


def slots_of(brief: str) -> Slots:
    slots = caption_brief(brief, SMALL).slots
    assert slots is not None
    return slots


@pytest.mark.parametrize(
    ("brief", "expected"),
    [
        (
            "white sneakers on a sandy beach, bright daylight",
            {
                "product": "sneakers",
                "colour": "white",
                "ground": "sandy beach",
                "light": "bright daylight",
            },
        ),
        (
            "a pair of crimson trainers at the seaside",
            {"product": "sneakers", "colour": "red", "ground": "sandy beach"},
        ),
        ("SNEAKER", {"product": "sneakers"}),
        (
            "tan leather wrist watch, top view",
            {"product": "wristwatch", "colour": "tan", "material": "leather", "view": "above"},
        ),
        ("sneakers in white", {"product": "sneakers", "colour": "white"}),
        (
            "sneakers on wood, white",
            {"product": "sneakers", "colour": "white", "ground": "wooden table"},
        ),
        ("a bottle of red wine", {"product": "wine bottle"}),
        ("red wine bottle", {"product": "wine bottle"}),
        ("white marble vase", {"product": "vase", "colour": "white"}),
        ("vase on white marble", {"product": "vase", "ground": "white marble"}),
        ("wooden table lamp", {"product": "table lamp"}),
        ("lamp on a wooden table", {"product": "table lamp", "ground": "wooden table"}),
        (
            "handbag on pink background, white laces",
            {"product": "handbag", "ground": "pink studio"},
        ),
        ("laptop bag", {"product": "handbag"}),
        ("on a beach, with sunglasses", {"product": "sunglasses", "ground": "sandy beach"}),
        ("photo of a cup of coffee", {"product": "cup of coffee"}),
        ("black leather shoes", {"product": "leather shoes", "colour": "black"}),
        (
            "handbag, light from left, sunset",
            {"product": "handbag", "side": "left", "light": "warm evening light"},
        ),
        (
            "handbag on the sunset square",
            {"product": "handbag", "ground": "city square", "light": "warm evening light"},
        ),
    ],
)
def test_what_a_brief_is_understood_as(brief: str, expected: dict[str, str]) -> None:
    assert slots_of(brief) == replace(USUAL, **expected)


def test_the_caption_has_the_order_and_the_words_of_training() -> None:
    brief = "Crimson canvas trainers @ the seaside! left light; sunny - seen from above"
    assert caption_brief(brief, SMALL).text == (
        "red canvas sneakers on a sandy beach, bright daylight, light from the left, "
        f"seen from above, {SUFFIX}"
    )


def test_a_material_that_the_name_holds_is_said_once() -> None:
    text = caption_brief("leather leather shoes", SMALL).text
    assert text.startswith("leather shoes on ")


def test_words_without_effect_are_reported_and_stay_out() -> None:
    caption = caption_brief("vintage sneakers and a handbag on wood with golden laces", SMALL)
    assert caption.ignored == ("vintage", "handbag", "golden", "laces")
    assert caption.text.startswith("sneakers on a wooden table,")
    assert caption.warnings == ()


@pytest.mark.parametrize(
    ("brief", "warning"),
    [
        ("red vase", "'vase' only in white, blue; 'red' is left out"),
        ("white soccer ball", "'soccer ball' in no other colour than its own; 'white' is left out"),
        ("steel sneakers", "'sneakers' only in canvas; 'steel' is left out"),
        ("sneakers on a boat", "no ground 'boat'; 'white studio' is taken"),
        ("sneakers on wooden planks", "no ground 'wooden planks' (nearest: 'wooden table')"),
        ("on a beach", "the brief names no product"),
    ],
)
def test_what_cannot_be_had_is_a_warning(brief: str, warning: str) -> None:
    caption = caption_brief(brief, SMALL)
    assert len(caption.warnings) == 1
    assert warning in caption.warnings[0]
    assert caption.ignored == ()


@pytest.mark.parametrize(
    ("brief", "unknown", "rendered", "said"),
    [
        ("a kayak on a beach", "kayak", "kayak", "it knows shoes, accessories, bags"),
        ("red jacket on an armchair", "jacket", "jacket", "it knows shoes"),
        ("sandals", "sandals", "sandals", "'sneakers' (footwear; also 'leather shoes'"),
        ("sneekers", "sneekers", "sneakers", "'sneakers'; that is rendered instead"),
        ("vintage water bottle", "vintage water bottle", "wine bottle", "'wine bottle'; that is"),
        ("bottle of rum", "bottle of rum", "wine bottle", "'wine bottle'; that is rendered"),
        ("glass of water", "glass of water", "glass of water", "(cups)"),
        ("glasses", "glasses", "sunglasses", "'sunglasses'; that is rendered instead"),
        ("football shirt", "football shirt", "football shirt", "nearest that it knows is"),
        ("photo of a moody jacket and gloves", "moody jacket", "moody jacket", "guess"),
        ("vintage red jacket", "jacket", "jacket", "will guess"),
    ],
)
def test_an_unknown_product_names_the_nearest(
    brief: str, unknown: str, rendered: str, said: str
) -> None:
    caption = caption_brief(brief, SMALL)
    assert caption.unknown == unknown
    assert caption.slots is not None
    assert caption.slots.product == rendered
    assert f"not shown {unknown!r}" in caption.warnings[0]
    assert said in caption.warnings[0]
    with pytest.raises(UnknownConcept, match="not shown"):
        caption_brief(brief, SMALL, strict=True)


def test_strict_takes_what_the_model_knows_and_refuses_a_brief_without_product() -> None:
    assert caption_brief("white sneakers", SMALL, strict=True).unknown is None
    with pytest.raises(UnknownConcept, match="names no product"):
        caption_brief("on a beach", SMALL, strict=True)


def test_raw_is_the_brief_and_still_warns_of_an_unknown_product() -> None:
    caption = caption_brief("  a kayak, by moonlight ", SMALL, raw=True)
    assert caption.text == "a kayak, by moonlight"
    assert len(caption.warnings) == 1
    with pytest.raises(UnknownConcept):
        caption_brief("a kayak", SMALL, raw=True, strict=True)


def test_a_model_without_lexicon_gets_the_brief_as_typed() -> None:
    caption = caption_brief(" a kayak ", None, strict=True)
    assert (caption.text, caption.slots, caption.warnings) == ("a kayak", None, ())


def test_nothing_is_added_where_the_lexicon_has_no_defaults() -> None:
    bare = replace(SMALL, default=Defaults(), suffix="")
    assert caption_brief("white sneakers", bare).text == "white sneakers"


@pytest.mark.parametrize("brief", ["", "  ", "\n\t", "!?", "the", ",,,"])
def test_an_empty_brief_is_refused(brief: str) -> None:
    with pytest.raises(InvalidRequest, match="brief is empty"):
        caption_brief(brief, SMALL)


def test_a_brief_may_not_be_endless() -> None:
    caption_brief("w " * (TEXT_LIMIT // 2), SMALL)
    with pytest.raises(InvalidRequest, match="at most"):
        caption_brief("w" * (TEXT_LIMIT + 1), SMALL)


ATOMS = sorted(
    {p.name for p in SMALL.products}
    | {s for p in SMALL.products for s in p.synonyms}
    | {c.name for c in SMALL.colours}
    | {t.phrase for t in (*SMALL.grounds, *SMALL.lights, *SMALL.sides, *SMALL.views)}
    | {s for t in (*SMALL.grounds, *SMALL.lights) for s in t.synonyms}
    | set(SMALL.materials)
    | {
        "of",
        "on",
        "in",
        "with",
        "a",
        ",",
        "photo",
        "kayak",
        "and",
        "vintage",
        "shade",
        "15",
        "-ing",
    }
)


@given(
    st.text(min_size=1, max_size=120) | st.lists(st.sampled_from(ATOMS), max_size=12).map(" ".join)
)
def test_no_brief_breaks_it_and_a_caption_reads_as_itself(brief: str) -> None:
    try:
        caption = caption_brief(brief, SMALL)
    except InvalidRequest:
        return
    again = caption_brief(caption.text, SMALL)
    if caption.unknown is None and caption.slots is not None and caption.slots.product:
        assert again.slots == caption.slots
        assert again.text == caption.text
        assert again.ignored == again.warnings == ()


SLOT_NAMES = {
    "colour": [c.name for c in SMALL.colours],
    "ground": [t.name for t in SMALL.grounds],
    "light": [t.name for t in SMALL.lights],
    "side": [*(t.name for t in SMALL.sides), None],
    "view": [t.name for t in SMALL.views],
}


@given(
    st.sampled_from(SMALL.products),
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SLOT_NAMES.items()}),
    st.data(),
)
def test_every_caption_of_known_slots_reads_back(product, chosen, data) -> None:
    allowed = [n for n in SLOT_NAMES["colour"] if product.colours is None or n in product.colours]
    chosen["colour"] = chosen["colour"] if chosen["colour"] in allowed else None
    name = {"product": product.name, "material": data.draw(st.sampled_from(product.materials))}
    slots = Slots(**name, **chosen)
    assert {f.name for f in fields(Slots)} == {*name, *chosen}
    read = caption_brief(caption_text(slots, SMALL), SMALL)
    expected = slots
    if name["material"] in product.name.split():
        expected = replace(slots, material=None)
    assert read.slots == expected


def test_a_product_that_was_never_shown_without_a_colour_gets_its_own() -> None:
    plain = replace(SMALL.product("armchair"), colour="blue")
    lexicon = replace(SMALL, products=(plain,))
    assert caption_brief("armchair", lexicon).text.startswith("blue armchair ")
    assert caption_brief("red armchair", lexicon).text.startswith("red armchair ")
