"""Train the byte-pair vocabulary of both text encoders on captions, in CLIP's file format.

python training/tokenizer.py packages/packshot-mini/src/packshot_mini/model
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from configs import VOCABULARY
from lexicon import read_tables
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def corpus() -> list[str]:
    """Every word that captions are made of, the frequent ones more often."""
    products, scenes = read_tables()
    lines = []
    for row in products:
        lines += [row["name"]] * 4 + row["synonyms"] + [row["material"]]
    for table in ("colours", "grounds", "lights", "sides", "views"):
        for row in scenes[table]:
            lines += [row["name"], row.get("phrase", "")] * 4 + row["synonyms"]
    return [*lines, *[scenes["suffix"]] * 4]


def train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges: CLIP's 512 byte tokens, the merges' words, two marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [*alphabet, *(c + "</w>" for c in alphabet)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    merges = [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
    merges = merges[: VOCABULARY - len(base) - 2]
    words = [*base, *("".join(pair) for pair in merges)]
    words += [f"<|unused{i}|>" for i in range(VOCABULARY - 2 - len(words))]
    words += [BOS, EOS]
    return {word: index for index, word in enumerate(words)}, merges


def write(folder: Path) -> None:
    """Write the files of one tokenizer folder."""
    vocabulary, merges = train()
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    for name in ("tokenizer", "tokenizer_2"):
        write(Path(sys.argv[1]) / name)
