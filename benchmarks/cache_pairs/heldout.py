"""The held-out half of the benchmark: grammars and words that the guards were not written against.

    ./packshot python benchmarks/cache_guard.py --half heldout --write OUT.jsonl

English nouns, colours, materials and adjectives come from `vocabulary.json`, which a program took
out of WordNet (`extract.py`) and nobody read before the one run on it. The grammars were written,
and committed, before the guards; the guards were written and tuned on `dev.py` alone.

A request is a *scene* (slots with words) in a *grammar*: several renderings that say the same.
Same-pairs render one scene twice, by different renderings, spellings, units, frames, now and then a
synonym or a slip of the hand. Other-pairs change one slot of the scene in between.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from .pairs import Pair, Scene, draw, mistype

SAME, OTHER, SEED = 5_500, 6_500, 20261125
HERE = Path(__file__).parent
WORDS = json.loads((HERE / "vocabulary.json").read_text(encoding="utf-8"))

# ---------------------------------------------------------------- what is said in several ways
FRAMES = (
    "",
    "",
    "Could you write a caption for {x}?",
    "Caption for {x}",
    "please make a product caption: {x}",
    "I'd like you to write a caption for {x}, thanks",
    "Hi! We need a caption for {x}.",
    "Write the caption of this picture: {x}",
    "Kindly provide an image caption for {x}",
)
LIGHTS = (
    ("soft window light", "soft window lighting"),
    ("harsh midday sun", "harsh midday sunlight"),
    ("backlit", "back-lit", "back lit"),
    ("candle light", "candlelight"),
    ("neon glow",),
    ("overcast sky", "an overcast sky"),
    ("golden hour", "at golden hour"),
)
LIGHT_RIVALS = ("ring flash", "moonlight", "cold strip lighting", "stage spotlight")
SPELLINGS = (
    ("colourful pattern", "colorful pattern"),
    ("grey backdrop", "gray backdrop", "grey background"),
    ("cosy mood", "cozy mood"),
    ("centred composition", "centered composition"),
    ("moulded edges", "molded edges"),
    ("catalogue style", "catalog style"),
    ("close-up", "closeup", "close up"),
    ("top view", "view from above", "seen from above"),
    ("high-resolution", "high resolution"),
    ("hand-made look", "handmade look"),
    ("shallow depth of field", "a shallow depth of field"),
)
SPELLING_RIVALS = ("worm's eye view", "symmetrical composition", "vintage style", "film grain")
NUMBERS = {
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    8: "eight",
    10: "ten",
    12: "twelve",
}
UNITS = (
    ("{n} cm", "{n}cm", "{n} centimetres", "{n} centimeters"),
    ("{n} ml", "{n}ml", "{n} millilitres"),
    ("{n} kg", "{n}kg", "{n} kilograms", "{n} kilos"),
    ("{n} W", "{n}W", "{n} watts", "{n} watt"),
    ('{n}"', "{n} inch", "{n} inches", "{n} in."),
    ("{n} oz", "{n} ounces"),
    ("{n} x {m} mm", "{n}x{m}mm", "{n} × {m} mm", "{n} by {m} mm"),
    ("{n} x {m} x 20 cm", "{n}×{m}×20 cm", "{n} cm x {m} cm x 20 cm"),
)
CITIES = (
    "Lisbon Nairobi Osaka Montreal Helsinki Jakarta Lima Tallinn Adelaide Marrakesh Seville Hanoi "
    "Bergen Denver Porto Dakar Bogota Krakow Antwerp Santiago Cardiff Tbilisi Bremen Toulouse"
).split()
LANGUAGES = "Portuguese Polish Turkish Korean Finnish Greek Czech Hindi Swedish Thai".split()
TONES = "witty solemn nostalgic cheeky matter-of-fact poetic festive austere".split()
OCCASIONS = "Easter Halloween Diwali Hanukkah graduation retirement Thanksgiving Carnival".split()
QUOTES = ("Save 20%", "Last Chance", "Grand Opening", "Hello Again", "Bon Voyage", "Members Only")
ATTACHMENTS = (
    ("lid", "lids"), ("zip", "zips"), ("handle", "handles"), ("logo", "logos"),
    ("tassel", "tassels"), ("hinge", "hinges"), ("label", "labels"), ("fringe", "fringes"),
)  # fmt: skip
WITHOUT = ("without {d} {t}", "with no {t}", "no {t}")
SIDES = {
    "next to": ("next to", "beside"),
    "on top of": ("on top of", "on", "atop"),
    "under": ("under", "underneath", "beneath"),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "inside": ("inside",),
}

# ---------------------------------------------------------------- grammars: renderings that agree
GRAMMARS: dict[str, tuple[str, ...]] = {
    "studio": (
        "{adjective} {colour} {product} made of {material}, {where} a {place}, {light}, {look}",
        "{adjective} {colour} {material} {product} {where} a {place}, {look}, {light}",
        "{look}, {light}: a {adjective} {colour} {material} {product} {where} a {place}",
        "{where} a {place}, a {adjective} {colour} {product} of {material}; {light}; {look}",
    ),
    "catalogue": (
        "{brand} {product}, {colour}, {size}, SKU {sku}, set of {count}",
        "{product} by {brand} in {colour}, {size}, set of {count}, SKU {sku}",
        "set of {count}: {colour} {product} from {brand}, {size} (SKU {sku})",
        "a set of {count} {brand} {product}, {size}, in {colour}. SKU: {sku}",
    ),
    "card": (
        "Item: {product}; Colour: {colour}; Material: {material}; Size: {size}; Scene: {place}",
        "item: {product}, color: {colour}, material: {material}, size: {size}, scene: {place}",
        "Material: {material}; Colour: {colour}; Item: {product}; Scene: {place}; Size: {size}",
    ),
    "letter": (
        "our new {adjective} {product} in {colour} {material}, shown {where} a {prop} in {city}",
        "our new {adjective} {product} in {colour} {material}, {where} a {prop}, in {city}",
        "in {city}, our new {adjective} {product} in {colour} {material} {where} a {prop}",
    ),
    "bare": (
        "{colour} {product} {without}, {light}",
        "a {colour} {product} {without}, {light}",
        "{light}, {colour} {product} {without}",
        "the {colour} {product}, {without}, in {light}",
    ),
    "parts": (
        "{product} with a {colour} {part} and a {colour2} {part2}, {look}",
        "{look}: a {product} with a {colour} {part} and {colour2} {part2}",
        "{product} with {colour2} {part2} and {colour} {part}, {look}",
        "a {product} that has a {colour} {part} and a {colour2} {part2}. {look}",
    ),
    "scene": (
        "a {product} {where} a {place}, {colour} walls, {light}",
        "{colour} walls, a {product} {where} a {place}, {light}",
        "{light}, a {product} {where} a {place}, with {colour} walls",
    ),
    "task": (
        (
            "{product}, {colour}. Answer in {language}, {tone} tone, "
            "{count} sentences, for {occasion}."
        ),
        "for {occasion}: {colour} {product}. Reply in {language}. {count} sentences. {tone} tone.",
        "{colour} {product} for {occasion}; {count} sentences in {language}, in a {tone} tone",
    ),
    "sign": (
        'poster that says "{quote}" above a {colour} {product}, {look}',
        'a poster saying "{quote}" above a {colour} {product}, {look}',
        '{look}: poster that says "{quote}", above a {colour} {product}',
    ),
    "offer": (
        "{brand} {adjective} {product} at {price}, {discount}, {material}",
        "{adjective} {product} of {material} by {brand}, {discount}, at {price}",
        "{price} for the {adjective} {material} {product} from {brand} ({discount})",
    ),
}
FOREIGN: dict[str, dict[str, tuple[str, ...]]] = {
    "de": {
        "renderings": (
            "Bitte schreibe eine Bildunterschrift: {colour} {product} {place}",
            "Schreib mir eine Bildunterschrift für {colour} {product} {place}",
            "{colour} {product} {place}",
            "{place}: {colour} {product}",
        ),
        "product": ("Gießkanne", "Teekanne", "Laterne", "Trinkflasche", "Wanduhr", "Decke"),
        "colour": ("rote", "hellblaue", "dunkelgrüne", "gelbe", "violette", "schwarze"),
        "place": ("auf einem Balkon", "in der Küche", "am Strand", "vor einer Ziegelwand"),
    },
    "fr": {
        "renderings": (
            "S'il vous plaît, écrivez une légende pour {product} {colour} {place}",
            "Écris une légende : {product} {colour} {place}",
            "{product} {colour} {place}",
            "{place}, {product} {colour}",
        ),
        "product": ("théière", "lanterne", "gourde", "couverture", "horloge", "valise"),
        "colour": ("rouge", "bleu clair", "vert foncé", "jaune", "violette", "noire"),
        "place": ("sur un balcon", "dans la cuisine", "à la plage", "devant un mur de briques"),
    },
    "es": {
        "renderings": (
            "Por favor, escribe una leyenda para {product} {colour} {place}",
            "Escribe una leyenda: {product} {colour} {place}",
            "{product} {colour} {place}",
            "{place}, {product} {colour}",
        ),
        "product": ("tetera", "linterna", "botella", "manta", "maceta", "maleta"),
        "colour": ("roja", "azul claro", "verde oscuro", "amarilla", "morada", "negra"),
        "place": ("en un balcón", "en la cocina", "en la playa", "delante de una pared"),
    },
}

# ---------------------------------------------------------------- scenes


def brand(rng: random.Random) -> str:
    ends = ("or", "ana", "ix", "elle", "une", "ost")
    return (
        rng.choice("BDFGKLMNRSTVZ") + rng.choice("aeiou") + rng.choice("lmnrvd") + rng.choice(ends)
    )


def sku(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHKLMNPRSTUVXYZ", k=rng.choice((2, 3))))
    digits = "".join(rng.choices("0123456789", k=rng.choice((3, 4, 5))))
    return rng.choice(
        (f"{letters}-{digits}", f"{letters}{digits}", f"{letters}-{digits}-{letters[0]}")
    )


def a_scene(rng: random.Random) -> Scene:
    """Draw one of everything. Names that begin with an underscore choose among ways to say it."""
    product, colour, colour2 = (rng.choice(WORDS[name]) for name in ("product", "colour", "colour"))
    part, part2 = rng.sample(ATTACHMENTS, 2)
    return {
        "product": product["word"],
        "colour": colour["word"],
        "colour2": rng.choice([*colour["rivals"], colour2["word"]]),
        "material": rng.choice(WORDS["material"])["word"],
        "place": rng.choice(WORDS["place"])["word"],
        "prop": rng.choice(WORDS["prop"])["word"],
        "adjective": rng.choice(rng.choice(WORDS["antonyms"])),
        "part": part[0],
        "part2": part2[0],
        "where": rng.choice(list(SIDES)),
        "without": "without " + rng.choice(ATTACHMENTS)[0],
        "city": rng.choice(CITIES),
        "brand": brand(rng),
        "sku": sku(rng),
        "count": str(rng.choice(list(NUMBERS))),
        "size": f"{rng.randrange(len(UNITS))}/{rng.randrange(11, 99)}/{rng.randrange(11, 99)}",
        "light": str(rng.randrange(len(LIGHTS))),
        "look": str(rng.randrange(len(SPELLINGS))),
        "language": rng.choice(LANGUAGES),
        "tone": rng.choice(TONES),
        "occasion": rng.choice(OCCASIONS),
        "quote": rng.choice(QUOTES),
        "price": str(rng.randrange(15, 400)),
        "discount": str(rng.choice((5, 10, 15, 25, 30, 40))),
    }


def one_of(options: tuple[str, ...] | list[str], rng: random.Random, *, plain: bool) -> str:
    return options[0] if plain else rng.choice(options)


def words_of(scene: Scene, rng: random.Random, *, plain: bool) -> Scene:
    """Say each slot in one of the ways that mean the same; ``plain`` takes the first."""
    said = dict(scene)
    kind, n, m = scene["size"].split("/")
    said["size"] = one_of(UNITS[int(kind)], rng, plain=plain).format(n=n, m=m)
    for name, table in (("light", LIGHTS), ("look", SPELLINGS)):
        if scene[name].isdigit():
            said[name] = one_of(table[int(scene[name])], rng, plain=plain)
    said["count"] = one_of((scene["count"], NUMBERS[int(scene["count"])]), rng, plain=plain)
    said["where"] = one_of(SIDES[scene["where"]], rng, plain=plain)
    said["price"] = one_of(("€{p}", "{p} EUR", "EUR {p}", "{p} euros"), rng, plain=plain).format(
        p=scene["price"]
    )
    said["discount"] = one_of(
        ("{d}% off", "{d} % off", "{d} percent off"), rng, plain=plain
    ).format(d=scene["discount"])
    if scene["without"].startswith("without "):
        thing = scene["without"].removeprefix("without ")
        said["without"] = one_of(WITHOUT, rng, plain=plain).format(d="a", t=thing)
    return said


def text_of(
    scene: Scene, grammar: str, rng: random.Random, *, rendering: int | None, plain: bool
) -> str:
    renderings = GRAMMARS[grammar]
    pattern = renderings[rng.randrange(len(renderings)) if rendering is None else rendering]
    text = pattern.format(**words_of(scene, rng, plain=plain))
    frame = rng.choice(FRAMES)
    if frame:
        text = frame.format(x=text)
    return text if rng.random() < 0.6 else text[0].upper() + text[1:]


# ---------------------------------------------------------------- one-slot changes


def rival(name: str) -> Callable[[Scene, random.Random], Scene]:
    def change(scene: Scene, rng: random.Random) -> Scene:
        by_word = {row["word"]: row for row in WORDS[name.rstrip("2")]}
        return {**scene, name: rng.choice(by_word[scene[name]]["rivals"])}

    return change


def another(
    name: str, options: tuple[str, ...] | list[str]
) -> Callable[[Scene, random.Random], Scene]:
    def change(scene: Scene, rng: random.Random) -> Scene:
        return {**scene, name: rng.choice([option for option in options if option != scene[name]])}

    return change


def opposite(scene: Scene, rng: random.Random) -> Scene:
    pairs = [pair for pair in WORDS["antonyms"] if scene["adjective"] in pair]
    pair = rng.choice(pairs)
    return {**scene, "adjective": pair[1 - pair.index(scene["adjective"])]}


def other_sku(scene: Scene, rng: random.Random) -> Scene:
    code = scene["sku"]
    at = rng.choice([i for i, letter in enumerate(code) if letter.isdigit()])
    digit = rng.choice([d for d in "0123456789" if d != code[at]])
    return {**scene, "sku": code[:at] + digit + code[at + 1 :]}


def other_size(scene: Scene, rng: random.Random) -> Scene:
    kind, n, m = scene["size"].split("/")
    return {**scene, "size": f"{kind}/{int(n) + rng.choice((-1, 1, 5, 10))}/{m}"}


def other_unit(scene: Scene, rng: random.Random) -> Scene:
    kind, n, m = scene["size"].split("/")
    others = [k for k in range(len(UNITS)) if k != int(kind)]
    return {**scene, "size": f"{rng.choice(others)}/{n}/{m}"}


def other_brand(scene: Scene, rng: random.Random) -> Scene:
    name = scene["brand"]
    near = name[0] + rng.choice([v for v in "aeiou" if v != name[1]]) + name[2:]
    far = brand(rng)
    return {**scene, "brand": near if rng.random() < 0.5 or far == name else far}


def negation(scene: Scene, rng: random.Random) -> Scene:
    thing = scene["without"].removeprefix("without ")
    kept = f"with a {thing}"
    other = rng.choice([t for t, _ in ATTACHMENTS if t != thing])
    return {**scene, "without": kept if rng.random() < 0.7 else f"without {other}"}


def swap(scene: Scene, rng: random.Random) -> Scene:
    del rng
    return {**scene, "colour": scene["colour2"], "colour2": scene["colour"]}


def other_price(scene: Scene, rng: random.Random) -> Scene:
    return {**scene, "price": str(int(scene["price"]) + rng.choice((-1, 1, 10)))}


def extra(scene: Scene, rng: random.Random) -> Scene:
    more = rng.choice(WORDS["prop"])["word"]
    return {**scene, "product": f"{scene['product']} and {more}"}


def other_light(scene: Scene, rng: random.Random) -> Scene:
    others = [str(i) for i in range(len(LIGHTS)) if str(i) != scene["light"]]
    return {**scene, "light": rng.choice([*others, *LIGHT_RIVALS])}


def other_look(scene: Scene, rng: random.Random) -> Scene:
    others = [str(i) for i in range(len(SPELLINGS)) if str(i) != scene["look"]]
    return {**scene, "look": rng.choice([*others, *SPELLING_RIVALS])}


CHANGES: dict[str, tuple[float, tuple[str, ...], Callable[[Scene, random.Random], Scene]]] = {
    # kind: weight, the grammars that show it, how
    "product": (14, tuple(GRAMMARS), rival("product")),
    "colour": (12, tuple(set(GRAMMARS) - {"offer"}), rival("colour")),
    "material": (8, ("studio", "card", "letter", "offer"), rival("material")),
    "place": (7, ("studio", "card", "scene"), rival("place")),
    "prop": (4, ("letter",), rival("prop")),
    "adjective": (7, ("studio", "letter", "offer"), opposite),
    "count": (7, ("catalogue", "task"), another("count", [str(n) for n in NUMBERS])),
    "size": (7, ("catalogue", "card"), other_size),
    "unit": (4, ("catalogue", "card"), other_unit),
    "sku": (8, ("catalogue",), other_sku),
    "brand": (6, ("catalogue", "offer"), other_brand),
    "city": (4, ("letter",), another("city", CITIES)),
    "negation": (8, ("bare",), negation),
    "swap": (6, ("parts",), swap),
    "side": (5, ("studio", "letter", "scene"), another("where", list(SIDES))),
    "extra": (5, tuple(GRAMMARS), extra),
    "light": (3, ("studio", "bare", "scene"), other_light),
    "look": (3, ("studio", "parts", "sign"), other_look),
    "language": (4, ("task",), another("language", LANGUAGES)),
    "tone": (3, ("task",), another("tone", TONES)),
    "occasion": (3, ("task",), another("occasion", OCCASIONS)),
    "quote": (3, ("sign",), another("quote", QUOTES)),
    "price": (4, ("offer",), other_price),
    "discount": (2, ("offer",), another("discount", ["5", "10", "15", "25", "30", "40"])),
}  # fmt: skip
SAME_KINDS = {
    "frame": 0.16,
    "rendering": 0.26,
    "spelling": 0.18,
    "rendering, spelling": 0.15,
    "typo": 0.10,
    "synonym": 0.10,
    "case": 0.05,
}
FOREIGN_SHARE = 0.08

# ---------------------------------------------------------------- pairs


def same_pair(rng: random.Random) -> Pair:
    """Return one scene, said twice. A draw whose texts come out equal is drawn again."""
    kind, grammar = draw(rng, SAME_KINDS), rng.choice(list(GRAMMARS))
    scene = a_scene(rng)
    if kind == "synonym":
        scene = {
            **scene,
            "product": rng.choice([r for r in WORDS["product"] if r["synonyms"]])["word"],
        }
    first = rng.randrange(len(GRAMMARS[grammar]))
    plain = "spelling" not in kind
    a = text_of(scene, grammar, rng, rendering=first, plain=True)
    other = None if "rendering" in kind else first
    again = scene
    if kind == "synonym":
        row = next(r for r in WORDS["product"] if r["word"] == scene["product"])
        again = {**scene, "product": rng.choice(row["synonyms"])}
    b = text_of(again, grammar, rng, rendering=other, plain=plain)
    if kind == "typo":
        b = mistype(rng, b, (scene["quote"], scene["brand"], scene["city"]))
    if kind == "case":
        b = b.lower() if grammar != "sign" else b.rstrip(".") + "."
    return same_pair(rng) if a == b else Pair(a, b, same=True, kind=kind)


def other_pair(rng: random.Random) -> Pair:
    """Return two scenes that differ in one slot, said in the same or in another way."""
    kind = draw(rng, {name: row[0] for name, row in CHANGES.items()})
    _, grammars, change = CHANGES[kind]
    grammar, scene = rng.choice(sorted(grammars)), a_scene(rng)
    changed = change(scene, rng)
    if changed == scene or scene["colour"] == scene["colour2"] or scene["part"] == scene["part2"]:
        return other_pair(rng)
    first = rng.randrange(len(GRAMMARS[grammar]))
    a = text_of(scene, grammar, rng, rendering=first, plain=True)
    other = first if rng.random() < 0.5 else None
    b = text_of(changed, grammar, rng, rendering=other, plain=rng.random() < 0.6)
    if rng.random() < 0.05:
        b = mistype(rng, b, (*changed.values(), *scene.values()))
    return other_pair(rng) if a == b else Pair(a, b, same=False, kind=kind)


def foreign_pair(rng: random.Random, *, same: bool) -> Pair:
    language = rng.choice(list(FOREIGN))
    table = FOREIGN[language]
    slots = ("product", "colour", "place")
    at = {name: rng.randrange(len(table[name])) for name in slots}

    def say(where: dict[str, int], tongue: str) -> str:
        words = FOREIGN[tongue]
        chosen = {n: words[n][where[n] % len(words[n])] for n in slots}
        return rng.choice(words["renderings"]).format(**chosen)

    a = say(at, language)
    if same:
        b, kind = say(at, language), "foreign"
    elif rng.random() < 0.25:
        b, kind = say(at, rng.choice([t for t in FOREIGN if t != language])), "foreign language"
    else:
        name = rng.choice(slots)
        step = rng.randrange(1, len(table[name]))
        b = say({**at, name: (at[name] + step) % len(table[name])}, language)
        kind = f"foreign {name}"
    if a == b:
        return foreign_pair(rng, same=same)
    return Pair(a, b, same=same, kind=kind, language=language)


def generate(seed: int = SEED) -> list[Pair]:
    """Return the held-out pairs, the same for the same seed."""
    rng = random.Random(seed)
    pairs = [
        foreign_pair(rng, same=same)
        if rng.random() < FOREIGN_SHARE
        else (same_pair if same else other_pair)(rng)
        for same, count in ((True, SAME), (False, OTHER))
        for _ in range(count)
    ]
    rng.shuffle(pairs)
    return pairs
