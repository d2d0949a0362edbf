"""``packshot render``: a brief in, a picture out."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.cli.caption import Choice, choose, written
from packshot.core.errors import InvalidRequest
from packshot.studio import defaults

if TYPE_CHECKING:
    from packshot.cli.booking import Books
    from packshot.engine.results import OnStep, Progress
    from packshot.studio.hosted import HostedProvider
    from packshot.studio.overflow import Why
    from packshot.studio.plan import Plan
    from packshot.studio.render import Delivery

__all__ = ["render"]

BESIDE_LIKE = frozenset(
    ("like", "model", "image", "mask", "out", "preview", "show_caption", "as_json")
)
"""What may be chosen along with ``--like``: nothing that changes the bits."""


def render(
    ctx: typer.Context,
    brief: o.Brief = "",
    *,
    count: o.Count = 1,
    out: o.Out = None,
    preview: o.Preview = False,
    show_caption: o.ShowCaption = False,
    like: o.Like = None,
    as_json: o.AsJson = False,
    size: o.Size = None,
    seed: o.Seed = None,
    negative: o.Negative = "",
    raw: o.Raw = False,
    caption: o.CaptionBy = None,
    strict: o.Strict = False,
    sharpen: o.Sharpen = True,
    image: o.Image = None,
    strength: o.Strength = None,
    mask: o.Mask = None,
    steps: o.Steps = defaults.STEPS,
    guidance: o.Guidance = defaults.GUIDANCE,
    sampler: o.Sampler = defaults.SAMPLER,
    schedule: o.Schedule = defaults.SCHEDULE,
    spacing: o.Spacing = None,
    model: o.Model = defaults.MODEL,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    vae_precision: o.VaePrecision = "auto",
    graphs: o.Graphs = True,
    invariant: o.Invariant = False,
    fine_texture: o.FineTexture = False,
) -> None:
    """Render a product photograph from a BRIEF."""
    from packshot.studio.finish import DEFAULT_SHARPEN
    from packshot.studio.plan import Options, plan
    from packshot.studio.settings import load_engine_settings

    if like is not None:
        planned, choice = _plan_again(ctx, like, out), "none"
    else:
        choice = choose(caption, raw=raw)
        options = Options(
            brief=brief, count=count, seed=seed, size=size, steps=steps, guidance=guidance,
            negative=negative, sampler=sampler, schedule=schedule, spacing=spacing, model=model,
            precision=precision, vae_precision=vae_precision, graphs=graphs, invariant=invariant,
            fine_texture=fine_texture, device=device, out=out, raw=choice == "none", strict=strict,
            sharpen=DEFAULT_SHARPEN if sharpen else None, image=image, mask=mask, strength=strength,
            buckets=load_engine_settings().sizes,
        )  # fmt: skip
        planned = plan(options)
    _deliver(planned, choice, preview=preview, show_caption=show_caption, as_json=as_json)


def _plan_again(ctx: typer.Context, like: Path, out: str | None) -> Plan:
    """Return the plan of the picture ``like``; refuse a choice that would make another picture."""
    from packshot.studio.plan import plan_like
    from packshot.studio.record import read_record

    given = {name for name in ctx.params if _was_given(ctx, name)}
    spare = sorted(given - BESIDE_LIKE)
    if spare:
        named = ", ".join(name.replace("_", "-") for name in spare)
        raise InvalidRequest(
            f"--like takes every choice from the picture; leave out {named}, or leave out --like"
        )
    return plan_like(
        read_record(like),
        model=str(ctx.params["model"]) if "model" in given else None,
        out=out,
        image=ctx.params["image"],
        mask=ctx.params["mask"],
    )


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _deliver(
    plan: Plan, choice: Choice, *, preview: bool, show_caption: bool, as_json: bool
) -> None:
    """Have the caption written, load the model, render, and say what came of it.

    The ledger is opened first: where it cannot be written, nothing is asked for or rendered.
    """
    from packshot.cli import report
    from packshot.cli.booking import bookkeeping

    with bookkeeping("render") as books:
        (plan,) = written((plan,), choice, books, "render")
        if show_caption and not as_json:
            report.show_caption(plan.caption)
        for warning in plan.warnings:
            terminal.warn(warning)
        if plan.caption.ignored:
            terminal.note(f"left out of the caption: {', '.join(plan.caption.ignored)}")
        delivery, load_seconds = _render(plan, books, preview=preview)
    for warning in delivery.warnings[len(plan.warnings) :]:
        terminal.warn(warning)
    bill = books.keeper.bill
    if as_json:
        report.print_json(report.render_facts(plan, delivery, load_seconds, bill))
    else:
        report.show_render(plan, delivery, load_seconds, bill)


def _render(plan: Plan, books: Books, *, preview: bool) -> tuple[Delivery, float]:
    """Return what was delivered, and the seconds that loading took with torch's import.

    Where packshot.yaml says where to, a render whose device is not there, or dies, goes there.
    """
    from packshot.cli.overflow import rendered

    return rendered(
        books,
        "render",
        lambda: _own(plan, books, preview=preview),
        lambda provider, why: (_hosted(plan, books, provider, why), 0.0),
    )


def _hosted(plan: Plan, books: Books, provider: HostedProvider, why: Why) -> Delivery:
    """Return what a hosted provider made in our stead."""
    from packshot.cli.progress import spinner
    from packshot.studio.hosted import BESIDE
    from packshot.studio.render import render

    renderer = provider.renderer(plan.renders, why, plan.size)
    with spinner(f"asking {provider.order.route} for {len(plan.renders)} pictures"):
        return render(plan, renderer, booking=books.keeper.beside(BESIDE))


def _own(plan: Plan, books: Books, *, preview: bool) -> tuple[Delivery, float]:
    """Return what our own device made, and the seconds that loading took with torch's import."""
    from packshot.cli.progress import bar, spinner
    from packshot.studio.embeddings import kept_embeddings
    from packshot.studio.preview import watch_into
    from packshot.studio.render import load_engine, render
    from packshot.studio.settings import load_studio

    watchers: list[OnStep] = []
    if preview:
        watchers.append(watch_into(plan.targets[0].path.with_name(defaults.PREVIEW_NAME)))
    with kept_embeddings(load_studio().embeddings) as embeddings:
        start = perf_counter()
        with spinner(f"loading {plan.folder.name}"), books.session.loading() as on_device:
            engine = load_engine(plan, on_device, embeddings)
        load_seconds = perf_counter() - start
        with bar(len(plan.request.seeds), plan.request.steps_taken) as tell:
            watchers.append(tell)

            def on_step(progress: Progress) -> None:
                for watcher in watchers:
                    watcher(progress)

            return render(plan, engine, on_step, books.keeper), load_seconds
