"""Briefs rewritten by a language model; the rules' captions stand wherever that comes to nothing.

A plan has the rules' caption already, so nothing can be lost: the model is asked, its answer is
checked, it is asked once more where that could not be used, and all of it within one deadline. What
the calls cost is booked on the id of the plan's first picture, whatever becomes of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Literal

from packshot.core.money import Nanos
from packshot.core.types import Usage
from packshot.gateway.client import Ask, Client, Reply, run
from packshot.studio.caption import Caption, Writer
from packshot.studio.caption_answer import Complaint, Fits, read_answer
from packshot.studio.caption_prompt import Prompt, load_prompt, system_text
from packshot.studio.lexicon import load_lexicon
from packshot.studio.plan import Plan

if TYPE_CHECKING:
    from packshot.engine.folder import ModelFolder

__all__ = ["Order", "Rewritten", "Subject", "Written", "rewrite", "write"]

TRIES = 2
"""Answers that are asked for: a model that was told what is wrong twice will not learn it."""

MAX_TOKENS = 1000
"""Of an answer; a good one has about 100, and a reasoning model thinks before it."""

LEAST_S = 0.5
"""No call is begun with less than this left: the fastest models answer in about half a second."""

AT_ONCE = 8
"""Briefs of a sheet that are rewritten at the same time."""

ENOUGH = 3
"""Briefs of a sheet that nobody answered, one after the other, before the others are not sent."""

SHOWN = 2000
"""Characters of an answer that could not be used, shown to the model again."""


@dataclass(frozen=True, slots=True)
class Order:
    """How captions are to be written: the gateway's ``route``, the seconds that each may take, and
    the ``recipe``, and ``batch`` if any, that they are booked on.
    """

    route: str
    deadline_s: float
    recipe: str
    batch: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A brief, the caption that the rules made of it for the model in ``folder``, and the id of the
    ``render`` that the calls are booked on.
    """

    brief: str
    caption: Caption
    folder: ModelFolder
    render: str


@dataclass(frozen=True, slots=True)
class Written:
    """A caption, the rules' with its `Caption.problem` where nothing came of the calls.

    ``cost`` is nano-EUR of all ``calls``, ``priced`` false where one has no known price, ``name``
    the "provider/model" that was called last, "" where none was.
    """

    caption: Caption
    calls: int
    cost: Nanos
    priced: bool
    name: str


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A plan with the caption that came of it, and what that took: see `Written`."""

    plan: Plan
    calls: int
    cost: Nanos
    priced: bool
    name: str


def rewrite(plans: Sequence[Plan], client: Client, order: Order) -> tuple[Rewritten, ...]:
    """Return every plan with its caption rewritten, or as it was and `Caption.problem` says why.

    Ctrl-C ends the calls, what they may cost is booked, and `KeyboardInterrupt` comes out.
    """
    return run(_all(plans, client, order))


async def write(subject: Subject, client: Client, order: Order) -> Written:
    """Return the caption of one brief, as `rewrite` does; the caller closes the client."""
    talk = _Talk(client, order, load_prompt(), subject)
    return talk.done(await talk.caption())


async def _all(plans: Sequence[Plan], client: Client, order: Order) -> tuple[Rewritten, ...]:
    start = perf_counter()
    desk = _Desk(client, order)
    try:
        made = await asyncio.gather(*(desk.write(plan) for plan in plans))
    finally:
        await client.close()
    # They are written side by side: the time that passed is all that there was to share.
    each = (perf_counter() - start) / len(plans)
    return tuple(replace(one, plan=_with_time(one.plan, each)) for one in made)


def _with_time(plan: Plan, seconds: float) -> Plan:
    return replace(plan, usage=Usage("caption", plan.usage.seconds + seconds, "cpu"))


class _Desk:
    """Where the briefs of one command are rewritten."""

    def __init__(self, client: Client, order: Order) -> None:
        self._client = client
        self._order = order
        self._prompt = load_prompt()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._unanswered = 0

    async def write(self, plan: Plan) -> Rewritten:
        """Have one brief rewritten."""
        async with self._room:
            subject = Subject(plan.brief, plan.caption, plan.folder, plan.renders[0])
            talk = _Talk(self._client, self._order, self._prompt, subject)
            if self._unanswered >= ENOUGH:
                got: Caption | _InVain = _InVain("the briefs before it had no answer", "unanswered")
            else:
                got = await talk.caption()
                self._unanswered = 0 if talk.answered else self._unanswered + 1
            told = talk.done(got)
            made = _with_caption(plan, told.caption)
            return Rewritten(made, told.calls, told.cost, told.priced, told.name)


@dataclass(frozen=True, slots=True)
class _InVain:
    """Why there is no caption, in full and in one word."""

    said: str
    why: Literal["unanswered", "deadline", "budget", "unusable"]


class _Talk:
    """The calls for one brief."""

    def __init__(self, client: Client, order: Order, prompt: Prompt, subject: Subject) -> None:
        self._client = client
        self._order = order
        self._prompt = prompt
        self._subject = subject
        self._lexicon = load_lexicon(subject.folder.lexicon_path)
        self._deadline = monotonic() + order.deadline_s
        self._replies: list[Reply] = []
        self.answered = False

    async def caption(self) -> Caption | _InVain:
        """Return the caption, or why there is none."""
        brief, complaint = self._subject.brief, ""
        messages = [("system", system_text(self._prompt, self._lexicon)), ("user", brief)]
        fits = _fitting(self._subject.folder)
        for _ in range(TRIES):
            if complaint and self._deadline - monotonic() < LEAST_S:
                near = f"the answer cannot be used, and the deadline is near: {complaint}"
                return _InVain(near, "unusable")
            reply = await self._ask(messages)
            if reply.trouble:
                if reply.kind == "refused":
                    return _InVain(reply.trouble, "unusable")
                return _InVain(reply.trouble, reply.kind or "unanswered")
            self.answered = True
            try:
                return read_answer(reply.text, brief, self._lexicon, self._prompt, fits)
            except Complaint as error:
                complaint = str(error)
                again = self._prompt.again.format(complaint=complaint)
                messages += [("assistant", reply.text[:SHOWN]), ("user", again)]
        said = f"{TRIES} answers cannot be used; the last one: {complaint}"
        return _InVain(said, "unusable")

    async def _ask(self, messages: Sequence[tuple[str, str]]) -> Reply:
        booked_on = {
            "render": self._subject.render,
            "recipe": self._order.recipe,
            "stage": "caption",
            "tags": f"prompt={self._prompt.version}",
        }
        if self._order.batch:
            booked_on["batch"] = self._order.batch
        ask = Ask(self._order.route, tuple(messages), MAX_TOKENS, self._deadline, booked_on)
        reply = await self._client.chat(ask)
        self._replies.append(reply)
        return reply

    def done(self, got: Caption | _InVain) -> Written:
        """Return the new caption, or the old one and the reason."""
        old = self._subject.caption
        if isinstance(got, _InVain):
            found, why, said = old, got.why, " ".join(got.said.split())
        else:
            found, why, said = got, "", ""
        last = self._replies[-1] if self._replies else None
        provider, model = (last.provider, last.model) if last else ("", "")
        writer = Writer(
            old.writer.by if why else "llm",
            self._prompt.version,
            self._order.route,
            provider,
            model,
            why,
        )
        caption = replace(found, writer=writer, problem=said)
        return Written(
            caption,
            len(self._replies),
            sum(reply.cost for reply in self._replies),
            all(reply.priced for reply in self._replies),
            f"{provider}/{model}" if provider else "",
        )


def _with_caption(plan: Plan, caption: Caption) -> Plan:
    """Return the plan with another caption; of its warnings, those of the old one are gone."""
    others = tuple(said for said in plan.warnings if said not in plan.caption.warnings)
    request = replace(plan.request, prompt=caption.text)
    return replace(plan, caption=caption, request=request, warnings=(*caption.warnings, *others))


def _fitting(folder: ModelFolder) -> Fits:
    """Return what tells whether a model's text encoders read a whole text."""

    def fits(text: str) -> bool:
        from packshot.engine.tokenizer import Tokenizer

        names = ("tokenizer", "tokenizer_2")
        return not any(Tokenizer.open(folder.directory(n)).encode(text).dropped for n in names)

    return fits
