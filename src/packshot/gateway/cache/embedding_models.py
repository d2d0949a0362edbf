"""Which model makes the cache's vectors where a provider is asked, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from packshot.core.clock import wall_us
from packshot.core.errors import InvalidRequest, Unbounded, unknown_name
from packshot.gateway.cache.settings import EmbeddingsEntry

if TYPE_CHECKING:
    from packshot.gateway.plan import Plan, Route
    from packshot.ledger.prices.book import PriceBook

__all__ = ["KNOWN", "AskedModel", "asked_model", "check_price", "route_of"]


class Known(NamedTuple):
    """The length of a model's vectors, and whether it makes shorter ones (``dimensions``)."""

    dimension: int
    shortens: bool = False


KNOWN: Mapping[str, Known] = {
    "text-embedding-3-small": Known(1536, shortens=True),
    "text-embedding-3-large": Known(3072, shortens=True),
    "text-embedding-ada-002": Known(1536),
    "gemini-embedding-001": Known(3072, shortens=True),
    "mistral-embed": Known(1024),
    "mxbai-embed-large": Known(1024),
    "nomic-embed-text": Known(768),
    "all-minilm": Known(384),
}
"""By the providers' and Ollama's own pages, 2026-11. Of others the configuration says it."""


class AskedModel(NamedTuple):
    """``model`` is its bare name, the same at all targets; ``dimensions`` what is sent, 0 for none.

    Vectors of two names are never compared.
    """

    model: str
    dimension: int
    dimensions: int = 0

    @property
    def name(self) -> str:
        """Return the name of the index."""
        return f"{self.model}/{self.dimension}"


def asked_model(entry: EmbeddingsEntry, plan: Plan) -> AskedModel:
    """Return the model that a configuration asks for.

    Raises:
        InvalidRequest: there is no such route or provider, it serves no embeddings, its targets
            are of two models, or nobody knows how long the vectors are.
    """
    where = "semantic_cache.embeddings"
    route = route_of(entry, plan)
    for target in route.targets:
        if "embeddings" not in target.provider.exchanges:
            raise InvalidRequest(
                f"{where}: {target.provider.name} serves no embeddings, and {target.name} is a "
                f"target of {entry.asked!r}: name a route whose targets all do"
            )
    models = {_bare(target.model) for target in route.targets}
    if len(models) > 1:
        raise InvalidRequest(
            f"{where}: the targets of {entry.asked!r} are of {len(models)} models "
            f"({', '.join(sorted(models))}), whose vectors cannot be compared: fall back to the "
            "same model at another provider"
        )
    (model,) = models
    known = KNOWN.get(model)
    if known is None and not entry.dimension:
        raise InvalidRequest(
            f"{where}: how long are the vectors of {model}, if it makes any? Set dimension: N; "
            f"known are {', '.join(KNOWN)}"
        )
    if known is None or entry.dimension in {0, known.dimension}:
        return AskedModel(model, entry.dimension or (known.dimension if known else 0))
    if not known.shortens or entry.dimension > known.dimension:
        raise InvalidRequest(
            f"{where}: vectors of {model} have {known.dimension} numbers, got dimension: "
            f"{entry.dimension}; leave it out"
        )
    return AskedModel(model, entry.dimension, entry.dimension)


def check_price(entry: EmbeddingsEntry, plan: Plan, book: PriceBook) -> None:
    """Refuse a model that is sold by the tokens of its answers: vectors have none.

    Raises:
        InvalidRequest: see above.
    """
    for target in route_of(entry, plan).targets:
        if _bare(target.model) in KNOWN:
            continue
        try:
            book.bound(target.provider.price_as, target.model, wall_us(), body_bytes=1)
        except Unbounded as error:
            raise InvalidRequest(
                f"semantic_cache.embeddings: {target.name} is sold by the tokens of its answers, "
                "so it is a model that talks; name one that makes embeddings"
            ) from error


def _bare(model: str) -> str:
    return model.rpartition("/")[2].partition(":")[0]


def route_of(entry: EmbeddingsEntry, plan: Plan) -> Route:
    """Return the route that is asked.

    Raises:
        InvalidRequest: there is none.
    """
    if entry.route:
        found = plan.routes.get(entry.route)
        if found is None:
            raise unknown_name("route of semantic_cache.embeddings", entry.route, plan.routes)
        return found
    plan.target(entry.model)  # a bare model would be looked for at the surface's own provider
    return plan.route(entry.model, "embeddings")
