"""Providers as rows of data: where they are, how they want the key, and what they do otherwise.

What is the same as OpenAI's API is not said here. A provider that behaves differently in code has a
file of its own; the row only names which `Api` it speaks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal, TypeAlias
from urllib.parse import quote, urlsplit

from packshot.core.errors import InvalidRequest, unknown_name
from packshot.providers import forms
from packshot.providers.base import Api, Surface

__all__ = [
    "COMPATIBLE",
    "NEEDS",
    "ROWS",
    "STABILITY_PATHS",
    "Address",
    "Hangup",
    "Need",
    "OutputLimit",
    "Row",
    "row_of",
]

Need: TypeAlias = Literal["tools", "vision", "json", "prefill", "audio", "files"]
"""What a request may need of a target; ``prefill`` is an answer that the caller began."""

Hangup: TypeAlias = Literal["cancel", "drain"]
"""What pays when the caller hangs up: to stop the provider at once, or to read on for its usage."""

OutputLimit: TypeAlias = Literal["max_tokens", "max_completion_tokens", "by_model"]

NEEDS: frozenset[Need] = frozenset({"tools", "vision", "json", "prefill", "audio", "files"})

ANTHROPIC_VERSION = "2023-06-01"
"""The one version of Anthropic's API since then; it is a header that each call must have."""

AZURE_API_VERSION = "2024-10-21"
"""The last dated version of Azure OpenAI's data plane that is not a preview."""

REASONING = re.compile(r"(openai/)?(o\d|gpt-[5-9]|gpt-\d\d)")
"""The models of OpenAI that refuse ``max_tokens`` and want ``max_completion_tokens``."""

STABILITY_PATHS = {
    "sd3.5-large": "/stable-image/generate/sd3",
    "sd3.5-large-turbo": "/stable-image/generate/sd3",
    "sd3.5-medium": "/stable-image/generate/sd3",
    "stable-image-core": "/stable-image/generate/core",
    "stable-image-ultra": "/stable-image/generate/ultra",
    "replace-background-and-relight": "/stable-image/edit/replace-background-and-relight",
}
"""Where Stability makes which picture; the models are called as in the price book."""

JSON = "application/json"

PRIVATE_NAMES = (".local", ".internal", ".localhost", ".lan", ".svc", ".home.arpa")


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL, taken apart: ``path`` has no slash at its end."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Row:
    """All that is to be known of a provider without running it.

    ``auth_prefix`` stands before the key in ``auth_header``; ``headers`` go with every call.
    ``usage`` is the format of its usage, for `packshot.ledger.prices.usage`.
    ``stream_usage`` is false where ``stream_options`` is refused (usage comes unasked there).
    ``output_limit_field`` names the limit of an answer's tokens that the provider obeys: a caller
    who uses OpenAI's other name is understood, since a limit that nobody reads costs money.
    ``on_hangup`` is what the gateway does unless the configuration says otherwise: "cancel" books
    the bound, which is never too little. No provider documents what it bills a stream cut by us, so
    that no row says "drain", and none may without a source.
    ``supports`` is what the API can express; a model may still refuse. It is held against a
    request on its way to a *fallback*, never against the target that the caller named.
    ``deployments`` and ``query`` are Azure's: the model is part of the path. ``paths`` are those of
    single models, instead of the exchange's; ``content_type`` is that of every request's body.
    At the paths in ``later`` an answer is an id at first, and is fetched behind ``results``.
    """

    name: str
    api: Api
    base_url: str
    auth_header: str = "authorization"
    auth_prefix: str = "Bearer "
    headers: tuple[tuple[str, str], ...] = ()
    usage: str = "openai-chat"
    surfaces: frozenset[Surface] = frozenset({"chat", "embeddings"})
    stream_usage: bool = True
    output_limit_field: OutputLimit = "max_tokens"
    on_hangup: Hangup = "cancel"
    keyless: bool = False
    supports: frozenset[Need] = frozenset({"tools", "vision", "json"})
    deployments: bool = False
    query: str = ""
    paths: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON
    later: frozenset[str] = frozenset()
    results: str = ""

    @property
    def address(self) -> Address:
        """Where to connect to."""
        parts = urlsplit(self.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return Address(parts.scheme, parts.hostname or "", port, parts.path.rstrip("/"))

    def target(self, path: str, model: str) -> bytes:
        """Return path and query of a call of ``model`` at an exchange's ``path``."""
        at = self.address.path
        path = dict(self.paths).get(model, path)
        if self.deployments:
            at = f"{at}/openai/deployments/{quote(model, safe='')}"
        query = f"?{self.query}" if self.query else ""
        return f"{at}{path}{query}".encode("ascii")

    def header_lines(self, key: str) -> bytes:
        """Return the header lines of a call with this key, "" for none, each with its CRLF.

        Raises:
            InvalidRequest: the key is missing, or has characters that a header cannot hold.
        """
        lines = [f"{name}: {value}\r\n" for name, value in self.headers]
        if key:
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise InvalidRequest(
                    f"a key of {self.name} holds a space, a line break or a character outside "
                    "ASCII; is there a quote or a newline too many in its file or variable?"
                )
            lines.append(f"{self.auth_header}: {self.auth_prefix}{key}\r\n")
        elif not self.keyless:
            raise InvalidRequest(f"{self.name} wants a key and none is configured: add keys: to it")
        return "".join(lines).encode("ascii")

    def limit_field(self, model: str) -> str:
        """Return the name of the limit to put in where the caller set none."""
        if self.output_limit_field != "by_model":
            return self.output_limit_field
        return _limit_of(model)


@lru_cache(1024)  # every call asks, and models are few
def _limit_of(model: str) -> str:
    return "max_completion_tokens" if REASONING.match(model) else "max_tokens"


def _row(name: str, base_url: str, **different: object) -> Row:
    return replace(Row(name, "openai", base_url), **different)  # pyright: ignore[reportArgumentType]


CHAT: frozenset[Surface] = frozenset({"chat"})
EVERYTHING: frozenset[Need] = frozenset({"tools", "vision", "json", "audio", "files"})

COMPATIBLE = _row("openai-compatible", "", keyless=True)
"""Any server that speaks as OpenAI's does. It may want a key or none."""

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        _row(
            "openai",
            "https://api.openai.com/v1",
            output_limit_field="by_model",
            supports=EVERYTHING,
        ),
        _row(
            "azure",
            "",
            auth_header="api-key",
            auth_prefix="",
            output_limit_field="by_model",
            deployments=True,
            query=f"api-version={AZURE_API_VERSION}",
            supports=EVERYTHING,
        ),
        _row(
            "mistral",
            "https://api.mistral.ai/v1",
            usage="mistral",
            # Refuses fields that it does not know, and says its usage at the end of every stream.
            stream_usage=False,
            supports=frozenset({"tools", "vision", "json"}),
        ),
        _row("groq", "https://api.groq.com/openai/v1", usage="groq", surfaces=CHAT),
        _row("together", "https://api.together.xyz/v1"),
        _row(
            "openrouter",
            "https://openrouter.ai/api/v1",
            usage="openrouter",
            supports=frozenset({"tools", "vision", "json", "files"}),
        ),
        _row(
            "deepseek",
            "https://api.deepseek.com/v1",
            usage="deepseek",
            surfaces=CHAT,
            supports=frozenset({"tools", "json"}),
        ),
        _row("xai", "https://api.x.ai/v1", surfaces=CHAT),
        _row("vllm", "http://127.0.0.1:8000/v1", keyless=True),
        _row("ollama", "http://127.0.0.1:11434/v1", keyless=True),
        Row(
            "anthropic",
            "anthropic",
            "https://api.anthropic.com/v1",
            auth_header="x-api-key",
            auth_prefix="",
            headers=(("anthropic-version", ANTHROPIC_VERSION),),
            usage="anthropic",
            surfaces=frozenset({"messages", "count_tokens", "chat"}),
            supports=frozenset({"tools", "vision", "json", "prefill", "files"}),
        ),
        Row(
            "stability",
            "stability",
            "https://api.stability.ai/v2beta",
            headers=(("accept", JSON),),
            usage="openai-images",
            surfaces=frozenset({"images"}),
            supports=frozenset({"vision"}),
            paths=tuple(STABILITY_PATHS.items()),
            content_type=forms.CONTENT_TYPE,
            later=frozenset({STABILITY_PATHS["replace-background-and-relight"]}),
            results="/results/",
        ),
    )
}
"""The providers that are known by name."""


def row_of(
    kind: str,
    base_url: str | None = None,
    *,
    name: str = "",
    api_version: str = "",
    allow_http: bool = False,
) -> Row:
    """Return the row of a configured provider.

    ``kind`` is a name in `ROWS`, or "openai-compatible" for any other server; so is "openai" with
    the URL of somebody else. ``name`` is what the configuration calls it ("local-llm").
    ``api_version`` is Azure's. ``allow_http`` is the operator's word that a public host is to be
    called without encryption.

    Raises:
        InvalidRequest: there is no such kind, or the URL is missing or not to be used; the message
            says why, and repeats no part of it that may be secret.
    """
    if kind != COMPATIBLE.name and kind not in ROWS:
        known = unknown_name("kind of provider", kind, [*ROWS, COMPATIBLE.name])
        raise InvalidRequest(
            f"{known} Any other server of OpenAI's API is kind: {COMPATIBLE.name}, with a base_url."
        )
    row = ROWS.get(kind, COMPATIBLE)
    if base_url is None:
        if not row.base_url:
            raise InvalidRequest(
                f"a provider of kind {kind} needs a base_url: "
                + ("https://NAME.openai.azure.com" if row.deployments else "https://HOST/v1")
            )
        return replace(row, name=name or row.name)
    url = _checked(base_url, allow_http=allow_http)
    if kind == "openai" and urlsplit(url).hostname != "api.openai.com":
        row = COMPATIBLE
    if row.deployments:
        return _azure(row, url, name, api_version)
    return replace(row, name=name or row.name, base_url=url)


def _azure(row: Row, url: str, name: str, api_version: str) -> Row:
    """Azure's newer API is OpenAI's own under /openai/v1, without deployments and dates."""
    if url.endswith("/openai/v1"):
        query = f"api-version={quote(api_version, safe='')}" if api_version else ""
        return replace(row, name=name or row.name, base_url=url, deployments=False, query=query)
    query = f"api-version={quote(api_version or AZURE_API_VERSION, safe='')}"
    url = url.removesuffix("/openai")
    return replace(row, name=name or row.name, base_url=url, query=query)


def _checked(url: str, *, allow_http: bool) -> str:
    """Return the URL without a slash at its end, or say what is wrong with it."""
    what = "a base_url must be https://HOST[:PORT][/PATH]"
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise InvalidRequest(f"{what}: it has a space, a backslash or a character outside ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"{what}: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise InvalidRequest(f"{what}: its scheme, host or port is missing or another")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(f"{what}: it holds a user or a password; put the key under keys:")
    if "?" in url or "#" in url:
        raise InvalidRequest(f"{what}, without ? and #; put an api-version under api_version:")
    if parts.scheme == "http" and not (allow_http or _is_private(parts.hostname)):
        raise InvalidRequest(
            f"http to {parts.hostname} would send the key unencrypted: write https, or allow_http: "
            "true if that is meant"
        )
    return url.rstrip("/")


def _is_private(host: str) -> bool:
    """Tell whether a host is this machine or in a private network, by its name alone."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(PRIVATE_NAMES)
    return address.is_loopback or (address.is_private and not address.is_unspecified)
