"""The lexicon that ships: each word is understood, and the canonical briefs leave no doubt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.studio.caption import Caption, caption_brief, caption_text
from packshot.studio.lexicon import Lexicon, load_lexicon
from packshot.studio.slots import Slots

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "packages" / "packshot-mini" / "src" / "packshot_mini" / "model" / "lexicon.json"


def shipped() -> Lexicon:
    lexicon = load_lexicon(SHIPPED)
    assert lexicon is not None
    return lexicon


LEXICON = shipped()


def slots_of(caption: Caption) -> Slots:
    assert caption.slots is not None
    assert (caption.warnings, caption.ignored) == ((), ())
    return caption.slots


@pytest.mark.parametrize(
    ("brief", "product", "colour", "ground"),
    [
        ("white sneakers on a sandy beach, bright daylight", "sneakers", "white", "sandy beach"),
        (
            "red sneakers on a dark wooden table, warm evening light",
            "sneakers",
            "red",
            "dark wooden table",
        ),
        ("tan leather wristwatch on white marble, soft light", "wristwatch", "tan", "white marble"),
        ("white handbag on a pink studio background", "handbag", "white", "pink studio"),
        ("black headphones on concrete, industrial loft", "headphones", "black", "concrete"),
        ("blue suitcase on a city square at sunset", "suitcase", "blue", "city square"),
        ("bottle of red wine on a wooden table", "wine bottle", None, "wooden table"),
        ("green armchair in a bright apartment", "armchair", "green", "bright apartment"),
        (
            "cup of coffee on a wooden table, morning light",
            "cup of coffee",
            "white",
            "wooden table",
        ),
        ("teddy bear on grass in a park", "teddy bear", "brown", "grass"),
        (
            "black leather shoes on dark slate, dramatic side light",
            "leather shoes",
            "black",
            "dark slate",
        ),
        ("yellow desk lamp on a teal studio background", "desk lamp", "yellow", "teal studio"),
    ],
)
def test_the_canonical_briefs(brief: str, product: str, colour: str | None, ground: str) -> None:
    slots = slots_of(caption_brief(brief, LEXICON))
    assert (slots.product, slots.colour, slots.ground) == (product, colour, ground)


def test_every_product_is_understood_by_each_of_its_names() -> None:
    for product in LEXICON.products:
        for name in (product.name, *product.synonyms):
            assert slots_of(caption_brief(f"a {name}", LEXICON)).product == product.name, name


def test_every_colour_and_term_is_understood_by_each_of_its_names() -> None:
    for colour in LEXICON.colours:
        for name in (colour.name, *colour.synonyms):
            assert slots_of(caption_brief(f"{name} mug", LEXICON)).colour == colour.name, name
    for what in ("ground", "light", "side", "view"):
        for term in getattr(LEXICON, f"{what}s"):
            for name in (term.name, term.phrase, *term.synonyms):
                led = what == "ground" and name.split()[0] not in {"on", "in", "by"}
                brief = f"mug {'on' if led else ','} {name}"
                assert getattr(slots_of(caption_brief(brief, LEXICON)), what) == term.name, brief


@given(st.data())
def test_every_caption_that_training_can_write_reads_back(data) -> None:
    def any_of(terms):
        return data.draw(st.sampled_from([term.name for term in terms]))

    product = data.draw(st.sampled_from(LEXICON.products))
    colours = [
        c.name for c in LEXICON.colours if product.colours is None or c.name in product.colours
    ] or [None]
    material = data.draw(st.sampled_from([None, *product.materials]))
    slots = Slots(
        product=product.name,
        colour=data.draw(st.sampled_from(colours)),
        material=None if material in product.name.split() else material,
        ground=any_of(LEXICON.grounds),
        light=any_of(LEXICON.lights),
        side=any_of(LEXICON.sides),
        view=any_of(LEXICON.views),
    )
    assert slots_of(caption_brief(caption_text(slots, LEXICON), LEXICON)) == slots
