"""What a body's metadata says to the gateway: as headers, and taken out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.metadata import HEADERS, said_in
from packshot.providers.base import Fields


def fields_of(metadata: Any) -> Fields:
    raw = msgspec.json.encode({"model": "x", "metadata": metadata})
    return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])


def test_each_member_is_a_header_and_what_is_the_callers_stays() -> None:
    ours = {member: member[len("packshot_") :] for member in HEADERS}
    fields = fields_of({**ours, "shop": "12"})
    said = {
        b"x-packshot-" + name.replace("_", "-").encode(): name.encode() for name in ours.values()
    }
    assert said_in(fields) == said
    assert bytes(fields["metadata"]) == b'{"shop":"12"}'


def test_metadata_of_ours_alone_is_gone() -> None:
    fields = fields_of({"packshot_route": "words"})
    assert said_in(fields) == {b"x-packshot-route": b"words"}
    assert set(fields) == {"model"}


@pytest.mark.parametrize("metadata", [{"shop": "packshot_route"}, None, "packshot_", ["packshot_"]])
def test_what_is_none_of_ours_goes_on_as_it_is(metadata: Any) -> None:
    fields = fields_of(metadata)
    before = {name: bytes(raw) for name, raw in fields.items()}
    assert said_in(fields) == {}
    assert {name: bytes(raw) for name, raw in fields.items()} == before


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"packshot_rout": "words"}, "Did you mean 'packshot_route'"),
        ({"packshot_timeout_ms": 800}, "metadata.packshot_timeout_ms is text"),
        ({"packshot_tags": "größe=1"}, "metadata.packshot_tags is text in ASCII"),
    ],
)
def test_what_is_not_understood_is_told(metadata: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        said_in(fields_of(metadata))
