"""Errors of every shape have one kind, give nothing away, and become the caller's."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.providers.base import Failure
from packshot.providers.failures import (
    ANSWERS,
    Answer,
    answer_of,
    error_body,
    error_event,
    failure_of,
    failure_of_event,
    scrubbed,
)


def openai_error(message: str = "m", kind: str = "", code: object = None, param: object = None):
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


AZURE_FILTER = msgspec.json.encode(
    {
        "error": {
            "message": "The response was filtered due to the prompt triggering Azure OpenAI's "
            "content management policy.",
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
            },
        }
    }
)
GEMINI_KEY = (
    b'[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.",'
    b'"status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}]'
)
GROQ_413 = openai_error(
    "Request too large for model `llama` in organization `org_01` on tokens per minute (TPM): "
    "Limit 6000, Requested 9000",
    "tokens",
    "rate_limit_exceeded",
)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, openai_error("Rate limit reached", "requests", "rate_limit_exceeded"), "rate_limit"),
        (429, openai_error("You exceeded", "insufficient_quota", "insufficient_quota"), "quota"),
        (429, b"", "rate_limit"),
        (429, b"<html>Too Many Requests</html>", "rate_limit"),
        (
            401,
            openai_error("Incorrect API key", "invalid_request_error", "invalid_api_key"),
            "auth",
        ),
        (401, b"", "auth"),
        (403, openai_error("no", "permission_error"), "auth"),
        (403, openai_error("Rate limit of your plan"), "rate_limit"),
        (402, b'{"error":{"message":"Insufficient Balance","code":"invalid_request"}}', "quota"),
        (400, openai_error("Insufficient Balance"), "quota"),
        (
            400,
            openai_error("Your credit balance is too low to access the Anthropic API."),
            "quota",
        ),
        (400, openai_error("big", "invalid_request_error", "context_length_exceeded"), "context"),
        (
            400,
            b'{"object":"error","message":"maximum context length is 4096 tokens","code":400}',
            "context",
        ),
        (
            400,
            openai_error("prompt is too long: 210000 tokens > 200000", "invalid_request_error"),
            "context",
        ),
        (413, b"", "context"),
        (413, GROQ_413, "context"),
        (400, AZURE_FILTER, "refusal"),
        (400, openai_error("no", "invalid_request_error", "content_policy_violation"), "refusal"),
        (
            400,
            openai_error("Your request was rejected as a result of our safety system"),
            "refusal",
        ),
        (403, openai_error("m requires moderation on OpenAI. Your input was flagged"), "refusal"),
        (400, openai_error("Invalid type", "invalid_request_error", None, "n"), "bad_request"),
        (422, b'{"detail":[{"loc":["body","n"],"msg":"Extra inputs"}]}', "bad_request"),
        (404, openai_error("gone", "invalid_request_error", "model_not_found"), "not_found"),
        (404, b'{"error":{"code":"DeploymentNotFound","message":"no"}}', "not_found"),
        (404, b'{"error":"model \'x\' not found"}', "not_found"),
        (400, GEMINI_KEY, "auth"),
        (400, b'{"code":"Client specified an invalid argument","error":"Bad role"}', "bad_request"),
        (500, openai_error("oops", "server_error"), "server"),
        (503, openai_error("busy", "server_error"), "overloaded"),
        (
            529,
            b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
            "overloaded",
        ),
        (500, b'{"type":"error","error":{"type":"api_error","message":"Internal"}}', "server"),
        (502, b"<html>", "server"),
        (504, b"", "timeout"),
        (408, b"", "timeout"),
        (524, b"", "timeout"),
        (599, b"", "server"),
        (418, b"", "bad_request"),
        (302, b"", "garbage"),
        (200, b"{}", "garbage"),
    ],
)
def test_errors_of_many_shapes_have_one_kind(status, body, kind):
    failure = failure_of(status, {}, body)
    assert (failure.kind, failure.status) == (kind, status)
    assert failure.message


@pytest.mark.parametrize(
    "quoted",
    [
        "Invalid role: 'Your credit balance is too low'",
        "Invalid role: 'Incorrect API key provided'",
        "'You exceeded your current quota' is not of type 'array'",
        "Unknown parameter: 'rate limit'",
    ],
)
def test_what_a_caller_wrote_sets_no_key_aside(quoted):
    assert failure_of(400, {}, openai_error(quoted)).kind == "bad_request"


def test_what_the_caller_can_mend_is_said_with_its_parameter():
    failure = failure_of(400, {}, openai_error("Invalid 'n': must be 1", "t", "bad_n", "n"))
    assert failure == Failure("bad_request", 400, "Invalid 'n': must be 1", "bad_n", "n")
    details = failure_of(422, {}, b'{"detail":[{"loc":["body","n"],"msg":"Extra inputs"}]}')
    assert details.message == "body.n: Extra inputs"


def test_what_is_the_gateways_trouble_is_said_in_our_words():
    body = openai_error(
        "Incorrect API key provided: sk-abcd1234. See https://x.test", code="invalid_api_key"
    )
    failure = failure_of(401, {}, body)
    assert failure.message == "the provider refused the credential of this gateway (status 401)"


def test_the_delay_comes_with_the_failure():
    assert failure_of(429, {b"retry-after": b"7"}, b"").retry_after_s == 7
    assert failure_of(429, {}, b"").retry_after_s is None


SECRETS = (
    *("sk-proj-abcDEF0123456789", "gsk_abcdef012345", "xai-0123456789ab", "org-AbC123xyz"),
    *("https://internal.example.com:8443/v1?key=1", "10.1.2.3:8000", "AIzaSyD-0123456789abcdef"),
    *("Bearer abc.def.ghi", "0123456789abcdef0123456789abcdef", "req_011CSHoEeqs5C35K2UUqR7Fy"),
    "sk-****************************7Fya",
)


@pytest.mark.parametrize("secret", SECRETS)
def test_no_key_url_or_account_is_handed_on(secret):
    got = scrubbed(f"the field is wrong: {secret} (see)")
    assert secret not in got
    assert not any(secret[at : at + 12] in got for at in range(len(secret) - 11))
    assert got.startswith("the field is wrong: [")
    failure = failure_of(400, {}, openai_error(f"wrong: {secret}", code=secret, param=secret))
    assert secret not in f"{failure.message} {failure.code} {failure.param}"
    assert failure.message.startswith("wrong: [")


def test_plain_words_stay():
    text = "messages.0.content: max_tokens must be less than 8192, tool_call_id user_name request"
    assert scrubbed(text) == text
    assert len(scrubbed("a b " * 1000)) == 500
    assert scrubbed("a\r\n\x00b\x1b[31m") == "a b [31m"


@given(st.binary(max_size=200), st.integers(100, 599))
def test_whatever_comes_is_a_failure(body, status):
    failure = failure_of(status, {}, body)
    assert failure.kind in ANSWERS
    assert answer_of(failure).status >= 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "code", "type", "details", "detail", "innererror"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from([200, 400, 429, 500]))
def test_whatever_json_comes_is_a_failure(fields, status):
    body = msgspec.json.encode(fields)
    assert failure_of(status, {}, body).kind in ANSWERS
    assert failure_of_event(body, named=True) is not None


# ---------------------------------------------------------------- what the caller gets


def failing(kind: Any, status: int = 400, code: str = "") -> Failure:
    return Failure(kind, status, "why", code)


def test_a_refused_key_is_never_the_callers_401():
    assert answer_of(failing("auth", 401)).status == 502
    assert answer_of(failing("quota", 429)).code == "upstream_credentials_exhausted"


def test_azures_word_for_a_filter_stays():
    assert answer_of(failing("refusal", 400, "content_filter")).code == "content_filter"
    assert answer_of(failing("refusal", 400, "x")).code == "content_policy_violation"


def test_bodies_have_the_shape_of_the_surface():
    answer = Answer(429, "rate_limit_error", "slow", "rate_limit_exceeded", "")
    assert msgspec.json.decode(error_body("chat", answer)) == {
        "error": {
            "message": "slow",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert msgspec.json.decode(error_body("messages", answer)) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "slow"},
    }
    assert error_event("chat", answer).startswith(b'data: {"error":')
    assert error_event("messages", answer).startswith(b'event: error\ndata: {"type":"error"')
    assert error_event("chat", answer).endswith(b"}\n\n")


SDK_ERRORS = {
    "rate_limit": "RateLimitError",
    "quota": "InternalServerError",
    "auth": "InternalServerError",
    "context": "BadRequestError",
    "refusal": "BadRequestError",
    "bad_request": "BadRequestError",
    "not_found": "NotFoundError",
    "overloaded": "InternalServerError",
    "server": "InternalServerError",
    "timeout": "InternalServerError",
    "network": "InternalServerError",
    "garbage": "InternalServerError",
}


@pytest.mark.parametrize(("kind", "expected"), SDK_ERRORS.items())
def test_the_official_clients_raise_the_class_that_fits(kind, expected):
    answer = answer_of(failing(kind, 0))
    request = httpx2.Request("POST", "http://gateway/v1")
    clients = {
        "chat": openai.OpenAI(api_key="k", base_url="http://gateway/v1"),
        "messages": anthropic.Anthropic(api_key="k", base_url="http://gateway"),
    }
    for surface, client in clients.items():
        with client:
            body = error_body(surface, answer)
            response = httpx2.Response(answer.status, content=body, request=request)
            error = client._make_status_error_from_response(response)
        names = {parent.__name__ for parent in type(error).__mro__}
        assert expected in names
        assert "why" in str(error)
        if surface == "chat":
            assert error.code == (answer.code or None)
