"""Captions by a language model: who is asked how often, and what stands in the end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from packshot.gateway.client import Ask, Reply
from packshot.studio import rewrite as module
from packshot.studio.plan import Options, Plan, plan, plan_like
from packshot.studio.record import Record, read_record
from packshot.studio.render import render
from packshot.studio.rewrite import Order, Rewritten, rewrite
from packshot.studio.sheet import Brief, plan_sheet
from tests.studio.provider import GOOD
from tests.studio.stub import StubEngine

BRIEF = "white sneakers on a sandy beach"
ORDER = Order("prompt-rewrite", 8.0, "render")
BY_LLM = "white sneakers on a sandy beach, warm evening light, light from the left, seen from above"


def reply(**changed: str) -> Reply:
    return Reply(json.dumps(GOOD | changed), "", "", "openai", "gpt-4o-mini", 1, 70)


DOWN = Reply("", "every provider is down", "unanswered", "anthropic", "claude-haiku-4-5", 3, 0)


@dataclass
class StubClient:
    """Answers in order, the last for ever; remembers who asked what."""

    replies: list[Reply]
    asks: list[Ask] = field(default_factory=list)
    closed: int = 0
    most: int = 0
    now: int = 0

    async def chat(self, ask: Ask) -> Reply:
        self.asks.append(ask)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def planned(folder: Path, tmp_path: Path) -> Plan:
    options = Options(BRIEF, model=str(folder), count=2, seed=7, out=str(tmp_path / "x.png"))
    return plan(options)


def one(planned: Plan, *replies: Reply, order: Order = ORDER) -> tuple[Rewritten, StubClient]:
    client = StubClient(list(replies))
    (made,) = rewrite((planned,), client, order)
    assert client.closed == 1
    return made, client


def test_a_good_answer_is_the_caption(planned: Plan) -> None:
    made, client = one(planned, reply())
    assert made.plan.caption.text.startswith(BY_LLM)
    assert made.plan.request.prompt == made.plan.caption.text
    assert made.plan.request == replace(planned.request, prompt=made.plan.caption.text)
    assert (made.calls, made.cost, made.priced, made.name) == (1, 70, True, "openai/gpt-4o-mini")
    writer = made.plan.caption.writer
    assert (writer.by, writer.prompt, writer.why) == ("llm", "caption-1", "")
    assert made.plan.usage.seconds > planned.usage.seconds
    (ask,) = client.asks
    assert ask.booked_on == {
        "render": planned.renders[0],
        "recipe": "render",
        "stage": "caption",
        "tags": "prompt=caption-1",
    }
    assert ask.messages[1] == ("user", BRIEF)
    assert "on a sandy beach, on a wooden table" in ask.messages[0][1]


def test_a_bad_answer_is_sent_back_once_with_what_is_wrong(planned: Plan) -> None:
    made, client = one(planned, reply(product="handbag"), reply())
    assert made.plan.caption.text.startswith(BY_LLM)
    assert (made.calls, made.cost) == (2, 140)
    assert [role for role, _ in client.asks[1].messages] == ["system", "user", "assistant", "user"]
    assert "the brief's product is 'sneakers'" in client.asks[1].messages[3][1]
    assert client.asks[0].deadline == client.asks[1].deadline


@pytest.mark.parametrize(
    ("replies", "order", "calls", "why"),
    [
        ([reply(product="handbag")], ORDER, 2, "2 answers cannot be used; the last one: the brief"),
        ([DOWN], ORDER, 1, "every provider is down"),
        ([reply(product="handbag"), DOWN], ORDER, 2, "every provider is down"),
        ([reply(framing="")], replace(ORDER, deadline_s=0.1), 1, "the deadline is near: framing"),
    ],
)
def test_else_the_rules_stand_and_what_was_spent_is_said(
    planned: Plan, replies, order: Order, calls: int, why: str
) -> None:
    made, client = one(planned, *replies, order=order)
    assert made.plan.caption.text == planned.caption.text
    assert made.plan.request == planned.request
    assert made.plan.warnings == planned.warnings
    assert len(client.asks) == made.calls == calls
    assert made.cost == sum((replies * 2)[n].cost for n in range(calls))
    writer = made.plan.caption.writer
    assert writer.by == "rules"
    assert writer.why == ("unanswered" if replies[-1] is DOWN else "unusable")
    assert why in made.plan.caption.problem


def test_warnings_are_those_of_the_caption_that_stands(folder: Path, tmp_path: Path) -> None:
    options = Options(
        "white sneakers on a lava field", model=str(folder), size="64x128", out=str(tmp_path)
    )
    before = plan(options)
    assert len(before.warnings) == 2
    made, _ = one(before, reply())
    assert made.plan.warnings == before.warnings[1:]


def test_the_record_says_who_wrote_and_like_keeps_it(planned: Plan, folder: Path) -> None:
    made, _ = one(planned, reply())
    first, _ = render(made.plan, StubEngine()).pictures
    record = read_record(first.path)
    assert record.caption == made.plan.caption.text
    assert record.writer == made.plan.caption.writer
    again = plan_like(record, model=str(folder), out=str(first.path.with_name("again.png")))
    assert again.caption.writer == record.writer
    render(again, StubEngine())
    assert first.path.with_name("again.png").read_bytes() == first.path.read_bytes()


def test_an_older_picture_has_a_record_too(planned: Plan) -> None:
    record = read_record(render(planned, StubEngine()).pictures[0].path)
    written_before = msgspec.to_builtins(record)
    del written_before["writer"]
    assert msgspec.convert(written_before, Record) == record


def sheet_of(folder: Path, tmp_path: Path, count: int) -> tuple[Plan, ...]:
    briefs = [Brief(n, BRIEF) for n in range(count)]
    options = Options("", model=str(folder), out=str(tmp_path / "s.png"))
    return plan_sheet(Path("briefs.txt"), briefs, options, 4)


def test_the_briefs_of_a_sheet_are_asked_for_side_by_side(folder, tmp_path) -> None:
    plans = sheet_of(folder, tmp_path, 20)
    client = StubClient([reply()])
    made = rewrite(plans, client, ORDER)
    assert client.most == module.AT_ONCE
    assert {ask.booked_on["render"] for ask in client.asks} == {p.renders[0] for p in plans}
    assert all(one.plan.caption.writer.by == "llm" for one in made)


def test_where_nobody_answers_not_every_brief_waits_for_it(folder, tmp_path) -> None:
    client = StubClient([DOWN])
    made = rewrite(sheet_of(folder, tmp_path, 40), client, ORDER)
    assert len(client.asks) < module.ENOUGH + 2 * module.AT_ONCE
    assert made[-1].plan.caption.problem == "the briefs before it had no answer"
    assert made[-1].calls == 0


def test_ctrl_c_comes_out_and_the_client_is_closed(planned: Plan) -> None:
    class Impatient(StubClient):
        async def chat(self, ask: Ask) -> Reply:
            raise KeyboardInterrupt

    client = Impatient([DOWN])
    with pytest.raises(KeyboardInterrupt):
        rewrite((planned,), client, ORDER)
    assert client.closed == 1


def test_prose_that_the_encoders_do_not_read_whole_is_sent_back(tiny_sdxl: Path, tmp_path) -> None:
    planned = plan(Options("white sneakers", model=str(tiny_sdxl), out=str(tmp_path / "x.png")))
    assert planned.caption.writer.by == "none"
    prose = {"ground": "on wet sand", "lighting": "soft light", "framing": "view from above"}
    long = reply(ground="on wet sand, " + "qx vj wk " * 16)
    made, client = one(planned, long, reply(**prose))
    assert "too long" in client.asks[1].messages[3][1]
    assert made.plan.caption.text == "white sneakers on wet sand, soft light, view from above"
    assert "at most 45 words" in client.asks[0].messages[0][1]
