"""CLIP's tokenizer: byte-level BPE over lower-cased text (arXiv:2103.00020 §2.4), without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from packshot.core.errors import ModelCorrupt
from packshot.engine.folder import read_json

__all__ = ["Tokenizer", "Tokens"]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# One piece each: an English clitic, a run of letters, a single digit, a run of anything else.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the text encoder takes it.

    ``ids``: start, the text, end, padding; always as long as the encoder's context. ``dropped``:
    how many tokens at the end of the text did not fit and were not read.
    """

    ids: tuple[int, ...]
    dropped: int


class Tokenizer:
    """One tokenizer of a model folder; SDXL's two differ in what they pad with."""

    def __init__(self, backend: Backend, bos: int, eos: int, pad: int, *, length: int) -> None:
        self.length = length
        self._backend = backend
        self._bos, self._eos, self._pad = bos, eos, pad

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json`` in directory ``path``.

        Raises ``ModelCorrupt`` if they do not fit together.
        """
        config = read_json(path / "tokenizer_config.json")
        bos, eos, pad = (_content(config, key) for key in ("bos_token", "eos_token", "pad_token"))
        backend = _backend(path)
        ids = [_id(backend, token, path) for token in (bos, eos, pad)]
        # As in the reference, a special token in the text stands for itself. SDXL's second
        # tokenizer pads with "!", so "!" reads as padding there: it was trained that way.
        cast("Any", backend).add_special_tokens([bos, eos, pad])
        return cls(backend, *ids, length=_length(config, path))

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``; what does not fit is dropped and counted."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        room = self.length - 2
        padding = (self._pad,) * (room - len(ids))
        return Tokens((self._bos, *ids[:room], self._eos, *padding), max(0, len(ids) - room))


def _backend(path: Path) -> Backend:
    vocab, merges = str(path / "vocab.json"), str(path / "merges.txt")
    options = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "unk_token": EOS}
    try:
        backend = Backend(cast("Any", BPE).from_file(vocab, merges, **options))
    except Exception as error:  # the library raises nothing narrower
        raise ModelCorrupt(f"{path}: vocab.json and merges.txt cannot be read: {error}.") from error
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def _content(config: Mapping[str, Any], key: str) -> str:
    """Return a special token, which the format writes as text or as an object with its text."""
    token: Any = config.get(key, BOS if key == "bos_token" else EOS)
    text: Any = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ModelCorrupt(f"tokenizer_config.json: {key} is {token!r}; expected text.")
    return text


def _id(backend: Backend, token: str, path: Path) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise ModelCorrupt(f"{path}: vocab.json does not hold the special token {token!r}.")
    return found


def _length(config: Mapping[str, Any], path: Path) -> int:
    length = config.get("model_max_length", 77)
    if not isinstance(length, int) or not 3 <= length <= 4096:
        raise ModelCorrupt(f"{path}: model_max_length is {length!r}; expected 3 to 4096.")
    return length
