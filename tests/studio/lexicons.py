"""A small lexicon with the traps of the real one in it, for the tests of the studio and the CLI."""

from __future__ import annotations

from packshot.studio.lexicon import Colour, Defaults, Lexicon, Product, Term

PRODUCTS = (
    Product("sneakers", True, "shoes", ("trainers", "running shoes"), ("canvas",)),
    Product("leather shoes", True, "shoes", ("loafers",), ("leather",)),
    Product("ankle boots", True, "shoes", ("boots",), ("suede",)),
    Product("wristwatch", False, "accessories", ("watch",), ("leather", "steel")),
    Product("sunglasses", True, "accessories", (), ("plastic",)),
    Product("handbag", False, "bags", ("purse", "bag"), ("leather",)),
    Product("laptop", False, "electronics", (), ("aluminium",)),
    Product("wine bottle", False, "drinks", ("bottle of red wine", "red wine"), ("glass",), ()),
    Product("cup of coffee", False, "drinks", ("coffee cup",), ("ceramic",)),
    Product("table lamp", False, "furniture", ("lamp",), ("fabric",)),
    Product("armchair", False, "furniture", (), ("leather",)),
    Product("soccer ball", False, "sport", ("football",), ("leather",), ()),
    Product("vase", False, "home", (), ("ceramic",), ("white", "blue")),
)
COLOURS = (
    Colour("white", (237, 235, 230), ("ivory",)),
    Colour("red", (180, 20, 30), ("crimson",)),
    Colour("blue", (30, 60, 160), ("navy",)),
    Colour("tan", (200, 160, 110)),
    Colour("black", (20, 20, 20)),
)
GROUNDS = (
    Term("sandy beach", "on a sandy beach", ("beach", "seaside")),
    Term("wooden table", "on a wooden table", ("wood",)),
    Term("white marble", "on white marble", ("marble",)),
    Term("pink studio", "on a pink studio background", ("pink background",)),
    Term("white studio", "on a white studio background", ("white background",)),
    Term("city square", "on a city square", ("street", "sunset square")),
)
LIGHTS = (
    Term("soft light", "soft light"),
    Term("bright daylight", "bright daylight", ("sunny", "daylight")),
    Term("warm evening light", "warm evening light", ("sunset", "sunset square")),
)
SIDES = (
    Term("left", "light from the left", ("left light",)),
    Term("right", "light from the right"),
)
VIEWS = (
    Term("eye level", "eye-level view"),
    Term("above", "seen from above", ("top view",)),
)
SUFFIX = "product photo, 85 mm lens, shallow depth of field"
DEFAULT = Defaults(ground="white studio", light="soft light", view="eye level")

SMALL = Lexicon(1, PRODUCTS, COLOURS, GROUNDS, LIGHTS, SIDES, VIEWS, DEFAULT, SUFFIX)
