"""What all networks share: how they come from a ``config.json`` and how weights are named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Self, TypeVar

import msgspec
from torch import nn

from packshot.core.errors import ModelCorrupt

__all__ = ["Network", "parse", "per_block", "refuse_unknown"]

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T", int, str)


class Network(nn.Module, ABC):
    """A network that ``weights.load`` can make from a model folder."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of a component's config; ``ModelCorrupt`` for what is not supported."""

    @staticmethod
    def adapt_key(key: str) -> str | None:
        """Return the name here of a published weight, or ``None`` to leave it out."""
        return key


def parse(config: Mapping[str, Any], into: type[S], fixed: Mapping[str, tuple[object, ...]]) -> S:
    """Return the settings of type ``into`` in ``config``; a key set to null takes the default.

    ``fixed`` names the keys of the format of which only these values are built here. Raises
    ``ModelCorrupt`` naming the key, what was got and what is supported.
    """
    for key, supported in fixed.items():
        if key in config and config[key] not in supported:
            valid = " or ".join(repr(value) for value in supported)
            raise ModelCorrupt(f"{key} is {config[key]!r}; supported: {valid}.")
    try:
        return msgspec.convert({k: v for k, v in config.items() if v is not None}, into)
    except msgspec.ValidationError as error:
        raise ModelCorrupt(f"{error}.") from error


def refuse_unknown(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ``ModelCorrupt`` for a key that is switched on and not in ``known``.

    A network that passed over a setting it does not know would render nonsense without a word.
    """
    for key, value in config.items():
        if key not in known and not key.startswith("_") and value not in (None, False):
            raise ModelCorrupt(f"{key} is {value!r}, an unknown setting; supported: not set.")


def per_block(name: str, value: T | tuple[T, ...], blocks: int) -> tuple[T, ...]:
    """Spread a setting that is one value or one per block; ``ModelCorrupt`` if the count is off."""
    if isinstance(value, int | str):
        return (value,) * blocks
    if len(value) != blocks:
        raise ModelCorrupt(f"{name} has {len(value)} entries; expected {blocks}, one per block.")
    return value
