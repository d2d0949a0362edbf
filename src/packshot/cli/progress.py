"""What moves on the terminal while a render runs: a spinner, then a bar with speed and ETA."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from packshot.cli import terminal

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    from packshot.engine.results import OnStep, Progress

__all__ = ["bar", "counting", "spinner"]


@contextmanager
def spinner(text: str) -> Generator[None]:
    """Show that something without steps is going on; nothing where stderr is no terminal."""
    console = terminal.stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(text, spinner="dots"):
        yield


@contextmanager
def bar(pictures: int, steps: int) -> Generator[OnStep]:
    """Show a bar over all pictures, ``steps`` each, and yield what an engine tells each step to."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = terminal.stderr()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _speed_column(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    quiet = not console.is_terminal
    with Bar(
        *columns, console=console, transient=True, disable=quiet, refresh_per_second=5
    ) as shown:
        task = shown.add_task("encode ", total=pictures * steps)

        def tell(_: Progress) -> None:
            shown.advance(task)
            done = int(shown.tasks[task].completed)
            now = f"denoise {done // steps + 1}/{pictures}" if pictures > 1 else "denoise"
            shown.update(task, description=now if done < pictures * steps else "decode ")

        yield tell


@contextmanager
def counting(what: str, count: int) -> Generator[Callable[[], None]]:
    """Show a bar over ``count`` things; what it yields is called after each."""
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = terminal.stderr()
    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), f"{what}, ETA", TimeRemainingColumn())
    quiet = not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=quiet) as shown:
        task = shown.add_task("", total=count)
        yield lambda: shown.advance(task)


def _speed_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        """Steps per second."""

        def render(self, task: Task) -> Text:
            """Return the speed so far, blank before the second step."""
            speed = task.finished_speed or task.speed
            pace = terminal.pace(speed, 1.0) if speed else ""
            return Text(f"{pace:>10}", style="progress.data.speed")

    return SpeedColumn()
