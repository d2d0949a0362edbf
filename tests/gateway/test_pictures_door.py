"""Pictures at the gateway's door: what virtual keys may, and what their budgets let through."""

from __future__ import annotations

import pytest

from packshot.providers.fake_script import Fault
from tests.gateway.guarded import body_for, credentials, post, there, upstream
from tests.gateway.world import World

__all__ = ["credentials", "there"]
PATH = "/v1/images/generations"
BODY = body_for(PATH)


@pytest.mark.parametrize("key", ["poor", "small"])
def test_a_picture_beyond_a_budget_is_not_asked_for(there: World, key: str) -> None:
    answer = post(there, PATH, BODY, key)
    assert answer.status_code == 402
    assert upstream(there) == 0
    assert there.booked() == []


def test_a_picture_within_it_is_booked_at_its_price(there: World) -> None:
    answer = post(there, PATH, BODY, x_packshot_tags="season=spring")
    assert answer.status_code == 200
    (entry,) = there.booked()
    assert (entry.stage, entry.provider, entry.model) == ("images", "stability", "sd3.5-large")
    assert (entry.amount, entry.virtual_key, entry.input_tokens) == (55_900_000, "whole", 0)
    assert entry.tags == "key=key-1,season=spring"


def test_a_filtered_picture_is_openais_error_and_nothing_is_tried_again(there: World) -> None:
    there.fakes["one"].next(Fault(code="filter"), Fault(status=403, code="filter"))
    for cost in ("0.055900000", "0.000000000"):
        answer = post(there, PATH, BODY)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in {"content_policy_violation", "content_moderation"}
        assert answer.headers["x-packshot-cost-eur"] == cost
    assert upstream(there) == 2


def test_a_field_that_is_not_taken_is_named_before_any_cost(there: World) -> None:
    for field, value in (("n", 4), ("quality", "hd"), ("strength", 2)):
        answer = post(there, PATH, {**BODY, field: value})
        assert answer.status_code == 400
        assert field in answer.json()["error"]["message"]
    assert upstream(there) == 0
    assert there.booked() == []


def test_a_chat_model_makes_no_pictures(there: World) -> None:
    answer = post(there, PATH, {**BODY, "model": "openai/gpt-4o-mini"})
    assert answer.status_code == 404
    assert "does not serve images" in answer.json()["error"]["message"]
    assert upstream(there) == 0
