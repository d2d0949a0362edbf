"""An OpenAI chat that Anthropic answers: what a chain of fallbacks needs across the two."""

from __future__ import annotations

from collections.abc import Sequence

from packshot.core.types import Usage
from packshot.providers.base import Api, Fields, Surface
from packshot.providers.openai import asked_usage, needs_of_chat
from packshot.providers.rows import ROWS, Need, Row
from packshot.providers.translate_reply import ChatRelay, chat_completion
from packshot.providers.translate_request import messages_request

__all__ = ["ChatToAnthropic"]


class ChatToAnthropic:
    """Chat completions by a provider that speaks Anthropic's API."""

    surface: Surface = "chat"
    api: Api = "anthropic"
    path: str = "/messages"

    def __init__(self, row: Row = ROWS["anthropic"]) -> None:
        self.row = row

    def request(self, fields: Fields, model: str, output_limit: int | None, /) -> bytes:
        """Return the body for the target; raises `Inexpressible` where a field has no equivalent.

        The API wants a limit: it is the caller's, else ``output_limit``, else
        `translate_request.DEFAULT_OUTPUT_LIMIT`.
        """
        return messages_request(fields, model, output_limit)

    def reply(self, body: bytes, model: str, /) -> tuple[bytes, Usage | None]:
        """Return a chat completion, and what was used, None where that cannot be right."""
        return chat_completion(body, model)

    def relay(self, fields: Fields, model: str, /) -> ChatRelay:
        """Return a relay that writes chunks, and the usage chunk if the caller asked for it."""
        return ChatRelay(model, include_usage=asked_usage(fields))

    def needs(self, fields: Fields, /) -> Sequence[Need]:
        """Return what the request needs of a target."""
        return needs_of_chat(fields)
