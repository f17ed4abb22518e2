"""What may import what, kept by machine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("schemas", "workers", "pipeline")
SOURCES = [p for layer in LAYERS for p in sorted((ROOT / layer).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    above = LAYERS[LAYERS.index(layer) + 1 :]
    assert not {m for m in imports(path) if m.split(".")[0] in above}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_ray_and_torch_stay_in_their_places(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)}
    if "ray" in used:
        assert name(path).startswith("pipeline/executors/")
    if used & {"torch", "torchvision"}:
        assert name(path).startswith("workers/")


@pytest.mark.parametrize("kind", ["datasets", "models", "methods", "metrics"])
def test_kinds_of_extension_do_not_know_one_another(kind: str) -> None:
    others = {"datasets", "models", "methods", "metrics"} - {kind}
    allowed = {"workers.models.base"}
    for path in sorted((ROOT / "workers" / kind).glob("*.py")):
        foreign = {
            module
            for module in imports(path)
            if module.startswith("workers.")
            and module.split(".")[1] in others
            and not any(module == a or module.startswith(f"{a}.") for a in allowed)
        }
        assert not foreign, name(path)


def test_methods_see_the_model_contract_never_a_model() -> None:
    for path in sorted((ROOT / "workers" / "methods").glob("*.py")):
        models = {m for m in imports(path) if m.startswith("workers.models.")}
        assert all(m.startswith("workers.models.base") for m in models), name(path)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_function_is_long(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_unpickles_what_a_user_gives(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not imports(path) & {"dill", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and name(path) != "workers/models/pickles.py":
            assert not any(ast.unparse(base).endswith("Unpickler") for base in node.bases)
        if not isinstance(node, ast.Call):
            continue
        assert not ast.unparse(node.func).startswith("pickle."), name(path)
        if ast.unparse(node.func) == "torch.load":
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("weights_only") == "True", name(path)


def test_commands_that_read_a_run_load_no_pytorch() -> None:
    """It takes seconds: help, status and failures answer at once."""
    code = (
        "import sys, pipeline.cli, pipeline.report.state, pipeline.report.watch;"
        "print([name for name in ('torch', 'scipy', 'ray', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
