"""Renders by a hosted provider: a `Renderer` whose pictures are asked for through the gateway.

`HostedRenderer` takes the same request as the engine and returns the same kind of result, so that
`packshot.studio.render.render` and the steps of recipes do not know the difference. Its attempts
are held and booked by the gateway, on the pictures' own ids, under the virtual key ``ACCOUNT``
(which is what a budget of the overflow bounds) and the tag ``overflow=WHY``. What the result says
of its use is for people: its device is "provider/model", and nobody books it a second time
(`booked_elsewhere`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from io import BytesIO
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

import numpy as np

from packshot.core.errors import ContentFiltered, HostedFailed, InvalidRequest
from packshot.core.money import Nanos
from packshot.core.types import RenderRequest, Stage, Usage
from packshot.engine.results import OnStep, RenderResult
from packshot.studio.finish import finish
from packshot.studio.record import Hosted, Maker, Record, code_mark, library_versions

if TYPE_CHECKING:
    from packshot.core.types import Original
    from packshot.gateway.background import Background
    from packshot.gateway.client import Client
    from packshot.gateway.pictures import Picture, PictureAsk
    from packshot.studio.overflow import Why
    from packshot.studio.render import Booking, Origin

__all__ = [
    "ACCOUNT",
    "BESIDE",
    "HostedOrder",
    "HostedProvider",
    "HostedRenderer",
    "HostedResult",
    "InTurn",
    "booked_elsewhere",
    "hosted_seed",
]

ACCOUNT = "studio/overflow"
"""The virtual key that overflowed renders are booked on: no configured key can have a slash."""

BESIDE: tuple[Stage, ...] = ("caption", "finish", "store")
"""The stages of a hosted render that run here, and that a `Bookkeeper` of it holds money for."""

AT_ONCE = 4
"""Pictures of one render that are asked for at the same time; of more, none is begun after one
failed."""

LARGEST_SEED = 4_294_967_294
"""Of Stability's: 1 to this, and 0 is no seed there, but the wish for any."""


@dataclass(frozen=True, slots=True)
class HostedOrder:
    """How hosted pictures are asked for.

    ``route`` is a route of the gateway or "provider/model"; ``ground_route`` one that puts a
    product on another ground, "" for none. ``deadline_s`` is how long one picture may take, all
    tries together. ``recipe`` and ``batch`` are what it is booked on.
    """

    route: str
    ground_route: str = ""
    deadline_s: float = 120.0
    recipe: str = "render"
    batch: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class HostedResult(RenderResult):
    """Pictures of a hosted provider. ``hosted`` has one for each of them, ``cost`` is nano-EUR of
    all their attempts, and ``priced`` false where one has no known price.
    """

    hosted: tuple[Hosted, ...] = ()
    cost: Nanos = 0
    priced: bool = True

    def record(self, origin: Origin, seed: int) -> Record:
        """Return the record of the picture of ``seed``: marked as hosted, and not to be repeated.

        How the provider works is not known: no steps, no guidance, no fingerprint.
        """
        done = self.request
        marked = self.hosted[done.seeds.index(seed)]
        height, width = self.images[done.seeds.index(seed)].shape[:2]
        return Record(
            brief=origin.brief,
            caption=done.prompt,
            raw=origin.raw,
            negative=done.negative_prompt,
            seed=seed,
            width=width,
            height=height,
            steps=0,
            guidance=0.0,
            sampler=done.sampler,
            schedule=done.schedule,
            spacing=done.spacing or "leading",
            precision="auto",
            vae_precision="auto",
            device="hosted",
            threads=0,
            size=(width, height),
            sharpen=None,
            model=Maker(f"{marked.provider}/{marked.model}", "", ""),
            code=code_mark(),
            libraries=library_versions(),
            writer=origin.caption.writer,
            hosted=marked,
        )


class HostedProvider:
    """The hosted provider of a command or batch. Its renderers may be used from any thread.

    ``client`` makes the client when the first picture is asked for, and not before: where all
    renders are our own, there is no gateway. ``on_call`` hears of each picture that was asked for:
    of whom ("provider/model"), what it cost, and whether that is known; of those that came to
    nothing, too. Close it before the ledger.
    """

    def __init__(
        self,
        client: Callable[[], Client],
        order: HostedOrder,
        on_call: Callable[[str, Nanos, bool], None] | None = None,
    ) -> None:
        self.order = order
        self._make = client
        self._on_call = on_call
        self._background: Background | None = None
        self._lock = threading.Lock()

    def renderer(
        self, renders: Sequence[str], why: Why, size: tuple[int, int] | None = None
    ) -> HostedRenderer:
        """Return who makes the pictures ``renders`` (ids in the ledger), for the reason ``why``.

        ``size`` is that of its pictures; None takes the request's.
        """
        return HostedRenderer(self, tuple(renders), why, size)

    def pictures(self, asks: Sequence[PictureAsk]) -> list[Picture]:
        """Ask for pictures, some at a time; after one that failed, the rest are not asked for."""
        background = self._begun()
        got: list[Picture] = []
        for at in range(0, len(asks), AT_ONCE):
            if all(not picture.trouble for picture in got):
                got += background.pictures(asks[at : at + AT_ONCE])
        if self._on_call is not None:
            for picture in got:
                if picture.provider:
                    name = f"{picture.provider}/{picture.model}"
                    self._on_call(name, picture.cost, picture.priced)
        return got

    def _begun(self) -> Background:
        from packshot.gateway.background import Background

        with self._lock:
            if self._background is None:
                self._background = Background(self._make())
            return self._background

    def close(self) -> None:
        """End what is under way, and close the connections."""
        background, self._background = self._background, None
        if background is not None:
            background.close()


class InTurn:
    """The renderer of whatever is being booked: for who renders one picture after the other.

    It is the `Booking`, too: give it as both. ``booking`` is who really books. For one thread.
    """

    device_kind = "hosted"

    def __init__(self, provider: HostedProvider, why: Why, booking: Booking) -> None:
        self._provider = provider
        self._why: Why = why
        self._booking = booking
        self._renders: tuple[str, ...] = ()

    def booked(
        self,
        models: Sequence[str],
        meter: list[Usage],
        delivered: Sized,
        renders: Sequence[str],
        *,
        tags: Sequence[str] = (),
    ) -> AbstractContextManager[None]:
        """Book what happens inside; see `packshot.studio.render.Booking`."""
        self._renders = tuple(renders)
        return self._booking.booked(models, meter, delivered, renders, tags=tags)

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> HostedResult:
        """Return the pictures of a request; see `HostedRenderer.render`."""
        renderer = self._provider.renderer(self._renders, self._why)
        return renderer.render(request, on_step=on_step)


@dataclass(frozen=True, slots=True)
class HostedRenderer:
    """A `packshot.studio.render.Renderer` of the pictures ``renders``."""

    provider: HostedProvider
    renders: tuple[str, ...]
    why: Why
    size: tuple[int, int] | None = None
    device_kind: str = field(default="hosted", init=False)

    def render(self, request: RenderRequest, *, on_step: OnStep | None = None) -> HostedResult:
        """Return one picture per seed; there are no steps to be told of.

        Raises:
            ContentFiltered: the provider refused, or withheld a picture.
            HostedFailed: it made none, or not all.
            InvalidRequest: the gateway is not installed, or packshot.yaml has a mistake.
        """
        del on_step
        _check_installed()
        start = perf_counter()
        asks = self._asks(request)
        got = self.provider.pictures(asks)
        _check(got, len(asks))
        seconds = perf_counter() - start
        size = self.size or (request.width, request.height)
        hosted = tuple(self._mark(ask, picture) for ask, picture in zip(asks, got, strict=True))
        name = f"{got[0].provider}/{got[0].model}"
        return HostedResult(
            images=tuple(_pixels(picture.data, size) for picture in got),
            usage=(Usage("denoise", seconds, name, images=len(got)),),
            warnings=(_said(name, self.why),),
            request=request,
            model=name,
            fingerprint="",
            device=name,
            precision="auto",
            hosted=hosted,
            cost=sum(picture.cost for picture in got),
            priced=all(picture.priced for picture in got),
        )

    def _asks(self, request: RenderRequest) -> list[PictureAsk]:
        from packshot.gateway.pictures import PictureAsk

        order, original = self.provider.order, request.original
        route = order.route
        if original is not None and original.mask is not None:
            route = order.ground_route
            if not route:
                raise HostedFailed(
                    "a render that keeps a part of a picture is not one for "
                    f"{order.route}: name one that replaces grounds in studio.overflow.ground_to, "
                    "such as stability/replace-background-and-relight"
                )
        ask = partial(
            PictureAsk,
            route,
            request.prompt,
            monotonic() + order.deadline_s,
            size=self.size or (request.width, request.height),
            negative=request.negative_prompt,
            image=_file(original),
            strength=original.strength if original and original.mask is None else None,
            account=ACCOUNT,
        )
        said = {"recipe": order.recipe, "batch": order.batch, "stage": "denoise"}
        said["tags"] = f"overflow={self.why}"
        return [
            ask(seed=hosted_seed(seed), booked_on={"render": render, **said})
            for seed, render in zip(request.seeds, self.renders, strict=True)
        ]

    def _mark(self, ask: PictureAsk, picture: Picture) -> Hosted:
        return Hosted(picture.provider, picture.model, ask.route, self.why, picture.seed)


def _check_installed() -> None:
    try:
        import_module("packshot.gateway.background")
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"a hosted provider is called with {error.name}, which is not installed: "
            'pip install "packshot[gateway]", or take studio.overflow out of packshot.yaml'
        ) from error


def hosted_seed(seed: int) -> int:
    """Return a seed for the provider: the same, where it takes it, and always the same one."""
    return seed % LARGEST_SEED or LARGEST_SEED


def booked_elsewhere(part: Usage) -> bool:
    """Tell whether a use was a hosted provider's, which the gateway has booked."""
    return "/" in part.device


def _check(got: Sequence[Picture], wanted: int) -> None:
    bad = [picture for picture in got if picture.trouble]
    if not bad:
        return
    good = len(got) - len(bad)
    beside = f"; {good} of {wanted} were made, and are paid for" if good else ""
    first = next((picture for picture in bad if picture.kind == "refused"), bad[0])
    said = f"the hosted provider made no picture: {first.trouble}{beside}"
    raise (ContentFiltered if first.kind == "refused" else HostedFailed)(said)


def _pixels(data: bytes, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a file's picture at ``size``; nothing is stretched, margins are cut off."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            return np.asarray(finish(image, size, None), dtype=np.uint8)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise HostedFailed(f"what the hosted provider sent cannot be read: {error}") from error


def _file(original: Original | None) -> bytes | None:
    """Return the picture that a render starts from as a PNG file."""
    if original is None:
        return None
    from PIL.Image import fromarray

    out = BytesIO()
    fromarray(original.picture).save(out, "PNG")
    return out.getvalue()


def _said(name: str, why: Why) -> str:
    reasons = {
        "device": "no device is alive here",
        "wait": "the line here is too long",
        "deadline": "it would be late here",
    }
    return f"made by {name}, for {reasons.get(why, why)}"
