"""A language model's answer: what becomes a caption, and what is sent back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import PackshotError
from packshot.studio.caption import Caption, caption_brief, caption_text
from packshot.studio.caption_answer import Complaint, read_answer
from packshot.studio.caption_prompt import load_prompt
from packshot.studio.slots import Slots
from tests.studio.lexicons import SMALL
from tests.studio.provider import GOOD
from tests.studio.test_shipped_lexicon import LEXICON as SHIPPED

BRIEF = "white sneakers on a sandy beach"
PROMPT = load_prompt()


def answer(brief: str = BRIEF, *, lexicon=SMALL, fits=lambda _: True, **changed: str) -> Caption:
    return read_answer(json.dumps(GOOD | changed), brief, lexicon, PROMPT, fits)


def complaint(brief: str = BRIEF, **options) -> str:
    with pytest.raises(Complaint) as raised:
        answer(brief, **options)
    return str(raised.value)


def test_phrases_become_a_caption_in_the_words_of_training() -> None:
    made = answer()
    assert made.text == (
        "white sneakers on a sandy beach, warm evening light, light from the left, seen from above,"
        " product photo, 85 mm lens, shallow depth of field"
    )
    assert made.warnings == made.ignored == ()
    same = answer(product="the white trainers", ground="seaside", lighting="sunset, left light")
    assert same == made


def test_prose_is_taken_as_it_is_where_the_model_reads_prose() -> None:
    brief = "a red enamel mug on marble"
    made = answer(
        brief,
        lexicon=None,
        product="red enamel mug",
        ground="on veined marble ",
        lighting="soft window light from the left.",
        framing="three-quarter view",
        lens="85mm lens, f/2.8",
    )
    assert made.text == (
        "red enamel mug on veined marble, soft window light from the left, three-quarter view, "
        "85mm lens, f/2.8"
    )
    assert made.slots is None


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", "Here it is:\n{} Enjoy!"])
def test_what_stands_around_the_object_does_not_matter(wrap: str) -> None:
    text = wrap.replace("{}", json.dumps(GOOD))
    assert read_answer(text, BRIEF, SMALL, PROMPT, lambda _: True) == answer()


@pytest.mark.parametrize(
    "text",
    ["", "no", "[1]", "{", '{"product": "white sneakers"}', json.dumps(GOOD | {"ground": None})],
)
def test_what_is_not_the_object_is_sent_back(text: str) -> None:
    with pytest.raises(Complaint, match="not the JSON object"):
        read_answer(text, BRIEF, SMALL, PROMPT, lambda _: True)


@pytest.mark.parametrize(
    ("brief", "changed", "said"),
    [
        (BRIEF, {"product": "white handbag"}, "brief's product is 'sneakers'; the answer's is 'ha"),
        (BRIEF, {"product": "red sneakers"}, "brief's colour is 'white'; the answer's is 'red'"),
        ("sneakers", {}, "the brief names no colour, and the answer adds 'white'"),
        (BRIEF, {"ground": "on marble"}, "the brief's ground is 'sandy beach'"),
        ("white sneakers, sunny", {}, "the brief's light is 'bright daylight'"),
        ("white sneakers", {"ground": "on a lava field"}, "it names no ground that the model"),
        ("white sneakers", {"lighting": "as usual"}, "it names no light that the model knows"),
        ("vintage kayak", {"product": "wooden boat"}, "product has lost 'vintage kayak'"),
        ("vintage kayak", {"product": "sneakers"}, "product has lost 'vintage kayak'"),
        (BRIEF, {"framing": " "}, "framing is empty"),
        (BRIEF, {"framing": "view " * 40}, "framing has 199 characters"),
    ],
)
def test_what_the_brief_says_must_still_be_said(brief: str, changed, said: str) -> None:
    assert said in complaint(brief, **changed)


def test_words_that_the_rules_do_not_know_may_be_read_by_the_model() -> None:
    brief = "snow-coloured sneakers at golden hour"
    assert caption_brief(brief, SMALL).ignored
    assert answer(brief, ground="on white marble").text.startswith("white sneakers on white marble")


def test_the_customer_s_words_that_had_no_effect_are_told_and_the_model_s_are_not() -> None:
    made = answer("burgundy sneakers", product="burgundy sneakers", ground="on a cosy sandy beach")
    assert made.text.startswith("sneakers on a sandy beach")
    assert made.ignored == ("burgundy",)


def test_a_typing_error_may_be_put_right() -> None:
    assert answer("white sneekers").slots == answer().slots


def test_an_unknown_product_stays_what_it_is_and_is_warned_of() -> None:
    made = answer("vintage kayak", product="vintage kayak")
    assert made.text.startswith("vintage kayak on a sandy beach, warm")
    assert "the model was not shown 'vintage kayak'" in made.warnings[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ground": "on a sandy beach with no people"}, "ground says 'no'"),
        ({"framing": "seen from above, brand logos"}, "framing says 'brand'"),
        ({"lighting": "(warm evening light:1.4)"}, "lighting has characters"),
        ({"ground": "a beach <lora:x>"}, "ground has characters"),
        ({"framing": "https://example.com"}, "framing has characters"),
        ({"framing": "view\x00"}, "framing has characters"),
    ],
)
@pytest.mark.parametrize("lexicon", [SMALL, None])
def test_what_no_caption_should_say_is_sent_back(changed, said: str, lexicon) -> None:
    assert said in complaint(lexicon=lexicon, **changed)


def test_what_the_brief_says_itself_is_not_forbidden() -> None:
    made = answer("a knife (8 in.)", lexicon=None, product="knife (8 in.)")
    assert made.text.startswith("knife (8 in.) on")


def test_prose_keeps_the_product_s_words_and_fits() -> None:
    brief = "vintage brass lamp beside a window"
    options = {"lexicon": None, "product": "vintage brass lamps"}
    assert answer(brief, **options).text.startswith("vintage brass lamps on")
    assert "product has lost 'brass'" in complaint(brief, lexicon=None, product="vintage lamp")
    assert "too long" in complaint(brief, fits=lambda _: False, **options)
    long = {"ground": "on sand " * 19, "framing": "view " * 30, "lighting": "light " * 25}
    assert "too long" in complaint(brief, **options, **long)


@given(st.text(max_size=200), st.dictionaries(st.sampled_from(sorted(GOOD)), st.text(max_size=90)))
def test_whatever_is_answered_the_product_is_the_brief_s(noise: str, changed) -> None:
    for text in (noise, json.dumps(GOOD | changed), json.dumps(GOOD | changed) + noise):
        for lexicon in (SMALL, None):
            try:
                made = read_answer(text, BRIEF, lexicon, PROMPT, lambda _: True)
            except Complaint:
                continue
            assert "sneaker" in made.text.casefold()
            assert len(made.text) <= 420
            assert lexicon is None or made.text.startswith("white sneakers on a sandy beach, ")


@given(st.data())
def test_what_the_prompt_offers_for_the_shipped_model_is_taken(data: st.DataObject) -> None:
    product = data.draw(st.sampled_from(SHIPPED.products))
    colours = [c.name for c in SHIPPED.colours] if product.colours is None else product.colours
    colour = data.draw(st.sampled_from(["", *colours]))
    ground, light, view = (
        data.draw(st.sampled_from(terms))
        for terms in (SHIPPED.grounds, SHIPPED.lights, SHIPPED.views)
    )
    side = data.draw(st.sampled_from([None, *SHIPPED.sides]))
    named = f"{colour} {product.name}".strip()
    text = json.dumps(
        {
            "product": data.draw(st.sampled_from([named, f"a {named}", named.capitalize()])),
            "ground": data.draw(st.sampled_from([ground.phrase, ground.name])),
            "lighting": f"{light.phrase}, {side.phrase}" if side else light.phrase,
            "framing": view.phrase,
            "lens": "",
        }
    )
    made = read_answer(text, named, SHIPPED, PROMPT, lambda _: True)
    wanted = Slots(
        product.name,
        colour or product.colour or None,
        None,
        ground.name,
        light.name,
        side.name if side else SHIPPED.default.side or None,
        view.name,
    )
    assert made.slots is not None
    assert replace(made.slots, material=None) == wanted
    assert made.text == caption_text(made.slots, SHIPPED)
    assert made.ignored == ()


def test_a_complaint_is_no_error_that_could_reach_a_user() -> None:
    assert not issubclass(Complaint, PackshotError)
