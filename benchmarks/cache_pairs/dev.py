"""The development half of the benchmark: what the guards were written and tuned on.

    ./packshot python benchmarks/cache_guard.py --half dev --write OUT.jsonl

Shoes, homeware and gifts, in requests as a shop's services and its people send them. It shares
neither grammars nor words with `heldout.py`. A third of the nouns are made up, since a guard that
only knows what is on its lists would look better here than it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .pairs import Pair, Scene, draw, mistype

SAME, OTHER, SEED = 5_000, 6_000, 7
WAYS: dict[str, tuple[tuple[str, ...], ...]] = {
    # slot: its values, each in the ways to say it
    "product": (
        ("sneaker", "trainer"),
        ("mug",),
        ("sofa", "couch", "settee"),
        ("t-shirt", "tee shirt", "T-shirt"),
        ("backpack", "rucksack"),
        ("wristwatch", "watch", "wrist watch"),
        ("water bottle",),
        ("vase",),
        ("candle",),
        ("armchair", "arm chair"),
        ("cutting board", "chopping board"),
        ("sweater", "pullover"),
        ("table lamp",),
        ("snorbel",),
        ("trimmet",),
        ("quellow",),
        ("dobbin rack",),
        ("falarn stand",),
    ),
    "colour": (
        ("white",),
        ("grey", "gray"),
        ("navy", "navy blue", "navy-blue"),
        ("red",),
        ("gold", "golden"),
        ("off-white", "off white"),
        ("light blue",),
        ("olive", "olive green"),
        ("vermeil",),
        ("zaffre",),
    ),
    "colour2": (("black",), ("pink",), ("teal",), ("burgundy",), ("brown",), ("gamboge",)),
    "material": (
        ("leather",),
        ("wood", "wooden"),
        ("oak", "oak wood"),
        ("stainless steel",),
        ("wool", "woollen", "woolen"),
        ("aluminium", "aluminum"),
        ("mylex",),
    ),
    "place": (
        ("sandy beach",),
        ("marble countertop",),
        ("wooden table",),
        ("city street",),
        ("mossy rock",),
        ("rooftop", "roof top"),
        ("brambury pier",),
    ),
    "side": (
        ("on", "placed on", "sitting on"),
        ("in front of",),
        ("beside", "next to"),
        ("under", "beneath"),
        ("against", "leaning against"),
    ),
    "light": (
        ("bright daylight", "bright day light"),
        ("soft light", "soft lighting"),
        ("studio light", "studio lighting"),
        ("dramatic shadows",),
        ("warm sunset glow", "a warm sunset glow"),
    ),
    "view": (
        ("close-up", "closeup", "close up"),
        ("top view", "bird's-eye view", "from above"),
        ("side view", "view from the side"),
        ("photorealistic", "photo-realistic", "photo realistic"),
        ("minimalist style",),
    ),
    "size": (
        ("size 42", "EU 42", "size EU 42", "EU size 42"),
        ("size 43", "EU 43"),
        ("size M", "size medium"),
        ("0.5 L", "500 ml", "500ml", "0.5 litres"),
        ("2 L", "2 litres", "2l", "2 liters"),
        ("1.5 m", "150 cm", "1.5 metres"),
        ("30 x 45 cm", "30×45 cm", "30 by 45 cm", "30cm x 45cm"),
        ('15"', "15 inches", "15 inch"),
        ("250 g", "250 grams", "0.25 kg"),
    ),
    "count": (("2", "two"), ("3", "three"), ("6", "six"), ("12", "twelve"), ("7", "seven")),
    "price": (("$49", "49 USD", "49 dollars"), ("€20", "20 EUR", "20 euros"), ("£15", "15 GBP")),
    "extra": (("laces",), ("straps",), ("shadow",), ("price tag",), ("people",), ("wendles",)),
    "language": (("German",), ("French",), ("Japanese",), ("Dutch",), ("Basque",)),
    "tone": (("playful",), ("formal",), ("luxurious",), ("neutral",)),
    "event": (("Christmas", "Xmas"), ("Mother's Day",), ("a wedding",), ("back to school",)),
    "slogan": (('"Run Free"',), ('"Just Tea"',), ('"SALE"',), ('"Sale"',)),
}
BRANDS = ("Velmont", "Harrow", "Kestrel", "Ostia", "Nuvo", "Brightwell", "Velmond", "Ostea")
FRAMES = (
    "",
    "",
    "Write a caption for {x}",
    "Please write me an image caption: {x}",
    "I need a caption for this photo: {x}",
    "Can you create a caption describing {x}?",
    "Hello, could you please give me a caption for {x}. Thank you!",
    "{x}, please",
)
GRAMMARS: dict[str, tuple[str, ...]] = {
    "brief": (
        "{colour} {material} {product} {side} a {place}, {light}, {view}",
        "{side} a {place}: {colour} {product} made of {material}, {light}, {view}",
        "{view}, {colour} {product} in {material} {side} a {place}, {light}",
        "a {product} in {colour} {material}, {light}, {view}, {side} a {place}",
    ),
    "listing": (
        "{brand} {product} {colour}, {size}, article {sku}",
        "{colour} {brand} {product}, {size} (article {sku})",
        "{product} from {brand}, {colour}, article {sku}, {size}",
    ),
    "form": (
        "product={product}; color={colour}; material={material}; pieces={count}",
        "product = {product}; colour = {colour}; material = {material}; pieces = {count}",
        "colour={colour}; product={product}; pieces={count}; material={material}",
    ),
    "two": (
        "a {colour} {product} with a {colour2} strap {side} a {place}",
        "{colour} {product} with {colour2} strap, {side} a {place}",
        "{side} a {place}, a {colour} {product} that has a {colour2} strap",
    ),
    "none": (
        "{colour} {product} without {extra}, {view}, {light}",
        "{view}: a {colour} {product} with no {extra}, {light}",
        "{light}, {view}, {colour} {product}, no {extra}",
    ),
    "order": (
        "{count} {colour} candles for {event}, {price}, {tone} tone, in {language}",
        "in {language}, {tone} tone: {count} {colour} candles for {event}, {price}",
        "{tone} tone, in {language}. {count} {colour} candles for {event} at {price}",
    ),
    "print": (
        "{product} printed with {slogan} in {colour}, {view}",
        "{view}, a {product} printed with {slogan} in {colour}",
    ),
}


def a_scene(rng: random.Random) -> Scene:
    scene = {name: str(rng.randrange(len(values))) for name, values in WAYS.items()}
    letters, digits = rng.choice(("KX", "TR", "M", "ZZ")), rng.randrange(100, 9999)
    return {**scene, "brand": rng.choice(BRANDS), "sku": f"{letters}-{digits}"}


def say(scene: Scene, pattern: str, rng: random.Random, *, plain: bool) -> str:
    words = dict(scene)
    for name, values in WAYS.items():
        ways = values[int(scene[name])]
        words[name] = ways[0] if plain else rng.choice(ways)
    text = (rng.choice(FRAMES) or "{x}").format(x=pattern.format(**words))
    return text[0].upper() + text[1:] if rng.random() < 0.4 else text


def another(name: str) -> Callable[[Scene, random.Random], Scene]:
    def change(scene: Scene, rng: random.Random) -> Scene:
        if name == "brand":
            return {**scene, name: rng.choice([b for b in BRANDS if b != scene[name]])}
        others = [str(at) for at in range(len(WAYS[name])) if str(at) != scene[name]]
        return {**scene, name: rng.choice(others)}

    return change


def other_sku(scene: Scene, rng: random.Random) -> Scene:
    head, _, digits = scene["sku"].partition("-")
    return {**scene, "sku": f"{head}-{int(digits) + rng.choice((1, 10, 100))}"}


SAME_KINDS = {"frame": 0.2, "rendering": 0.3, "spelling": 0.2, "both": 0.2, "typo": 0.1}


def same_pair(rng: random.Random) -> Pair:
    kind, name, scene = draw(rng, SAME_KINDS), rng.choice(list(GRAMMARS)), a_scene(rng)
    first = second = rng.choice(GRAMMARS[name])
    if kind in {"rendering", "both"}:
        second = rng.choice(GRAMMARS[name])
    a = say(scene, first, rng, plain=True)
    b = say(scene, second, rng, plain=kind not in {"spelling", "both"})
    if kind == "typo":
        b = mistype(rng, b, (scene["brand"], "printed"))
    return same_pair(rng) if a == b else Pair(a, b, same=True, kind=kind)


def other_pair(rng: random.Random) -> Pair:
    name, scene = rng.choice(list(GRAMMARS)), a_scene(rng)
    shown = [slot for slot in (*WAYS, "brand", "sku") if f"{{{slot}}}" in GRAMMARS[name][0]]
    kind = rng.choice([*shown, *(("swap",) if name == "two" else ("with",) * (name == "none"))])
    first, second = rng.choice(GRAMMARS[name]), rng.choice(GRAMMARS[name])
    a = say(scene, first, rng, plain=True)
    if kind == "swap":
        second = second.replace("{colour}", "{x}").replace("{colour2}", "{colour}")
        second = second.replace("{x}", "{colour2}")
    elif kind == "with":
        second = second.replace("without", "with").replace("no {", "with {")
        second = second.replace("with with", "with")
    else:
        change = other_sku if kind == "sku" else another(kind)
        scene = change(scene, rng)
    return Pair(a, say(scene, second, rng, plain=rng.random() < 0.5), same=False, kind=kind)


def generate(seed: int = SEED) -> list[Pair]:
    """Return the development pairs, the same for the same seed."""
    rng = random.Random(seed)
    pairs = [same_pair(rng) for _ in range(SAME)] + [other_pair(rng) for _ in range(OTHER)]
    rng.shuffle(pairs)
    return pairs
