"""A worker's work without an engine: what is told to go wrong does, and a truth log says what was.

Its factory is ``tests.studio.batch.stub:load``; settings: ``truth`` (a file), ``faults`` (by the
brief's last word), ``pause_s`` (how long a picture takes), ``finish_s`` (how long it then takes to
be finished, beside the next one; without it, all is one).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from packshot.core.errors import (
    CheckFailed,
    DeviceLost,
    InvalidRequest,
    OutOfMemory,
    OutputError,
    RenderFailed,
)
from packshot.core.types import Usage
from packshot.studio.batch.spool import Spool
from packshot.studio.batch.state import Made
from packshot.studio.batch.worker import Job, Rest

FACTORY = "tests.studio.batch.stub:load"

ENCODE_S, DENOISE_S = 0.0001, 0.0004
"""What a picture is said to take: less than it does, or it would be fitted to that."""


class Truth(msgspec.Struct):
    """A line of the truth log: an attempt that began, and what it used if it came to its end."""

    render: str
    brief: str
    seed: int
    usage: tuple[Usage, ...] = ()


def read_truth(path: Path) -> list[Truth]:
    """Return every whole line."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=Truth) for line in lines]


class Stub:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.truth = Path(settings["truth"]) if settings.get("truth") else None
        self.once = Path(settings.get("once") or folder / "once")
        self.pause_s = float(settings.get("pause_s", 0.0))
        self.large = bool(settings.get("large"))
        self.spool = Spool(folder)

    def say(self, truth: Truth) -> None:
        if self.truth is None:
            return
        file = os.open(self.truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, msgspec.json.encode(truth) + b"\n")
        os.close(file)

    def first(self, what: str) -> bool:
        """Tell whether this was never asked before, in any process."""
        self.once.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self.once / what, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def fail(self, brief: str, job: Job) -> None:
        """Do what the brief's words ask for: "crash", "hang", "oom" …, with "once" only once."""
        words = brief.split()
        if "once" in words and not self.first(str(job.item.seed)):
            return
        for word in words:
            if word in FAULTS:
                FAULTS[word]()

    def __call__(self, job: Job, /) -> Made:
        item = job.item
        self.say(Truth(job.render, item.brief, item.seed))
        for _ in range(4):
            time.sleep(max(self.pause_s, 0.002) / 4)
            job.step()
        job.usage.append(Usage("encode", ENCODE_S, "cpu"))
        job.tags.append(f"core={item.seed}")
        self.fail(item.brief, job)
        job.usage.append(Usage("denoise", DENOISE_S, "cpu", steps=4))
        return self.kept(job)

    def kept(self, job: Job) -> Made:
        """Put the picture into the run's folder."""
        item = job.item
        data = f"{item.brief} {item.seed} {sorted(item.parameters.items())}".encode() * 50
        if self.large and item.brief.endswith("large"):
            data += random.Random(item.seed).randbytes(17 << 20)
        kept = self.spool.put(data, "picture.png")
        self.say(Truth(job.render, item.brief, item.seed, tuple(job.usage)))
        return Made(
            job.render, kept.key, "picture.png", kept.sha256, kept.size, item.seed, "", {},
            tags=tuple(job.tags),
        )  # fmt: skip


class LateStub(Stub):
    """One that finishes a picture while the next has the device: for ``finish_s``.

    What is to go wrong does so on the device, or with the word "late" behind it.
    """

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(settings, folder)
        self.finish_s = float(settings["finish_s"])
        self.device = threading.Lock()

    def begin(self, job: Job, /) -> Rest:
        if not self.device.acquire(blocking=False):
            raise AssertionError("two have the device at once")
        try:
            self.render(job)
        finally:
            self.device.release()
        return lambda: self.finish(job)

    def render(self, job: Job) -> None:
        brief = job.item.brief
        self.say(Truth(job.render, brief, job.item.seed))
        time.sleep(self.pause_s)
        job.step()
        job.usage.append(Usage("encode", ENCODE_S, "cpu"))
        job.tags.append(f"core={job.item.seed}")
        if "late" not in brief:
            self.fail(brief, job)
        job.usage.append(Usage("denoise", DENOISE_S, "cpu", steps=4))

    def finish(self, job: Job) -> Made:
        time.sleep(self.finish_s)
        if "late" in job.item.brief:
            self.fail(job.item.brief, job)
        return self.kept(job)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    while True:
        time.sleep(60)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def memory() -> None:
    raise MemoryError("CUDA out of memory")


def lost() -> None:
    raise DeviceLost("the GPU's context is broken and this process cannot use it again")


def full() -> None:
    raise OutOfMemory("the device has no room for this render")


def nan() -> None:
    raise RenderFailed("the picture came out as NaN")


def unfit() -> None:
    raise CheckFailed("the product is drawn on beyond its outline, with every seed")


def refused() -> None:
    raise InvalidRequest("nobody can photograph this")


def disk() -> None:
    raise OutputError("cannot write made/x: No space left on device")


FAULTS: dict[str, Callable[[], None]] = {
    "crash": crash,
    "hang": hang,
    "freeze": freeze,
    "oom": memory,
    "lost": lost,
    "full": full,
    "nan": nan,
    "unfit": unfit,
    "refused": refused,
    "disk": disk,
}


def load(settings: dict[str, Any], folder: Path, on_device: Callable[[str], None]) -> Stub:
    """Return the stub; ``load`` in the settings is what goes wrong while it is loaded."""
    on_device("cpu")
    stub = LateStub(settings, folder) if "finish_s" in settings else Stub(settings, folder)
    fault = settings.get("load", "")
    if fault and ("once" not in fault or stub.first("load")):
        FAULTS[fault.split()[0]]()
    return stub
