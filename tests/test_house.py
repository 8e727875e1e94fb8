"""How the code is laid out: which room may import which, and habits of writing."""

import ast
import doctest
import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mgc_jax"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)
DOORS = {"main", "prepare", "predict", "tag", "embed", "similar", "compare", "export", "app"}
DOORS |= {"probe", "reproduce", "weights", "models.__main__", "__main__"}
GROUND = {"errors", "files", "console", "process", "signals", "parallel", "workers", "configs"}
# What each room may import besides itself. The doors may import everything.
ARROWS = {
    "ground": set(),
    "cli": {"ground"},
    "demo": {"ground"},
    "data": {"ground", "demo"},  # the demo's tracks are listed as any other's
    "models": {"ground"},
    "results": {"ground"},
    "training": {"ground", "data", "models", "results"},
    "predictor": {"ground", "data", "training", "results"},
    "tagging": {"ground", "data"},
    "library": {"ground", "data"},
    "door": {
        "ground",
        "cli",
        "data",
        "models",
        "training",
        "results",
        "predictor",
        "tagging",
        "library",
    },
}


def module_name(path: Path) -> str:
    """`mgc_jax/data/audio.py` to `data.audio`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    if module in DOORS:
        return "door"
    first = module.partition(".")[0]
    if first in GROUND:
        return "ground"
    return (
        "predictor"
        if first in ("predictor", "answers", "decoding", "timeline", "exporter", "__init__")
        else first
    )


def imports_of(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, wherever in it."""
    modules = {module_name(source) for source in SOURCES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("mgc_jax.configs"):
                yield "configs"
            elif name.startswith("mgc_jax."):
                inner = name.removeprefix("mgc_jax.")
                # `from mgc_jax.data.audio import read_clips` names a function of a module.
                yield inner if inner in modules else inner.rpartition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_one_way(path):
    source = room_of(module_name(path))
    for target in imports_of(path):
        room = room_of(target) if target else "predictor"
        assert room == source or room in ARROWS[source], f"{source} imports {room} ({target})"
        if source == "results":
            assert target != "parallel", "results run without JAX"


def test_results_and_ground_load_no_jax():
    for name in ("results.report", "results.comparison", "data.clips", "cli"):
        for path in (PACKAGE / f"{name.replace('.', '/')}.py",):
            tops = [node for node in ast.parse(path.read_text()).body]
            assert not any(
                "jax" in ast.unparse(node).replace("mgc_jax", "")
                for node in tops
                if isinstance(node, ast.Import | ast.ImportFrom)
            )


def test_slow_parts_of_scipy_are_imported_where_they_are_used():
    """Every start would wait half a second for them."""
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search(r"scipy\.(stats|optimize)", ast.unparse(node)), path


def test_all_commands_can_be_imported_side_by_side():
    for name in sorted(DOORS):
        importlib.import_module(f"mgc_jax.{name}")


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_and_long_functions_say_what_they_are_for(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for function in functions_of(tree):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= 15 or ast.get_docstring(function), f"{function.name}: {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_assignment_hides_something(path):
    """`a, b = f(), x > 1` is two lines; a string times a condition is an `if`."""
    hiding = (ast.Call, ast.Compare, ast.BoolOp, ast.IfExp, ast.NamedExpr, ast.Await)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            if any(isinstance(target, ast.Tuple) for target in node.targets):
                hidden = [part for part in ast.walk(node.value) if isinstance(part, hiding)]
                assert not hidden, f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right)
            text = any(
                isinstance(side, ast.JoinedStr)
                or (isinstance(side, ast.Constant) and isinstance(side.value, str))
                for side in sides
            )
            condition = any(isinstance(side, ast.Compare | ast.BoolOp) for side in sides)
            assert not (text and condition), f"line {node.lineno}: {ast.unparse(node)}"


def test_no_two_classes_differ_by_a_plural():
    names = [
        node.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert not {f"{name}s" for name in names} & set(names)


@pytest.mark.parametrize(
    "name",
    [
        "predictor",
        "results.metrics",
        "results.calibration",
        "data.features",
        "data.spectrum",
        "data.audio",
    ],
)
def test_examples_in_docstrings_hold(name):
    found = doctest.testmod(importlib.import_module(f"mgc_jax.{name}"))
    assert found.attempted and not found.failed


def test_first_reading_is_short():
    """README's first screen and the files on the way to the step, without comment lines."""
    readme = (ROOT / "README.md").read_text()
    count = len(readme[: readme.index("\n## ")].splitlines())
    names = ["mgc_jax/main.py", "configs/default.py"]
    names += [f"mgc_jax/training/{name}.py" for name in ("train", "loop", "step")]
    for name in names:
        lines = (ROOT / name).read_text().splitlines()
        count += sum(1 for line in lines if not re.match(r"\s*#", line))
    assert count < 850


def test_reference_is_current():
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    written = reference["PAGE"].read_text()
    assert written == reference["page"](), "run: python docs/reference.py"
