"""What moves on the terminal while a batch runs: pictures, their speed, EUR, ETA, failures."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from packshot.cli import terminal
from packshot.core.money import show_eur

if TYPE_CHECKING:
    from packshot.studio.batch.tally import Tally

__all__ = ["count_of", "line_of", "shown", "span"]

EVERY_S = 30.0
"""Between two lines where the output is no terminal."""

PLACES = 4


@contextmanager
def shown(tally: Tally) -> Generator[Callable[[Tally], None]]:
    """Show how far a run is: a bar on a terminal, elsewhere a line now and then."""
    console = terminal.stderr()
    if console.is_terminal:
        with _bar(tally) as tell:
            yield tell
        return
    last = monotonic()

    def say(now: Tally) -> None:
        nonlocal last
        if monotonic() - last >= EVERY_S:
            last = monotonic()
            terminal.note(line_of(now))

    yield say


def line_of(tally: Tally) -> str:
    """Return how far a run is, in one line that fits 80 columns."""
    eta = tally.eta_s()
    parts = [
        f"{tally.done:,}/{tally.before.works:,}",
        _speed(tally.speed()),
        f"{show_eur(tally.amount, PLACES)} EUR",
        f"ETA {span(eta)}" if eta is not None else "",
        f"{tally.elsewhere:,} elsewhere" if tally.elsewhere else "",
        f"{tally.failed_attempts} failed" if tally.failed_attempts else "",
        f"{tally.quarantined} quarantined" if tally.quarantined else "",
        f"no captions: {tally.waiting[:60]}" if tally.waiting else "",
    ]
    return ", ".join(part for part in parts if part)


def count_of(pictures: int) -> str:
    """Return a number of pictures for people: "1 picture", "2,000 pictures"."""
    return f"{pictures:,} picture" + ("" if pictures == 1 else "s")


def span(seconds: float) -> str:
    """Return a time for people: "40 s", "12 min", "3.2 h", "5.1 d"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def _speed(speed: float) -> str:
    if not speed:
        return ""
    return f"{speed:.2f} pictures/s" if speed >= 0.1 else f"{1 / speed:.0f} s/picture"


@contextmanager
def _bar(tally: Tally) -> Generator[Callable[[Tally], None]]:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=16), TextColumn("{task.description}"))
    with Progress(
        *columns, console=terminal.stderr(), transient=True, refresh_per_second=4
    ) as progress:
        task = progress.add_task("starting", total=max(1, tally.before.works))

        def tell(now: Tally) -> None:
            starting = not now.made and not now.delivered
            said = "loading the model" if starting else line_of(now)
            progress.update(task, completed=now.done, description=said)

        yield tell
