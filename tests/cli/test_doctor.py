"""`packshot doctor`, on machines that lack one thing at a time."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from packshot.cli import doctor as module
from packshot.cli.doctor import Finding, diagnose, healthy, show
from packshot.cli.machine import driver_version, look, memory_limit
from packshot.cli.main import app
from packshot.engine.folder import make_manifest
from packshot.engine.outlook import Outlook

ROOT = Path(__file__).parent.parent.parent
GPU_WORLD = Outlook("cuda", "bf16", threads=16, cuda="13.0", gpus=("H100",), fp8=True)
CPU_WORLD = Outlook(device="cpu", precision="fp32", threads=2, cuda=None, gpus=())


@pytest.fixture
def model(tmp_path: Path, tiny_sdxl: Path) -> Path:
    """Return a complete model folder with a manifest, to be damaged."""
    folder = shutil.copytree(tiny_sdxl, tmp_path / "model")
    manifest = make_manifest(folder, name="tiny", version="1.0")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a test say what is installed, what driver there is, and what torch sees."""

    def is_like(
        *, driver: str | None = None, outlook: Outlook = CPU_WORLD, **versions: str | None
    ) -> None:
        have = {
            "torch": "2.13.0+cpu",
            "triton": "3.6.0",
            **dict.fromkeys(module.LIBRARIES, "1.0"),
            **versions,
        }
        monkeypatch.setattr("packshot.cli.machine.driver_version", lambda: driver)
        monkeypatch.setattr(module, "installed", have.get)
        monkeypatch.setattr("packshot.engine.outlook.outlook", lambda: outlook)

    return is_like


def one(findings: list[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def test_a_good_machine_is_healthy(model: Path, machine: Callable[..., None]) -> None:
    machine()
    findings = diagnose(str(model))
    assert healthy(findings)
    assert one(findings, "torch").value == "2.13.0+cpu"
    assert one(findings, "device").value == "cpu"
    assert one(findings, "precision").value == "fp32"
    assert one(findings, "threads").value == "2"
    assert "tiny 1.0" in one(findings, "model").value
    assert not [finding for finding in findings if finding.cure]


@pytest.mark.parametrize("version", [None, "2.10.1"])
def test_torch_missing_or_old_has_a_cure_and_is_not_imported(
    model: Path, machine: Callable[..., None], version: str | None
) -> None:
    machine(torch=version)
    findings = diagnose(str(model))
    assert not healthy(findings)
    assert one(findings, "torch").state == "missing"
    assert "./packshot doctor" in one(findings, "torch").cure
    assert not [finding for finding in findings if finding.what == "device"]


def test_a_missing_library_is_named(model: Path, machine: Callable[..., None]) -> None:
    machine(tokenizers=None)
    assert one(diagnose(str(model)), "libraries").value == "missing: tokenizers"


def test_a_torch_that_cannot_be_loaded_is_reported(
    model: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()

    def broken() -> Outlook:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("packshot.engine.outlook.outlook", broken)
    found = one(diagnose(str(model)), "device")
    assert found.state == "missing"
    assert "libcudart" in found.value


def test_a_gpu_is_named(model: Path, machine: Callable[..., None]) -> None:
    machine(driver="570.86.15", outlook=GPU_WORLD)
    findings = diagnose(str(model))
    assert one(findings, "NVIDIA driver").value == "570.86.15"
    assert one(findings, "device").value == "cuda (H100)"
    assert one(findings, "precision").value == "bf16; fp8 on request"
    assert one(findings, "kernels").value == "packshot's, by Triton 3.6.0"


def test_an_older_gpu_has_no_fp8(model: Path, machine: Callable[..., None]) -> None:
    machine(driver="570.86.15", outlook=replace(GPU_WORLD, fp8=False))
    assert "has no fp8" in one(diagnose(str(model)), "precision").value


def test_a_gpu_without_triton_cannot_render(model: Path, machine: Callable[..., None]) -> None:
    machine(driver="570.86.15", outlook=GPU_WORLD, triton=None)
    findings = diagnose(str(model))
    assert not healthy(findings)
    assert "PACKSHOT_TORCH_INDEX" in one(findings, "kernels").cure
    machine(triton=None)
    assert one(diagnose(str(model)), "kernels").state == "ok", "a CPU needs none"


def test_the_cache_s_model_is_told_and_missed_by_no_render(
    model: Path, machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine(onnxruntime="1.31.1", numpy="2.4.6")
    findings = diagnose(str(model))
    assert "packshot cache model" in one(findings, "cache's model").value
    assert healthy(findings)
    folder = tmp_path / "packshot" / "all-minilm-l6-v2-int8"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert one(diagnose(str(model)), "cache's model").value == "MiniLM, onnxruntime 1.31.1"


def test_a_driver_that_torch_cannot_use_is_a_warning_with_a_cure(
    model: Path, machine: Callable[..., None]
) -> None:
    machine(driver="570.86.15", outlook=CPU_WORLD)
    findings = diagnose(str(model))
    assert one(findings, "device").state == "warning"
    assert "built without CUDA" in one(findings, "device").value
    assert "PACKSHOT_TORCH_INDEX" in one(findings, "device").cure
    assert healthy(findings)


def test_little_memory_is_a_warning(model: Path, machine: Callable[..., None]) -> None:
    machine()
    small = module._enough("memory", module.GIB, module.MEMORY_ENOUGH, "buy some")
    assert small == Finding(
        "this machine", "memory", "1.0 GiB, expected 2.0", "warning", "buy some"
    )


def test_a_damaged_model_is_found_however_large_it_is(
    model: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr("packshot.engine.folder.FULL_CHECK_BYTES", 0)
    (weights, *_) = (model / "unet").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = one(diagnose(str(model)), "model")
    assert found.state == "missing"
    assert "SHA-256" in found.value
    assert found.cure


def test_a_damaged_embedded_model_is_restored_from_the_checkout(
    model: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    (model / "unet" / "config.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr("packshot.studio.models.find_model", lambda name: model)
    assert one(diagnose("packshot-mini"), "model").cure.startswith("git checkout")


def test_a_model_without_a_manifest_says_so(tiny_sdxl: Path, machine: Callable[..., None]) -> None:
    machine()
    found = one(diagnose(str(tiny_sdxl)), "model")
    assert found.state == "ok"
    assert "no manifest" in found.value


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.output


def test_json_is_the_same_report(model: Path, machine: Callable[..., None]) -> None:
    machine()
    code, text = run("--json", "--model", str(model))
    report = json.loads(text)
    assert code == 0
    assert report["ok"] is True
    assert {finding["what"] for finding in report["findings"]} >= {"torch", "model", "device"}


def test_a_sick_machine_exits_1_and_says_what_to_do(machine: Callable[..., None]) -> None:
    machine()
    code, text = run("--model", "no/such/folder")
    assert code == 1
    assert "what to do" in text
    assert "no/such/folder" in text


def rendered(findings: list[Finding]) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        show(findings, console)
    return capture.get()


def test_the_table_fits_80_columns_and_shows_brackets_as_they_are() -> None:
    long = Finding("installed", "model", "[brackets] " + "word " * 60, "missing", "mend")
    text = rendered([long])
    assert "[brackets]" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_machine_is_looked_at_without_a_library(tmp_path: Path) -> None:
    machine = look(tmp_path)
    assert machine.cores >= 1
    assert 2**26 < machine.memory < 2**50
    assert machine.disk_free > 0


def test_a_container_s_limit_is_read(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("max\n", encoding="ascii")
    assert memory_limit((limit, tmp_path / "absent")) == 2**63
    limit.write_text("1073741824\n", encoding="ascii")
    assert memory_limit((limit,)) == 2**30


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build",
            "570.86.15",
        ),
        ("something else", "unknown"),
    ],
)
def test_the_driver_s_version_is_read(tmp_path: Path, line: str, version: str) -> None:
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text(f"{line}\nGCC version: 12.2.0\n", encoding="ascii")
    assert driver_version(file) == version


def test_all_that_name_the_oldest_torch_and_python_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    script = (ROOT / "packshot").read_text(encoding="utf-8")
    torch = ".".join(map(str, module.TORCH_OLDEST))
    python = ".".join(map(str, module.PYTHON_OLDEST))
    assert f"torch>={torch}" in project["optional-dependencies"]["render"]
    assert re.search(r"^TORCH_OLDEST=(.*)$", script, re.MULTILINE)[1] == torch
    assert project["requires-python"] == f">={python}"
