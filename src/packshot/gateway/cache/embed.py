"""Text embeddings: the contract, and MiniLM in process.

all-MiniLM-L6-v2 (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM", NeurIPS
2020) with int8 weights on onnxruntime; `packshot.gateway.cache.minilm` makes the file. Anything
else that has `Embedder`'s three members serves as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from packshot.core.errors import ModelCorrupt, ModelNotFound, Saturated

__all__ = ["Embedder", "MiniLM", "Offloaded", "Vectors"]

Vectors = NDArray[np.float32]
"""Rows of length 1, so that their dot product is their cosine; (texts, dimension)."""

MOST_TOKENS = 256
"""What the model was trained on; the rest of a longer text is not embedded."""
MOST_WAITING = 256
"""Texts that may wait for the thread; further ones are refused, and their calls go upstream."""


class Embedder(Protocol):
    """Turns texts into vectors.

    ``name`` is of the model and its version: vectors of two names are never compared.
    """

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    async def embed(self, texts: Sequence[str]) -> Vectors: ...


class MiniLM:
    """The model in a folder, on one thread: about 2 ms for a request of thirty words.

    Raises `ModelNotFound` where the folder has no model and `ModelCorrupt` where a file is not the
    one that was made.
    """

    dimension = 384

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        runtime: Any = import_module("onnxruntime")
        manifest = _manifest(folder)
        self.name = f"all-MiniLM-L6-v2-int8@{manifest['model.onnx'][:12]}"
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return a row for each text. It blocks; `Offloaded` does not.

        Texts run one by one: with dynamic int8 the scale of a batch is that of all its texts, so in
        a batch the vector of one caller's text would depend on another caller's.
        """
        rows = np.empty((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            tokens = np.array([self._tokenizer.encode(text).ids], np.int64)
            row[:] = self._session.run(None, {"tokens": tokens})[0][0]
        return rows


def _manifest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 sums of the folder's files, having compared them."""
    try:
        sums: dict[str, str] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"no embedding model in {folder}; `packshot cache model` makes it there"
        ) from error
    for name in ("model.onnx", "tokenizer.json"):
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if sums.get(name) != found:
            raise ModelCorrupt(
                f"{folder / name} is not the file that was made: its SHA-256 is {found[:12]}…, "
                f"expected {str(sums.get(name))[:12]}…; remove the folder and run "
                "`packshot cache model` again"
            )
    return sums


class Offloaded:
    """An `Embedder` that runs `MiniLM` in one thread, off the event loop.

    What arrives while the thread is busy goes to it together, which saves a hop per text.
    """

    def __init__(self, model: MiniLM) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []
        self._running: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return self._model.dimension

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return a row for each text, in the caller's own thread, beside what waits here."""
        return self._model.encode(texts)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return a row for each text; raises `Saturated` when `MOST_WAITING` texts wait."""
        if len(self._waiting) + len(texts) > MOST_WAITING:
            raise Saturated(
                f"{len(self._waiting)} texts wait for the embedding model, at most {MOST_WAITING} "
                "may; try again in a moment"
            )
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in texts]
        self._waiting += zip(texts, futures, strict=True)
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._drain())
        return np.stack([await future for future in futures])

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            # Whoever went away meanwhile is not worked for.
            batch = [(text, future) for text, future in batch if not future.done()]
            try:
                rows = await loop.run_in_executor(
                    self._thread, self._model.encode, [text for text, _ in batch]
                )
            except Exception as error:  # noqa: BLE001 - each caller hears of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)

    def close(self) -> None:
        """End the thread, once what runs in it is done."""
        self._thread.shutdown(wait=True, cancel_futures=True)
