"""The third draw: families, grammars, phrasing and languages that no guard and no draw has used.

    ./packshot python benchmarks/cache_guard.py --half third --write OUT.jsonl

Gadgets, food, cosmetics, toys, travel, car parts; lists, records, hashtags and chat instead of
captions in sentences; who does what to whom, quantifiers, comparisons, before and after, Roman
numerals, fractions, dates, temperatures; eleven languages, of which the guards know none. It was
written after the guards, by a hand that had not read them, and committed before it was run. Values
of the slots that stand in an earlier draw are dropped by program (`fresh`).

Same-pairs say one scene twice: with another opening, other order, other spelling, typography, a
slip, or as Britain and America have it. Other-pairs change one slot, swap two, or mend a code.
"""

from __future__ import annotations

import random
import re
import unicodedata

from . import dev, heldout
from .pairs import Pair, Scene, draw, mistype
from .third_words import FOREIGN, FRAMES, GRAMMARS, REGIONAL, SLOTS, SWAPS, Ways

SAME, OTHER, SEED = 6_000, 8_000, 31_337
FOREIGN_SHARE = 0.15
GIVEN = ("brand", "code", "qty", "tag", "tag2")
SYMMETRIC = "as large as"


def earlier() -> frozenset[str]:
    """Return the nouns, colours, places and so on that an earlier draw has, in lower case."""
    rows = [row for name, rows in heldout.WORDS.items() if name != "antonyms" for row in rows]
    said = {word for row in rows for word in (row["word"], *row["synonyms"], *row["rivals"])}
    said |= {word for pair in heldout.WORDS["antonyms"] for word in pair}
    said |= {way for values in dev.WAYS.values() for ways in values for way in ways}
    said |= {*heldout.CITIES, *heldout.LANGUAGES, *heldout.TONES, *heldout.OCCASIONS}
    return frozenset(word.lower() for word in said)


EARLIER = earlier()


def fresh(values: Ways) -> Ways:
    """Return the values of which no way stands in an earlier draw."""
    return tuple(ways for ways in values if not any(way.lower() in EARLIER for way in ways))


VALUES = {name: fresh(values) for name, values in SLOTS.items()}
THINGS_BOTH = fresh(REGIONAL)


def a_name(rng: random.Random) -> str:
    """Return a brand that nobody has."""
    parts = ("Ql", "Pra", "Whi", "Jos", "Ech", "Umb", "Skra", "Yol", "Ax", "Cho")
    ends = ("wick", "ndra", "pple", "stad", "bury", "eema", "oque", "rith", "zzi", "mark")
    return rng.choice(parts) + rng.choice(ends)


def a_code(rng: random.Random) -> str:
    """Return a part number in one of five styles."""
    letters = "".join(rng.choices("ABCDEFGHJKLMNPRSTUWXYZ", k=4))
    number = "".join(rng.choices("0123456789", k=6))
    styles = (
        f"{number[:3]}.{number[3:]}.{letters[0]}",
        f"{letters[:2]}/{number[:4]}",
        f"{number[:5]}{letters[0]}",
        f"{letters[0]}{number[0]}{letters[1]}{number[1:3]}",
        f"{letters[:3]}_{number[:3]}-{number[3]}",
    )
    return rng.choice(styles)


def a_scene(rng: random.Random) -> Scene:
    scene = {name: str(rng.randrange(len(values))) for name, values in VALUES.items()}
    for first, second in (("thing", "thing2"), ("person", "person2"), ("animal", "animal2")):
        others = [n for n in range(len(VALUES[second])) if str(n) != scene[first]]
        scene[second] = str(rng.choice(others))
    tags = rng.sample(("weekendvibes", "madetolast", "slowliving", "newin", "giftidea", "ootd"), 2)
    given = {"brand": a_name(rng), "code": a_code(rng), "qty": str(rng.randrange(2, 90))}
    return {**scene, **given, "tag": tags[0], "tag2": tags[1]}


def say(
    scene: Scene, pattern: str, rng: random.Random, *, plain: bool, frame: str | None = None
) -> str:
    """Return the scene in words; ``plain`` writes each value in its first way."""
    words = {name: scene[name] for name in GIVEN}
    for name, values in VALUES.items():
        ways = values[int(scene[name])] if scene[name].isdigit() else (scene[name],)
        words[name] = ways[0] if plain else rng.choice(ways)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", pattern.format(**words))
    return (rng.choice(FRAMES) if frame is None else frame).format(x=text)


# ---------------------------------------------------------------- same
def typography(rng: random.Random, text: str) -> str:
    """Return the text as another keyboard, or another programme, writes it."""
    ways = (
        lambda: text + rng.choice(("!!", " ", "\n", "…", " :)")),
        lambda: re.sub(r"(?<=\w) (?=\w)", "\u00a0", text),
        lambda: text.replace(", ", " , ") if ", " in text else text + ".",
        lambda: unicodedata.normalize("NFD", text) + ".",
        lambda: re.sub(r" ", "  ", text),
        lambda: text.replace("'", "’").replace(" - ", " – ") + ".",
    )
    return rng.choice(ways)()


SAME_KINDS = {
    "opening": 0.18,
    "order": 0.22,
    "spelling": 0.16,
    "order, spelling": 0.14,
    "typography": 0.10,
    "typo": 0.10,
    "regional": 0.05,
    "case": 0.05,
}


def same_pair(rng: random.Random) -> Pair:
    kind, grammar, scene = draw(rng, SAME_KINDS), rng.choice(list(GRAMMARS)), a_scene(rng)
    if kind == "regional":
        while "{thing}" not in GRAMMARS[grammar][0]:
            grammar = rng.choice(list(GRAMMARS))
    first = second = rng.choice(GRAMMARS[grammar])
    frame = rng.choice(FRAMES)
    again = scene
    if kind == "regional":
        names = rng.sample(rng.choice(THINGS_BOTH), 2)
        scene, again = {**scene, "thing": names[0]}, {**scene, "thing": names[1]}
    if "order" in kind:
        second = rng.choice([each for each in GRAMMARS[grammar] if each != first])
    a = say(scene, first, rng, plain=True, frame=frame)
    b = say(
        again,
        second,
        rng,
        plain="spelling" not in kind,
        frame=None if kind == "opening" or rng.random() < 0.3 else frame,
    )
    match kind:
        case "typography":
            b = typography(rng, b)
        case "typo":
            b = mistype(rng, b, (scene["brand"], scene["tag"], scene["tag2"]))
        case "case":
            b = b.lower() if "code" not in first and "{port}" not in first else b[0].upper() + b[1:]
    return same_pair(rng) if a == b else Pair(a, b, same=True, kind=kind)


# ---------------------------------------------------------------- other
def other_name(rng: random.Random, name: str) -> str:
    """Return another brand; half of the time one that differs in a letter."""
    at = rng.randrange(1, len(name))
    near = name[:at] + rng.choice([c for c in "aeioulrn" if c != name[at]]) + name[at + 1 :]
    far = a_name(rng)
    return near if rng.random() < 0.5 or far == name else far


def other_code(rng: random.Random, code: str) -> str:
    """Return a code with one character changed, dropped, doubled, or two that changed places."""
    spots = [at for at, letter in enumerate(code) if letter.isalnum()]
    at = rng.choice(spots)
    pool = "0123456789" if code[at].isdigit() else "ABCDEFGHJKLMNPRSTUWXYZ"
    ways = [code[:at] + rng.choice([c for c in pool if c != code[at]]) + code[at + 1 :]]
    ways += [code[:at] + code[at + 1 :], code[:at] + code[at] * 2 + code[at + 1 :]]
    if at + 1 in spots and code[at] != code[at + 1]:
        ways.append(code[:at] + code[at + 1] + code[at] + code[at + 2 :])
    return rng.choice(ways)


def changed(rng: random.Random, scene: Scene, name: str) -> Scene:
    """Return the scene with another value in one slot."""
    match name:
        case "brand":
            return {**scene, name: other_name(rng, scene[name])}
        case "code":
            return {**scene, name: other_code(rng, scene[name])}
        case "qty":
            return {**scene, name: str(int(scene[name]) + rng.choice((1, 10, 100)))}
        case "tag" | "tag2":
            return {**scene, name: rng.choice(("sale", "vintage", "unboxing", "preloved"))}
        case _:
            others = [str(at) for at in range(len(VALUES[name])) if str(at) != scene[name]]
            return {**scene, name: rng.choice(others)}


def swapped(grammar: str, scene: Scene) -> Scene | None:
    """Return the scene with two things in each other's place; None where that says the same."""
    if grammar not in SWAPS:
        return None
    one, two = SWAPS[grammar]
    words = VALUES[one][int(scene[one])][0], VALUES[two][int(scene[two])][0]
    compare = VALUES["compare"][int(scene["compare"])][0]
    if words[0] == words[1] or (grammar == "versus" and compare == SYMMETRIC):
        return None
    return {**scene, one: words[1], two: words[0]}


def other_pair(rng: random.Random) -> Pair:
    grammar, scene = rng.choice(list(GRAMMARS)), a_scene(rng)
    shown = [name for name in (*SLOTS, *GIVEN) if f"{{{name}}}" in GRAMMARS[grammar][0]]
    kind = rng.choice([*shown, *(("swap",) * 2 if grammar in SWAPS else ())])
    again = swapped(grammar, scene) if kind == "swap" else changed(rng, scene, kind)
    if again is None:
        return other_pair(rng)
    if kind in {"thing", "person", "animal"} and again[kind] == again.get(kind + "2"):
        return other_pair(rng)
    first = rng.choice(GRAMMARS[grammar])
    second = first if rng.random() < 0.5 else rng.choice(GRAMMARS[grammar])
    frame = rng.choice(FRAMES)
    a = say(scene, first, rng, plain=True, frame=frame)
    plain = rng.random() < 0.6
    b = say(again, second, rng, plain=plain, frame=frame if rng.random() < 0.5 else None)
    if rng.random() < 0.05:
        b = mistype(rng, b, [say(each, first, rng, plain=True) for each in (scene, again)])
    return other_pair(rng) if a == b else Pair(a, b, same=False, kind=kind)


# ---------------------------------------------------------------- languages
def foreign_pair(rng: random.Random, *, same: bool) -> Pair:
    language = rng.choice(list(FOREIGN))
    table = FOREIGN[language]
    slots = ("thing", "colour", "where", "cap")
    scene = {name: rng.choice(table[name]) for name in slots}
    again, kind = scene, "foreign"
    if not same:
        name = rng.choice(slots)
        again = {**scene, name: rng.choice([v for v in table[name] if v != scene[name]])}
        kind = f"foreign {name}"
    frames = [rng.choice(table["frames"]) for _ in range(2)]
    frames[1] = frames[rng.randrange(2)]
    a, b = (
        frame.format(x=rng.choice(table["renderings"]).format(**said))
        for frame, said in zip(frames, (scene, again), strict=True)
    )
    if a == b:
        return foreign_pair(rng, same=same)
    return Pair(a, b, same=same, kind=kind, language=language)


def generate(seed: int = SEED) -> list[Pair]:
    """Return the pairs of the third draw, the same for the same seed."""
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
