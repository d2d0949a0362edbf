"""The held-out vocabulary, by program: words and their relations out of Open English WordNet.

    ./packshot python benchmarks/cache_pairs/extract.py WORDNET/src/yaml FREQUENCIES > WORDS.json

WORDNET is a checkout of globalwordnet/english-wordnet (CC BY 4.0, derived from Princeton WordNet),
FREQUENCIES a file of ``word count`` lines, most frequent first (symspellpy's English one, MIT).
Nobody chose these words: a category is all that lies under a synset, kept where it is common
enough to be typed, and what may replace what is read off the hierarchy:
- a *rival* of a word is a sister (same hypernym) that shares no sense at all with it, and is
  neither above nor below it. Putting it in the word's place changes what is asked.
- a *synonym* is another member of the same synset: WordNet says that the two mean the same.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

COMMON = 30_000
"""A word is kept when it is among so many of the most frequent ones."""
# category: the synsets (file, first member) under which its words lie
ROOTS = {
    "product": (
        ("noun.artifact", "furniture"),
        ("noun.artifact", "footwear"),
        ("noun.artifact", "garment"),
        ("noun.artifact", "container"),
        ("noun.artifact", "kitchen utensil"),
        ("noun.artifact", "musical instrument"),
        ("noun.artifact", "lamp"),
        ("noun.artifact", "headdress"),
        ("noun.artifact", "adornment"),
        ("noun.artifact", "timepiece"),
        ("noun.artifact", "tool"),
        ("noun.artifact", "plaything"),
    ),
    "colour": (("noun.attribute", "chromatic color"), ("noun.attribute", "achromatic color")),
    "material": (
        ("noun.artifact", "fabric"),
        ("noun.substance", "wood"),
        ("noun.substance", "rock"),
        ("noun.substance", "leather"),
        ("noun.substance", "alloy"),
        ("noun.artifact", "ceramic"),
    ),
    "place": (
        ("noun.artifact", "room"),
        ("noun.object", "geological formation"),
        ("noun.artifact", "shop"),
        ("noun.artifact", "outbuilding"),
        ("noun.artifact", "way"),
    ),
    "prop": (("noun.plant", "flower"), ("noun.food", "edible fruit"), ("noun.animal", "bird")),
}
WORD = re.compile(r"[a-z]{3,14}( [a-z]{3,12})?")


def load(folder: Path, name: str) -> Any:  # noqa: ANN401 - YAML is of any shape
    return yaml.load((folder / name).read_text(encoding="utf-8"), yaml.CSafeLoader)


def below(synsets: dict[str, Any], children: dict[str, list[str]], root: str) -> set[str]:
    found, queue = set(), [root]
    while queue:
        here = queue.pop()
        if here not in found and here in synsets:
            found.add(here)
            queue += children[here]
    return found


def root_of(synsets: dict[str, Any], children: dict[str, list[str]], name: str) -> str:
    """Return the synset that ``name`` heads and that has the most below it."""
    heads = [key for key, synset in synsets.items() if name in synset["members"]]
    return max(heads, key=lambda key: len(below(synsets, children, key)))


def category(
    name: str, folder: Path, senses: dict[str, set[str]], common: set[str]
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for file, head in ROOTS[name]:
        synsets = load(folder, f"{file}.yaml")
        children: dict[str, list[str]] = defaultdict(list)
        for key, synset in synsets.items():
            for parent in (*synset.get("hypernym", ()), *synset.get("instance_hypernym", ())):
                children[parent].append(key)

        def usable(word: str) -> bool:
            known = all(part in common for part in word.lower().split())
            return WORD.fullmatch(word) is not None and known

        top = root_of(synsets, children, head)
        inside = below(synsets, children, top) - {top}
        for key in sorted(inside):
            words = [word for word in synsets[key]["members"] if usable(word)]
            parents = (
                *synsets[key].get("hypernym", ()),
                *synsets[key].get("instance_hypernym", ()),
            )
            sisters = {sister for parent in parents for sister in children[parent]} - {key}
            near = below(synsets, children, key)
            rivals = [
                word
                for sister in sorted(sisters - near)
                for word in synsets[sister]["members"][:2]
                if usable(word) and not any(senses[word] & senses[own] for own in words)
            ]
            if words and rivals and words[0] not in rows:
                others = [word for word in words[1:] if not word.startswith(words[0])]
                rows[words[0]] = {"word": words[0], "synonyms": others[:2], "rivals": rivals[:6]}
    return list(rows.values())


def antonyms(entries: dict[str, Any], common: set[str]) -> list[list[str]]:
    """Return pairs of adjectives that are antonyms of each other."""
    owner = {
        sense["id"]: lemma
        for lemma, parts in entries.items()
        for kind in ("a", "s")
        for sense in parts.get(kind, {}).get("sense", ())
    }
    pairs = {
        tuple(sorted((lemma, owner[other])))
        for lemma, parts in entries.items()
        for sense in parts.get("a", {}).get("sense", ())
        for other in sense.get("antonym", ())
        if other in owner
    }
    top = {word for word in common if WORD.fullmatch(word)}
    return sorted([list(pair) for pair in pairs if set(pair) <= top and pair[0] != pair[1]])


def main() -> None:
    folder, frequencies = Path(sys.argv[1]), Path(sys.argv[2])
    lines = frequencies.read_text(encoding="utf-8-sig").splitlines()
    common = {line.split()[0] for line in lines[:COMMON]}
    entries: dict[str, Any] = {}
    for file in sorted(folder.glob("entries-*.yaml")):
        entries.update(load(folder, file.name))
    senses: dict[str, set[str]] = defaultdict(set)
    for lemma, parts in entries.items():
        for part in parts.values():
            senses[lemma] |= {sense["synset"] for sense in part["sense"]}
    vocabulary: dict[str, Any] = {name: category(name, folder, senses, common) for name in ROOTS}
    vocabulary["antonyms"] = antonyms(entries, common)
    counts = {name: len(rows) for name, rows in vocabulary.items()}
    print(json.dumps(counts), file=sys.stderr)
    print(json.dumps(vocabulary, ensure_ascii=False, indent=0, sort_keys=True))


if __name__ == "__main__":
    main()
