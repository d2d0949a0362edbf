"""`packshot doctor`: what this machine has, what a render would use, what is missing and the cure.

Versions come from metadata and the system, so that a machine without torch gets an answer too.
torch itself is imported last, and only to ask it about GPUs and threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import typer

from packshot.cli import terminal
from packshot.cli.machine import GIB, Machine, installed, look
from packshot.core.errors import ModelCorrupt, PackshotError
from packshot.studio import defaults

if TYPE_CHECKING:
    from rich.console import Console

    from packshot.engine.outlook import Outlook

__all__ = ["Finding", "State", "diagnose", "doctor", "healthy"]

State = Literal["ok", "warning", "missing"]
Topic = Literal["this machine", "installed", "a render will use"]

PYTHON_OLDEST = (3, 11)
TORCH_OLDEST = (2, 11)
LIBRARIES = ("numpy", "pillow", "safetensors", "tokenizers")
MEMORY_ENOUGH = 2 * GIB  # a render of packshot-mini stays under 1 GiB; the rest is the system's
DISK_ENOUGH = GIB // 10  # a picture is some 100 kB

INSTALL = "rm -f .venv/*.stamp && ./packshot doctor   (in the checkout)"
RESTORE = "git checkout -- packages/packshot-mini   (in the checkout)"
CUDA_TORCH = "rm -r .venv && PACKSHOT_TORCH_INDEX=URL ./packshot doctor   (URL: CUDA builds)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``cure`` is the command that mends what is not ``ok``."""

    topic: Topic
    what: str
    value: str
    state: State = "ok"
    cure: str = ""


def doctor(model: str, *, as_json: bool) -> NoReturn:
    """Print the report and exit: 0, or 1 where a render would fail."""
    from packshot.cli.report import print_json

    findings = diagnose(model)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        print_json({"ok": healthy(findings), "findings": rows})
    else:
        show(findings, terminal.out())
    raise typer.Exit(0 if healthy(findings) else 1)


def healthy(findings: Iterable[Finding]) -> bool:
    """Tell whether a render would work: warnings do not speak against it."""
    return all(finding.state != "missing" for finding in findings)


def diagnose(model: str = defaults.MODEL) -> list[Finding]:
    """Return every finding about this machine, its libraries, ``model``, and a render here."""
    machine = look(Path.cwd())
    libraries = [_torch(installed("torch")), _libraries()]
    findings = [*_machine(machine), *libraries, _model(model), _cache_model()]
    if all(finding.state == "ok" for finding in libraries):
        findings.extend(_outlook(machine))
    return findings


def _machine(machine: Machine) -> Iterator[Finding]:
    topic: Topic = "this machine"
    yield Finding(topic, "system", machine.system)
    if _numbers(machine.python) >= PYTHON_OLDEST:
        slow = "" if machine.optimized else ", built without PGO: the gateway is 13 to 30 % slower"
        yield Finding(topic, "Python", machine.python + slow)
    else:
        yield Finding(topic, "Python", machine.python, "missing", "install Python 3.11 or newer")
    yield Finding(topic, "cores", str(machine.cores))
    yield _enough("memory", machine.memory, MEMORY_ENOUGH, "close programs, or allow more")
    yield _enough("free disk here", machine.disk_free, DISK_ENOUGH, "free some, or use --out")
    yield Finding(topic, "NVIDIA driver", machine.driver or "none")


def _enough(what: str, size: int, wanted: int, cure: str) -> Finding:
    value = f"{size / GIB:.1f} GiB"
    if size >= wanted:
        return Finding("this machine", what, value)
    return Finding("this machine", what, f"{value}, expected {wanted / GIB:.1f}", "warning", cure)


def _torch(version: str | None) -> Finding:
    if version is None:
        return Finding("installed", "torch", "missing", "missing", INSTALL)
    if _numbers(version) < TORCH_OLDEST:
        wanted = ".".join(map(str, TORCH_OLDEST))
        return Finding(
            "installed", "torch", f"{version}, expected {wanted} or newer", "missing", INSTALL
        )
    return Finding("installed", "torch", version)


def _libraries() -> Finding:
    versions = {name: installed(name) for name in LIBRARIES}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        value = f"missing: {', '.join(absent)}"
        return Finding("installed", "libraries", value, "missing", INSTALL)
    value = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Finding("installed", "libraries", value)


def _model(model: str) -> Finding:
    """Open the model as a render does, and compare every sum of its manifest if it has one."""
    from packshot.engine.folder import MANIFEST, ModelFolder
    from packshot.studio.models import find_model

    try:
        path = find_model(model)
        manifest = (path / MANIFEST).is_file()
        folder = ModelFolder.open(path, verify=manifest)
    except PackshotError as error:
        return Finding("installed", "model", str(error), "missing", _model_cure(model, error))
    state = "its files are what its manifest says" if manifest else "no manifest to check it by"
    return Finding("installed", "model", f"{folder.name} {folder.version}".strip() + f", {state}")


def _model_cure(model: str, error: PackshotError) -> str:
    if model != defaults.MODEL:
        return "give --model the folder of a complete model"
    return RESTORE if isinstance(error, ModelCorrupt) else INSTALL


def _cache_model() -> Finding:
    """Look for the semantic cache's model: no render needs it, so its absence is no fault."""
    version = installed("onnxruntime")
    if version is not None and installed("numpy") is not None:
        from packshot.gateway.cache.minilm import default_folder

        if (default_folder() / "manifest.json").is_file():
            return Finding("installed", "cache's model", f"MiniLM, onnxruntime {version}")
    value = "none; only a semantic cache needs it (`packshot cache model`)"
    return Finding("installed", "cache's model", value)


def _outlook(machine: Machine) -> Iterator[Finding]:
    topic: Topic = "a render will use"
    try:
        from packshot.engine.outlook import outlook

        found = outlook()
    except (ImportError, OSError) as error:
        reason = f"torch is there and cannot be loaded: {error}"
        yield Finding(topic, "device", reason, "missing", "rm -r .venv && ./packshot doctor")
        return
    names = f" ({', '.join(found.gpus)})" if found.gpus else ""
    if machine.driver is not None and not found.gpus:
        build = f"built for CUDA {found.cuda}" if found.cuda else "built without CUDA"
        value = f"{found.device}: there is an NVIDIA driver, but this torch is {build}"
        yield Finding(topic, "device", value, "warning", CUDA_TORCH)
    else:
        yield Finding(topic, "device", f"{found.device}{names}")
    yield Finding(topic, "precision", found.precision + _fp8(found))
    yield _kernels(found)
    yield Finding(topic, "threads", str(found.threads))


def _fp8(found: Outlook) -> str:
    """Say of a GPU whether it can be asked for fp8, which "auto" is never."""
    if not found.gpus:
        return ""
    return "; fp8 on request" if found.fp8 else "; this GPU has no fp8 (it begins with Ada, Hopper)"


def _kernels(found: Outlook) -> Finding:
    """Say what multiplies: on a GPU the project's own kernels, which are Triton's to compile."""
    topic: Topic = "a render will use"
    if not found.gpus:
        return Finding(topic, "kernels", "torch's")
    version = installed("triton")
    if version is None:
        return Finding(topic, "kernels", "no Triton, which compiles them", "missing", CUDA_TORCH)
    return Finding(topic, "kernels", f"packshot's, by Triton {version}")


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print the report as a table of at most 80 columns, and below it what to do."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), width=min(console.width, 80))
    table.add_column(width=7)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    topic = ""
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            table.add_row("", f"[bold]{topic}[/]", "")
        table.add_row(marks[finding.state], finding.what, escape(finding.value))
    console.print(table)
    cures = dict.fromkeys(finding.cure for finding in findings if finding.cure)
    if cures:
        console.print("\n[bold]what to do[/]")
    for cure in cures:
        console.print(f"  {escape(cure)}", soft_wrap=True)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: (2, 13) for ``2.13.0+cpu``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
