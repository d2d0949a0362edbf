"""Texts' embeddings, kept: what the encoders made of a text, bit for bit, by what decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import msgspec
import torch

from packshot.core.types import EmbeddingUse
from packshot.engine.conditioning import EncodedTexts, together
from packshot.engine.devices import DTYPES, arithmetic

if TYPE_CHECKING:
    from torch import Tensor

    from packshot.engine.model import Model

__all__ = ["EmbeddingCache", "Encode", "TextReader", "pack", "unpack"]

NAMED = {str(dtype): dtype for dtype in DTYPES.values()}
CHECK_BYTES = 16

Encode = Callable[[Sequence[str]], EncodedTexts]
"""Reads texts with both encoders, one row each."""


class EmbeddingCache(Protocol):
    """Keeps packed embeddings; `packshot.studio.embeddings.KeptEmbeddings` is one.

    It may lose any of them at any time. ``problem`` says why it keeps less than it should, "" while
    it does not; a cache never fails a render.
    """

    @property
    def problem(self) -> str:
        """Why less is kept than should be, in words for the user; "" while all is well."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return what was put under ``key``, None if it is not there."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Keep ``value`` under ``key``."""
        ...

    def count(self, use: EmbeddingUse) -> None:
        """Hear what one render made of the cache."""
        ...


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    """One text's embedding: raw bytes of both tensors, their sum, and how long it took to make."""

    dtype: str
    tokens: bytes
    pooled: bytes
    dropped: int
    seconds: float
    check: bytes


@dataclass(frozen=True, slots=True)
class TextReader:
    """Reads texts with the encoders of ``model``, or from ``cache`` what was read before.

    With a cache and without, the bits are the same. ``way`` names how ``encode`` goes about it,
    where there are several ways: each rounds otherwise.
    """

    model: Model
    encode: Encode
    way: str = "plain"
    cache: EmbeddingCache | None = None

    def read(self, texts: Sequence[str]) -> tuple[EncodedTexts, EmbeddingUse]:
        """Return ``texts`` as SDXL reads them, and how many of them the cache had.

        Each is read alone: kernels round differently in company, and a text is to have the same
        bits beside any other.
        """
        read: list[EncodedTexts] = []
        use = EmbeddingUse()
        for text in texts:
            encoded, of_one = self._read(text, self.cache) if self.cache else self._encode(text)
            read.append(encoded)
            use += of_one
        if self.cache is not None:
            self.cache.count(use)
        return together(read), use

    def key(self, text: str) -> str:
        """Return 64 hex digits of everything that decides the bits of a text's embedding.

        The bytes of encoders and tokenizers, the precision, the kernels (`devices.arithmetic`), the
        text. Not the code: who keeps embeddings beyond one version of packshot adds that.
        """
        model = self.model
        parts = (model.text_sum, model.precision, self.way, arithmetic(model.device), text)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def _read(self, text: str, cache: EmbeddingCache) -> tuple[EncodedTexts, EmbeddingUse]:
        start = perf_counter()
        key = self.key(text)
        kept = cache.get(key)
        length = self.model.readers[0].tokenizer.length
        found = unpack(kept, length, self.model.device) if kept else None
        if found is not None:
            encoded, seconds = found
            return encoded, EmbeddingUse(hits=1, saved_s=seconds - (perf_counter() - start))
        start = perf_counter()
        encoded, use = self._encode(text)
        on_host = EncodedTexts(encoded.tokens.cpu(), encoded.pooled.cpu(), encoded.dropped)
        cache.put(key, pack(on_host, perf_counter() - start))
        return encoded, use

    def _encode(self, text: str) -> tuple[EncodedTexts, EmbeddingUse]:
        return self.encode([text]), EmbeddingUse(misses=1)


def pack(encoded: EncodedTexts, seconds: float) -> bytes:
    """Return one text's embedding as bytes, the numbers exactly as they are."""
    dtype = str(encoded.tokens.dtype)
    tokens, pooled = (_bytes_of(tensor) for tensor in (encoded.tokens, encoded.pooled))
    check = _check(tokens, pooled)
    (dropped,) = encoded.dropped
    return msgspec.msgpack.encode(_Packed(dtype, tokens, pooled, dropped, seconds, check))


def unpack(data: bytes, length: int, device: torch.device) -> tuple[EncodedTexts, float] | None:
    """Return what was packed, on ``device``, and how long it took to make; None if it is damaged.

    ``length`` is how many tokens the encoders read.
    """
    try:
        packed = msgspec.msgpack.decode(data, type=_Packed)
    except msgspec.MsgspecError:
        return None
    if packed.check != _check(packed.tokens, packed.pooled) or packed.dtype not in NAMED:
        return None
    dtype = NAMED[packed.dtype]
    return EncodedTexts(
        tokens=_tensor_of(packed.tokens, dtype).view(1, length, -1).to(device),
        pooled=_tensor_of(packed.pooled, dtype).view(1, -1).to(device),
        dropped=(packed.dropped,),
    ), packed.seconds


def _check(tokens: bytes, pooled: bytes) -> bytes:
    digest = hashlib.blake2b(tokens, digest_size=CHECK_BYTES)
    digest.update(pooled)
    return digest.digest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _tensor_of(data: bytes, dtype: torch.dtype) -> Tensor:
    # A copy, which torch places where its kernels like it: they may round otherwise elsewhere.
    return torch.frombuffer(bytearray(data), dtype=dtype).clone()
