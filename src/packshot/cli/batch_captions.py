"""Captions of a batch by a language model, through the gateway of packshot.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packshot.core.errors import InvalidRequest
from packshot.core.money import Nanos

if TYPE_CHECKING:
    from packshot.cli.booking import Books
    from packshot.studio.caption import Caption

__all__ = ["RouteScribe"]


class RouteScribe:
    """A `packshot.studio.batch.captions.Scribe` that asks the configured route.

    Raises:
        InvalidRequest: the gateway's part of packshot.yaml has a mistake, or lacks the route.
    """

    def __init__(self, books: Books, model: str, recipe: str, batch: str) -> None:
        from packshot.cli.caption import client_of
        from packshot.studio.lexicon import load_lexicon
        from packshot.studio.models import open_model
        from packshot.studio.settings import load_studio

        try:
            from packshot.studio.rewrite import Order
        except ModuleNotFoundError as error:
            raise InvalidRequest(
                f"captions by llm need {error.name}, which is not installed: "
                'pip install "packshot[gateway]", or --caption rules'
            ) from error
        settings = load_studio()
        self._folder = open_model(model)
        self._lexicon = load_lexicon(self._folder.lexicon_path)
        self._client = client_of(settings, books)
        self.cost: Nanos = 0
        self._order = Order(settings.caption_route, settings.caption_deadline_s, recipe, batch)

    async def write(self, brief: str, render: str, /) -> Caption:
        """Return the caption of a brief; its calls are booked on ``render``."""
        from packshot.studio.caption import caption_brief
        from packshot.studio.rewrite import Subject, write

        by_rules = caption_brief(brief, self._lexicon)
        subject = Subject(brief, by_rules, self._folder, render)
        written = await write(subject, self._client, self._order)
        self.cost += written.cost
        return written.caption

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()
