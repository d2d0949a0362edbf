"""One change that must not hit: the guards mined with random words for pairs that they let through.

    ./packshot python benchmarks/cache_mine.py [--seconds 60] [--seed 1]

Each trap is a request and the same one with a part changed, moved or denied, said of random things
out of the held-out vocabulary. All are requests that one answer cannot serve, so each pair on which
the guards agree is a defect, or something that no rule without a parser tells apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

from cache_pairs import heldout

from packshot.gateway.cache.guards import compare
from packshot.gateway.cache.slots import read

WORDS = heldout.WORDS
NOUNS = [row["word"] for name in ("product", "prop") for row in WORDS[name]]
COLOURS = [row["word"] for row in WORDS["colour"]]
PLACES = [row["word"] for row in WORDS["place"]]
ADJECTIVES = [word for pair in WORDS["antonyms"] for word in pair]
VERBS = "chasing feeding following painting lifting facing holding watching".split()
PREPOSITIONS = (
    "on under above below behind beside near inside outside between around against through across "
    "along into to towards from for by with without of in at over before after during since until "
    "off up down past beyond about like unlike per via versus despite within beneath"
).split()
ALIKE = (
    {"under", "beneath"},
    {"above", "over"},
    {"inside", "within"},
    {"in", "of", "with", "at", "by", "from"},
)
"""Prepositions that are said for one another: decision 0013."""
FRAMES = ("{}", "{}", "please write a caption for {}", "Caption: {}")

TRAPS = (
    # kind, a request, one that it must not be taken for
    ("roles verb", "a {a} {v} a {b}", "a {b} {v} a {a}"),
    ("roles passive", "a {a} {v} a {b}", "a {a} being {ved} by a {b}"),
    ("scope not", "a {a}, not {c}, but {d}", "a {a}, not {d}, but {c}"),
    (
        "scope without",
        "a {a} without a {b} and with a {j} lid",
        "a {a} with a {b} and without a {j} lid",
    ),
    ("scope without2", "a {a} without {b}, with {c} lining", "a {a} with {b}, without {c} lining"),
    ("neg prefix", "a {j} {a}", "a non-{j} {a}"),
    ("neg suffix", "a {b}-free {a}", "a free {b} {a}"),
    ("neg end", "{a} with {b}", "{a} with no {b}"),
    ("adj swap", "a {c} {a} and a {d} {b}", "a {d} {a} and a {c} {b}"),
    ("adj swap on", "a {c} {a} on a {d} {b}", "a {d} {a} on a {c} {b}"),
    ("adj swap in", "a {c} {a} in a {d} {b}", "a {d} {a} in a {c} {b}"),
    ("adj swap post", "{a} in {c} with {b} in {d}", "{a} in {d} with {b} in {c}"),
    ("adj swap comma", "{a}, {c}, {b}, {d}", "{a}, {d}, {b}, {c}"),
    ("adj move", "a {j} {a} with a {b}", "a {a} with a {j} {b}"),
    ("adj move on", "a {j} {a} on a {b}", "a {a} on a {j} {b}"),
    ("adj move and", "a {j} {a} and a {b}", "a {a} and a {j} {b}"),
    ("num move", "{k} {a} and a {b}", "a {a} and {k} {b}"),
    ("num swap", "{k} {a} and {k1} {b}", "{k1} {a} and {k} {b}"),
    ("num swap label", "width {k} cm, height {k3} cm, {a}", "width {k3} cm, height {k} cm, {a}"),
    ("num swap label2", "{a}: {k} cm wide, {k3} cm high", "{a}: {k3} cm wide, {k} cm high"),
    (
        "num swap label3",
        "{a}. Width: {k} cm. Height: {k3} cm.",
        "{a}. Width: {k3} cm. Height: {k} cm.",
    ),
    (
        "num swap json",
        '{{"w": {k}, "h": {k3}, "item": "{a}"}}',
        '{{"w": {k3}, "h": {k}, "item": "{a}"}}',
    ),
    ("json swap", '{{"main": "{a}", "prop": "{b}"}}', '{{"main": "{b}", "prop": "{a}"}}'),
    ("kv swap", "main: {a}, prop: {b}", "main: {b}, prop: {a}"),
    ("kv swap nl", "main: {a}\nprop: {b}", "main: {b}\nprop: {a}"),
    ("kv eq swap", "main={a}; prop={b}", "main={b}; prop={a}"),
    ("kv col swap", "wall: {c}, floor: {d}, {a}", "wall: {d}, floor: {c}, {a}"),
    ("left right", "{a} on the left, {b} on the right", "{b} on the left, {a} on the right"),
    (
        "left right2",
        "on the left a {a}, on the right a {b}",
        "on the left a {b}, on the right a {a}",
    ),
    (
        "fore back",
        "{a} in the foreground, {b} in the background",
        "{b} in the foreground, {a} in the background",
    ),
    ("fore back2", "foreground: {a}; background: {b}", "foreground: {b}; background: {a}"),
    ("from to", "from {a} to {b}", "from {b} to {a}"),
    ("first then", "first the {a}, then the {b}", "first the {b}, then the {a}"),
    ("before after", "{a} before {b}", "{b} before {a}"),
    ("A to B arrow", "{a} -> {b}", "{b} -> {a}"),
    ("A slash", "{a} > {b}", "{b} > {a}"),
    ("than", "a {a} bigger than a {b}", "a {b} bigger than a {a}"),
    ("than2", "{a} {j}er than {b}", "{b} {j}er than {a}"),
    ("instead", "a {a} instead of a {b}", "a {b} instead of a {a}"),
    ("not X but Y", "no {a} but a {b}", "no {b} but a {a}"),
    ("X not Y", "a {a}, not a {b}", "a {b}, not a {a}"),
    ("with/without list", "with {a}, without {b}", "with {b}, without {a}"),
    ("only", "only the {a} is {c}", "the {a} is only {c}"),
    ("only2", "only a {a} on a {b}", "a {a} on only a {b}"),
    ("no at all", "all {a} are {c}", "not all {a} are {c}"),
    ("not all scope", "not all {a} are {c}", "all {a} are not {c}"),
    ("poss", "the {a}'s {b}", "the {b}'s {a}"),
    ("compound", "a {a} {b}", "a {b} {a}"),
    ("of", "a {a} of a {b}", "a {b} of a {a}"),
    ("range", "{a}, {k}-{k4} cm", "{a}, {k}-{k5} cm"),
    ("range neg", "{a} at {k} °C", "{a} at -{k} °C"),
    ("dims", "{a}, {k} x {k7} cm", "{a}, {k7} x {k} cm"),
    ("dec", "{a} {k}.5 cm", "{a} {k}5 cm"),
    ("ordinal", "the {k}th {a}", "the {k} {a}"),
    ("ordinal w", "the second {a}", "two {a}"),
    ("ordinal s", "the second {a}", "2 s {a}"),
    ("half", "half a {a}", "a {a}"),
    ("frac", "{a} 1/2", "{a} 1/4"),
    ("frac uni", "½ {a}", "1 {a}"),
    ("frac mixed", "1½ cm {a}", "1/2 cm {a}"),
    ("unit", "{k} g {a}", "{k} kg {a}"),
    ("unit m", "{k} m {a}", "{k} mm {a}"),
    ("unit M", "{k} MB {a}", "{k} GB {a}"),
    ("unit W", "{k} mW {a}", "{k} MW {a}"),
    ("unit lb", "{k} lb {a}", "{k} £ {a}"),
    ("unit pound", "{k} pounds of {a}", "{k} dollars of {a}"),
    ("unit min", "{k}' {a}", '{k}" {a}'),
    ("ampm", "{a} at {h} am", "{a} at {h} pm"),
    ("clock", "{a} at {h}:30", "{a} at {h}:45"),
    ("clock2", "{a} at 8:30", "{a} at 20:30"),
    ("date", "{a} 04/05/2026", "{a} 05/04/2026"),
    ("date w", "{a} on 4 May", "{a} on 5 May"),
    ("roman", "{a} II", "{a} III"),
    ("roman i", "{a} I", "{a}"),
    ("roman v", "{a} mark V", "{a} mark X"),
    ("letter", "plan A {a}", "plan B {a}"),
    ("letter a", "plan a {a}", "plan b {a}"),
    ("letter drop", "vitamin A {a}", "vitamin {a}"),
    ("cmp op", "{a} > {k} cm", "{a} < {k} cm"),
    ("cmp op2", "{a} ≥ {k} cm", "{a} ≤ {k} cm"),
    ("star", "{k}* {a}", "{k} {a}"),
    ("plusminus", "{a} +{k}", "{a} -{k}"),
    ("pct", "{k}% {a}", "{k} {a}"),
    ("pct off", "{k}% off {a}", "{k}% of {a}"),
    ("up to", "up to {k} {a}", "{k} {a}"),
    ("at least", "at least {k} {a}", "at most {k} {a}"),
    ("more less", "more than {k} {a}", "less than {k} {a}"),
    ("with w/o", "{a} w/ {b}", "{a} w/o {b}"),
    ("US", "a US {a}", "a {a}"),
    ("IT", "an IT {a}", "a {a}"),
    ("code case", "{a} ab-{k}c", "{a} ab-{k}d"),
    ("tone", "{a}. Be {j}.", "{a}. Be {i}."),
    ("question", "Is the {a} {c}?", "The {a} is {c}."),
    ("imper", "open the {a}", "the open {a}"),
    ("and or", "a {a} and a {b}", "a {a} or a {b}"),
    ("for by", "a {a} for a {b}", "a {a} by a {b}"),
    ("for from", "a {a} for a {b}", "a {a} from a {b}"),
    ("for of", "a {a} for a {b}", "a {a} of a {b}"),
    ("for drop", "a {a} for {b}", "a {a} {b}"),
    ("in order", "{a} in {b} in {pl}", "{b} in {a} in {pl}"),
    ("nest", "a {a} in a {b} on a {pl}", "a {b} in a {a} on a {pl}"),
    ("nest2", "a {a} on a {b} in a {pl}", "a {a} in a {b} on a {pl}"),
    ("nest3", "a {a} on a {b} next to a {pl}", "a {a} next to a {b} on a {pl}"),
    ("two neg", "no {a}, no {b}, a {pl}", "no {a}, a {b}, no {pl}"),
    ("neg list", "a {pl} without {a} and {b}", "a {pl} without {a} but {b}"),
    ("count 1", "one {a} and two {b}", "two {a} and one {b}"),
    ("count a", "a {a} and two {b}", "two {a} and a {b}"),
    ("count a2", "two {a}, one {b}", "one {a}, two {b}"),
    ("repeat", "a {a} and a {a}", "a {a}"),
    ("very", "a very {j} {a}", "a {j} {a}"),
    ("too", "a too {j} {a}", "a {j} {a}"),
    ("almost", "an almost {j} {a}", "a {j} {a}"),
    ("like", "a {a} like a {b}", "a {a}, a {b}"),
    ("lang", "{a}. In German.", "{a}. In French."),
    ("short", "a short caption for a {a}", "a caption for a {a}"),
    ("short2", "write a caption for a {a}, short", "write a caption for a {a}"),
    ("two caps", "write two captions for a {a}", "write a caption for a {a}"),
    ("alt", "write an alt text for a {a}", "write a caption for a {a}"),
    ("title", "write a title for a {a}", "write a caption for a {a}"),
    ("poem", "a poem about a {a}", "a caption about a {a}"),
    ("dont write", "don't write a caption for a {a}", "write a caption for a {a}"),
    ("emoji", "{a} \U0001f600", "{a} \U0001f622"),
    ("emoji flag", "{a} \U0001f1e9\U0001f1ea", "{a} \U0001f1eb\U0001f1f7"),
    ("hash", "C# {a}", "C {a}"),
    ("accent", "résumé {a}", "resume {a}"),
    ("zh neg", "有{k}个杯子", "没有{k}个杯子"),
    ("zh order", "猫追狗", "狗追猫"),
    ("ja num", "杯子三个", "杯子四个"),
    ("ar num", "قبعة ٣", "قبعة ٤"),
    ("hi num", "टोपी ३", "टोपी ४"),
    ("de neg", "eine Tasse mit Deckel, {a}", "eine Tasse ohne Deckel, {a}"),
    ("de kein", "ein {a} auf dem Tisch", "kein {a} auf dem Tisch"),
    ("de role", "der {a} auf dem {b}", "der {b} auf dem {a}"),
    ("fr neg", "une tasse avec {a}", "une tasse sans {a}"),
    ("fr ne pas", "ne montre pas le {a}", "montre le {a}"),
    ("es neg", "con {a}", "sin {a}"),
    ("fr role", "le {a} sur le {b}", "le {b} sur le {a}"),
    ("es role", "el {a} de {b}", "el {b} de {a}"),
    ("fr de", "une {a} de {b}", "une {b} de {a}"),
    ("fr pour", "une {a} pour {b}", "une {b} pour {a}"),
    ("de von", "das {a} von {b}", "das {b} von {a}"),
    ("de für", "{a} für {b}", "{a} von {b}"),
    ("it neg", "tazza con {a}", "tazza senza {a}"),
)


def words(rng: random.Random) -> dict[str, object] | None:
    """Draw what a trap is said of; None where two of the words are the same."""
    a, b = rng.choice(NOUNS), rng.choice(NOUNS)
    c, d = rng.sample(COLOURS, 2)
    j, i = rng.sample(ADJECTIVES, 2)
    if len({a, b, c, d, j, i}) < 6 or set(a.split()) & set(b.split()):
        return None
    k, verb = rng.randrange(2, 99), rng.choice(VERBS)
    numbers = {f"k{more}": k + more for more in range(1, 10)}
    things = {"a": a, "b": b, "c": c, "d": d, "j": j, "i": i, "pl": rng.choice(PLACES)}
    return {
        **things,
        "v": verb,
        "ved": verb.replace("ing", "ed"),
        "k": k,
        "h": k % 12 + 1,
        **numbers,
    }


def pairs(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield each trap once, said of other things, and one of two prepositions."""
    said = words(rng)
    if said is None:
        return
    p, q = rng.sample(PREPOSITIONS, 2)
    if not any({p, q} <= group for group in ALIKE):
        yield "preposition", *(f"a {said['a']} {each} a {said['b']}" for each in (p, q))
    for kind, one, other in TRAPS:
        yield kind, rng.choice(FRAMES).format(one.format(**said)), other.format(**said)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=2, help="examples of each kind")
    options = parser.parse_args()
    rng, until = random.Random(options.seed), time.monotonic() + options.seconds
    total, let_through = Counter[str](), Counter[str]()
    print(f"{len(TRAPS) + 1} traps; {platform.machine()}, Python {sys.version[:6]}")
    while time.monotonic() < until:
        for kind, one, other in pairs(rng):
            total[kind] += 1
            if compare(read(one), read(other)).agree:
                let_through[kind] += 1
                if let_through[kind] <= options.show:
                    print(f"{kind}: {one} | {other}")
    print(json.dumps({
        "pairs": total.total(),
        "let_through": let_through.total(),
        "by_kind": {kind: [count, total[kind]] for kind, count in let_through.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
