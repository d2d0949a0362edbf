"""The ``studio:`` section of packshot.yaml: how captions are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packshot.core.config import Secret, read
from packshot.core.errors import InvalidRequest
from packshot.ledger.settings import CONFIG_NAME, SECTIONS
from packshot.studio.embeddings import EmbeddingSettings

__all__ = ["StudioSettings", "load_studio"]

NO_SECRET = Secret()
KEPT = EmbeddingSettings()

LONGEST_S = 60.0
"""Of a deadline: nobody waits longer for a caption that the rules write at once."""


@dataclass(frozen=True, slots=True)
class StudioSettings:
    """The studio's choices.

    ``caption_route`` is a route of the gateway, or "provider/model"; "" leaves captions to the
    rules. ``caption_deadline_s`` is how long a caption may take, all tries together. With
    ``gateway_url`` that gateway is asked, with the virtual key ``gateway_key``; without, the call
    is made in this process, by the providers and routes of the same file. ``embeddings`` says what
    is kept of texts that were encoded before.
    """

    caption_route: str = ""
    caption_deadline_s: float = 8.0
    gateway_url: str = ""
    gateway_key: Secret = NO_SECRET
    embeddings: EmbeddingSettings = KEPT

    def __post_init__(self) -> None:
        """Refuse what could never be meant."""
        if not 0 < self.caption_deadline_s <= LONGEST_S:
            raise InvalidRequest(
                f"caption_deadline_s is above 0, at most {LONGEST_S:g}, "
                f"got {self.caption_deadline_s:g}"
            )
        if self.gateway_key and not self.gateway_url:
            raise InvalidRequest("gateway_key is for a gateway elsewhere: give its gateway_url")


def load_studio(path: Path | None = None) -> StudioSettings:
    """Return the studio's settings from ``path``, else ./packshot.yaml, else all defaults.

    Raises:
        OutputError: the file, or one that it names, cannot be read.
        InvalidRequest: the file has a mistake; the message has its line.
    """
    found = path or Path(CONFIG_NAME)
    if path is None and not found.exists():
        return StudioSettings()
    return read(found, SECTIONS).section("studio", StudioSettings) or StudioSettings()
