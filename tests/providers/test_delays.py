"""Every form in which a provider asks for a delay, and everything that is none."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from packshot.providers.delays import LONGEST_DELAY_S, asked_delay, seconds_of

NOW = datetime(2026, 11, 25, 16, 0, 0, tzinfo=UTC).timestamp()


def retry_info(delay: str) -> bytes:
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    return msgspec.json.encode({"error": {"code": 429, "details": details}})


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, b"", None),
        ({b"retry-after": b"20"}, b"", 20),
        ({b"retry-after": b" 1.5 "}, b"", 1.5),
        ({b"retry-after": b"0"}, b"", 0),
        ({b"retry-after": b"Wed, 25 Nov 2026 16:00:30 GMT"}, b"", 30),
        ({b"retry-after": b"Wednesday, 25-Nov-26 16:00:30 GMT"}, b"", 30),
        ({b"retry-after": b"Wed, 25 Nov 2026 15:00:00 GMT"}, b"", 0),
        ({b"retry-after": b"2026-11-25T16:01:00Z"}, b"", 60),
        ({b"retry-after-ms": b"1500"}, b"", 1.5),
        ({b"retry-after-ms": b"250", b"retry-after": b"1"}, b"", 0.25),
        ({b"retry-after-ms": b"soon", b"retry-after": b"3"}, b"", 3),
        ({b"retry-after": b"1000000000"}, b"", LONGEST_DELAY_S),
        ({b"retry-after": b"-5"}, b"", None),
        ({b"retry-after": b"inf"}, b"", None),
        ({b"retry-after": b"nan"}, b"", None),
        ({b"retry-after": b"1e3"}, b"", None),
        ({b"retry-after": b"soon"}, b"", None),
        ({b"retry-after": b"9" * 400}, b"", None),
        ({}, retry_info("17s"), 17),
        ({}, retry_info("0.5s"), 0.5),
        ({}, b"[" + retry_info("17.25s") + b"]", 17.25),
        ({}, b'{"error":{"details":[{"retryDelay":17},3,{"retryDelay":"2s"}]}}', 2),
        ({}, b'{"retryDelay":', None),
        (
            {b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"6m0s"},
            b"",
            360,
        ),
        (
            {b"x-ratelimit-remaining-tokens": b"0", b"x-ratelimit-reset-tokens": b"120ms"},
            b"",
            0.12,
        ),
        (
            {
                b"x-ratelimit-remaining-requests": b"59",
                b"x-ratelimit-reset-requests": b"1h2m3s",
                b"x-ratelimit-remaining-tokens": b"0",
                b"x-ratelimit-reset-tokens": b"1s",
            },
            b"",
            1,
        ),
        ({b"x-ratelimit-reset-requests": b"1s"}, b"", None),
        (
            {
                b"anthropic-ratelimit-tokens-remaining": b"0",
                b"anthropic-ratelimit-tokens-reset": b"2026-11-25T16:00:12Z",
            },
            b"",
            12,
        ),
        ({}, b'{"detail":"Request was throttled. Your rate limit resets in ~30s."}', 30),
        ({}, b'{"error":{"message":"Rate limit reached. Please try again in 1.2s. Visit"}}', 1.2),
        ({}, b"Please try again in 6m0s.", 360),
        ({}, b"Please retry after 20 seconds", 20),
        ({}, b"Please try again in 120ms.", 0.12),
        ({}, b"try again in 2 minutes", 120),
        ({}, b"try again in a while", None),
        ({}, b"try again in 5 stages", None),
        ({}, b"put 3s in 5s", None),
    ],
)
def test_every_form_of_delay(headers, body, expected):
    got = asked_delay(headers, body, NOW)
    assert got == (expected if expected is None else pytest.approx(expected))


@given(st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_date_is_the_time_until_then(date):
    date = date.replace(microsecond=0)
    expected = min(max(0.0, date.timestamp() - NOW), LONGEST_DELAY_S)
    text = format_datetime(date, usegmt=True)
    assert asked_delay({b"retry-after": text.encode()}, b"", NOW) == expected
    assert seconds_of(date.isoformat(), NOW) == expected


@given(
    st.integers(0, 5), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999), st.booleans()
)
def test_a_duration_is_the_sum_of_its_parts(h, m, s, ms, spelled):
    if spelled:
        text = f"{h}h{m}m{s}s{ms}ms"
        assert seconds_of(text) == pytest.approx(h * 3600 + m * 60 + s + ms / 1000)
    else:
        assert seconds_of(f"{s}.{ms:03}s") == pytest.approx(s + ms / 1000)


HEADER = st.sampled_from(
    [
        b"retry-after",
        b"retry-after-ms",
        b"x-ratelimit-reset-tokens",
        b"x-ratelimit-remaining-tokens",
        b"anthropic-ratelimit-requests-reset",
        b"anthropic-ratelimit-requests-remaining",
    ]
)
TEXTS = st.one_of(
    st.binary(max_size=80),
    st.from_regex(rb"[0-9smh.:TZ ,+-]{0,40}", fullmatch=True),
    st.just(b"0"),
)


@given(st.dictionaries(HEADER, TEXTS), st.binary(max_size=300))
@example({b"retry-after": b"99999-99-99"}, b"")
@example({b"retry-after": b"Mon, 99 Foo 0000 99:99:99"}, b"")
@example({}, b'{"retryDelay":' + b"[" * 5000)
def test_whatever_comes_the_delay_is_none_or_between_now_and_a_day(headers, body):
    got = asked_delay(headers, body, NOW)
    assert got is None or 0 <= got <= LONGEST_DELAY_S
