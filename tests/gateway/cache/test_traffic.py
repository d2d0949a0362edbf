"""Pairs of one's own traffic: who labelled them, and which are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest

from packshot.gateway.cache.embed import Vectors
from packshot.gateway.cache.traffic import Traffic, asked_of, from_checks, near_pairs
from packshot.gateway.content import Content
from tests.gateway.cache.test_audit import check_of


def encode(texts: Sequence[str]) -> Vectors:
    """Count words."""
    rows = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            row[crc32(word.encode()) % 64] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def content(
    text: str, answer: str, *, key: str = "one", system: str = "s", **more: object
) -> Content:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    request = json.dumps({"model": "m", "messages": messages}).encode()
    said = {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
    fields = {
        "at": 0.0, "id": "x", "virtual_key": key, "team": "", "surface": "chat",
        "route": "caption", "provider": "p", "model": "m", "status": 200,
        "request": request, "response": json.dumps(said).encode(), **more,
    }  # fmt: skip
    return Content(**fields)  # type: ignore[arg-type]


def paired(*contents: Content) -> Traffic:
    found = Traffic()
    near_pairs(asked_of(contents), encode, 0.3, found)
    return found


LONG = "on a beach at dawn with a wide hat and two towels"


def test_checks_are_labelled_by_who_judged_them() -> None:
    found = Traffic()
    rows = [
        check_of(verdict="same", judge="ann"),
        check_of(verdict="false", note="bench (judge-1): different. another size"),
        check_of(verdict="false", note="not in the answer: size EU 42"),
        check_of(verdict="open", note="bench (judge-1): undecided. "),
    ]
    from_checks(rows, found)
    assert found.sources == {"person": 1, "judge": 1, "slots": 1}
    assert found.unsure == {"caption": 1}
    pair = found.pairs[0]
    assert (pair.a, pair.b, pair.same, pair.answer_a, pair.answer_b) == ("b", "a", True, "s", "f")


@pytest.mark.parametrize(
    ("second", "answer", "label"),
    [
        (f"a red mug, {LONG}", "A red mug, softly lit", True),
        (f"{LONG}: a red mug", "A red mug on the sand", True),
        (f"a blue mug {LONG}", "A blue mug, softly lit", False),
        (f"a red jug {LONG}", "A red jug, softly lit", False),
        (f"a lovely red mug {LONG}", "A red mug on the sand", None),
        (f"a lovely red mug {LONG}", "A red mug, softly lit", True),
        (f"{LONG}: a red mug", "Something else entirely, no more", False),
    ],
)
def test_answers_tell_whether_two_were_needed(second: str, answer: str, label: bool | None) -> None:
    found = paired(content(f"a red mug {LONG}", "A red mug, softly lit"), content(second, answer))
    assert [pair.same for pair in found.pairs] == ([] if label is None else [label])
    assert found.unsure["caption"] == (label is None)


def test_callers_and_partitions_are_never_paired() -> None:
    first, second = f"a red mug {LONG}", f"a red mug, {LONG}"
    assert not paired(content(first, "a"), content(second, "a", key="two")).pairs
    assert not paired(content(first, "a"), content(second, "a", system="t")).pairs
    assert len(paired(content(first, "a"), content(second, "a")).pairs) == 1


def test_what_has_no_good_answer_is_passed_over_and_streams_are_read() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a red"}}]},
        {"choices": [{"index": 0, "delta": {"content": " mug"}, "finish_reason": "stop"}]},
    ]
    about = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = "".join(f"data: {json.dumps({**about, **chunk})}\n\n" for chunk in chunks)
    stream = content("a red mug", "", response=(events + "data: [DONE]\n\n").encode())
    bad = [
        content("a red mug", "x", status=500),
        content("a red mug", "x", surface="embeddings"),
        content("a red mug", ""),
        content("a red mug", "x", request=b"{"),
    ]
    assert [each.answer for each in asked_of([stream, *bad])] == ["a red mug"]
