"""The rows of providers, and which URLs may be called."""

from __future__ import annotations

import pytest

from packshot.core.errors import InvalidRequest
from packshot.ledger.prices.usage import FORMATS
from packshot.providers.rows import NEEDS, ROWS, Address, row_of


def test_every_row_is_whole():
    for name, row in ROWS.items():
        assert row.name == name
        assert row.usage in FORMATS
        assert row.supports <= NEEDS
        assert row.keyless == (name in {"vllm", "ollama"})
        if name != "azure":
            assert row_of(name, row.base_url) == row


def test_a_row_says_where_to_connect_and_what_to_ask_for():
    assert ROWS["groq"].address == Address("https", "api.groq.com", 443, "/openai/v1")
    assert ROWS["ollama"].address == Address("http", "127.0.0.1", 11434, "/v1")
    assert ROWS["groq"].target("/chat/completions", "m") == b"/openai/v1/chat/completions"


def test_azure_has_the_deployment_in_the_path():
    row = row_of("azure", "https://acme.openai.azure.com/", api_version="2025-01-01")
    assert row.target("/chat/completions", "gpt 4/x") == (
        b"/openai/deployments/gpt%204%2Fx/chat/completions?api-version=2025-01-01"
    )
    assert row.header_lines("k3y") == b"api-key: k3y\r\n"
    newer = row_of("azure", "https://acme.openai.azure.com/openai/v1/")
    assert newer.target("/embeddings", "m") == b"/openai/v1/embeddings"
    with pytest.raises(InvalidRequest, match="needs a base_url"):
        row_of("azure")


def test_anthropic_has_its_own_headers():
    assert ROWS["anthropic"].header_lines("sk-ant") == (
        b"anthropic-version: 2023-06-01\r\nx-api-key: sk-ant\r\n"
    )


@pytest.mark.parametrize("key", ["a b", "a\r\nx: y", "ключ", "a\x00"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key):
    with pytest.raises(InvalidRequest) as caught:
        ROWS["openai"].header_lines(key)
    assert key not in str(caught.value)


def test_only_who_needs_no_key_goes_without():
    assert ROWS["ollama"].header_lines("") == b""
    assert ROWS["ollama"].header_lines("k") == b"authorization: Bearer k\r\n"
    with pytest.raises(InvalidRequest, match="wants a key"):
        ROWS["openai"].header_lines("")


def test_somebody_elses_openai_is_any_compatible_server():
    row = row_of("openai", "http://10.1.2.3:8000/v1/", name="local-llm")
    assert (row.name, row.base_url, row.keyless) == ("local-llm", "http://10.1.2.3:8000/v1", True)
    assert not row_of("openai", "https://api.openai.com/v1").keyless
    assert row_of("openai-compatible", "https://llm.example.com/v1").api == "openai"


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(InvalidRequest, match="Did you mean 'mistral'"):
        row_of("mistrall")


@pytest.mark.parametrize(
    "url",
    [
        "http://vllm:8000/v1",
        "http://localhost/v1",
        "http://[::1]:8000/v1",
        "http://192.168.0.7/v1",
        "http://llm.default.svc/v1",
        "https://llm.example.com",
    ],
)
def test_urls_that_may_be_called(url):
    assert row_of("vllm", url).base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://llm.example.com/v1",
        "http://8.8.8.8/v1",
        "http://0.0.0.0/v1",
        "ftp://llm.example.com",
        "llm.example.com/v1",
        "https://user:pass@llm.example.com/v1",
        "https://user@llm.example.com/v1",
        "https://@llm.example.com/v1",
        "https://llm.example.com/v1?key=secret",
        "https://llm.example.com/v1#secret",
        "https://llm.example.com/v1?",
        "https://llm.example.com:0/v1",
        "https://llm.example.com:99999/v1",
        "https://llm.example.com\\@evil.test/",
        "https://llm.example.com/a b",
        "https://",
        "",
    ],
)
def test_urls_that_may_not(url):
    with pytest.raises(InvalidRequest) as caught:
        row_of("vllm", url)
    assert "secret" not in str(caught.value)
    assert "pass@" not in str(caught.value)


def test_http_to_a_public_host_is_the_operators_word():
    assert row_of("vllm", "http://8.8.8.8/v1", allow_http=True).address.port == 80
