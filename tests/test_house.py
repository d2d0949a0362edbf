"""The house rules that a machine can check, for every Python file that is shipped or run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import packshot

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "packages", "training", "benchmarks", "deploy", "examples", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
LONGEST_FUNCTION = 70
LONGEST_FILE = 600

RUN_HELP = """import runpy
sys.argv = ["packshot", "--help"]
try:
    runpy.run_module("packshot", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
HEAVY = (
    *("torch", "numpy", "PIL", "safetensors", "tokenizers", "diffusers", "transformers"),
    *("onnx", "onnxruntime", "usearch", "triton", "obstore"),
    *("asyncpg", "genai_prices", "pyarrow", "pydantic"),
)


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def swallows(handler: ast.ExceptHandler) -> bool:
    """Tell whether a handler does nothing at all with what it caught."""
    return all(
        isinstance(part, ast.Pass)
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        for part in handler.body
    )


def imported_by(code: str) -> set[str]:
    """Run ``code`` in an interpreter of its own and return the top-level modules it imported."""
    script = f"import sys\n{code}\nprint('\\n'.join({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT / "src")},
    )
    return set(done.stdout.split())


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_file(file: Path) -> None:
    text = read(file)
    tree = ast.parse(text)
    assert text.count("\n") <= LONGEST_FILE
    long = [f"{node.name}: {length(node)}" for node in functions(tree)]
    long = [row for row in long if int(row.rpartition(" ")[2]) > LONGEST_FUNCTION]
    assert not long
    swallowed = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    assert not swallowed, "an exception is swallowed"
    assert not text.strip() or ast.get_docstring(tree), "a module says in a docstring what it is"


@pytest.mark.parametrize(
    "file", [file for file in FILES if ROOT / "src" in file.parents], ids=name_of
)
def test_every_function_of_the_package_is_annotated(file: Path) -> None:
    for node in functions(ast.parse(read(file))):
        if any(ast.unparse(d).startswith("triton.jit") for d in node.decorator_list):
            continue  # Triton's language, which has no types
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        assert not bare, f"{node.name}({', '.join(bare)})"
        assert node.returns is not None, node.name


def test_the_public_names_are_these_and_no_others() -> None:
    assert packshot.__all__ == [
        "Cancelled",
        "Delivery",
        "Engine",
        "InvalidRequest",
        "ModelCorrupt",
        "ModelError",
        "ModelNotFound",
        "Options",
        "Original",
        "OutputError",
        "PackshotError",
        "Plan",
        "Progress",
        "RenderFailed",
        "RenderRequest",
        "RenderResult",
        "UnknownConcept",
        "UnsafeModel",
        "Usage",
        "__version__",
        "load_engine",
        "plan",
        "render",
    ]
    for name in packshot.__all__:
        value = getattr(packshot, name)
        assert getattr(value, "__name__", name) == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = packshot.no_such_name


@pytest.mark.parametrize(
    "code",
    [
        "import packshot",
        "import packshot.core.errors, packshot.core.types",
        "import packshot.cli.main",
        RUN_HELP,
    ],
    ids=["package", "core", "command line", "--help"],
)
def test_light_imports_stay_light(code: str) -> None:
    assert imported_by(code).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import packshot.gateway, packshot.gateway.launch, packshot.gateway.worker",
        "import packshot.gateway.client, packshot.gateway.app",
        "import packshot.gateway.cache.opening, packshot.gateway.cache.cache",
        "import packshot.cli.gateway, packshot.cli.cache",
        "import packshot.studio.rewrite",
    ],
)
def test_the_gateway_and_its_cache_need_no_engine(code: str) -> None:
    assert imported_by(code).isdisjoint({*HEAVY} - {"genai_prices", "pydantic"})


def test_importing_the_engine_is_what_imports_torch() -> None:
    """The check above can only mean something if it sees torch when torch is there."""
    assert "torch" in imported_by("import packshot.engine.samplers")
