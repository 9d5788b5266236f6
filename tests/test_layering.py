"""Who may import whom. The rooms of the house, read from the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "egomill"
MAY = {
    "flows": {"tasks", "models", "scenes", "schemas"},
    "tasks": {"models", "kernels", "schemas", "scenes"},
    "models": {"kernels", "schemas"},
    "kernels": set(),
    "schemas": set(),
    "scenes": {"kernels", "schemas"},
}
# Inside tasks: pages → stages → keeping, training → lake, media, networks.
GROUND = {"lake", "media", "networks"}
MAY_IN_TASKS = {
    "pages": {"stages", "keeping", "training", *GROUND},
    "stages": {"keeping", "training", *GROUND},
    "keeping": GROUND,
    "training": GROUND,
    **{room: set[str]() for room in GROUND},
}
ONLY_HERE = {
    "lance": {f"tasks/lake/{name}.py" for name in ("tables", "fragments", "upkeep", "damage")},
    "mlflow": {f"tasks/lake/{name}.py" for name in ("tracking", "connection")},
    "prefect": {"flows"},
    "ray": {"tasks/lake/actors.py", "tasks/lake/cluster.py", "tasks/training/train.py", "tasks/training/loop.py"},
}
NEVER_IN_KERNELS = {"ray", "lance", "prefect", "mlflow", "pyarrow", "av", "pydantic"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, relative imports made absolute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = ["egomill", *path.relative_to(ROOT).parts[:-1]]
            base = ".".join(parts[: len(parts) - node.level + 1]) + "." if node.level else ""
            found |= {f"{base}{node.module or ''}".strip("."), *(f"{base}{node.module}.{a.name}" for a in node.names if node.module)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path):
    room = path.relative_to(ROOT).parts[0]
    here = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "egomill" and rest and rest[0] in MAY and room in MAY:
            assert rest[0] == room or rest[0] in MAY[room], f"{here} imports {name}"
        for library, places in ONLY_HERE.items():
            if top == library:
                assert here in places or room in places, f"{here} imports {library}, which belongs to {', '.join(places)}"
        if room == "kernels":
            assert top not in NEVER_IN_KERNELS, f"{here} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_file_of_tasks_imports_only_rooms_below_its_own(path):
    """And stages never import one another: they meet in tables."""
    room = path.parent.name
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["egomill", "tasks"] and len(parts) > 3:
            assert parts[2] in MAY_IN_TASKS[room] or (parts[2] == room != "stages"), f"{room}/{path.name} imports {name}"


def test_no_file_of_tasks_lies_outside_its_rooms():
    assert {p.name for p in (ROOT / "tasks").glob("*.py")} == {"__init__.py"}
    assert {p.parent.name for p in (ROOT / "tasks").glob("*/__init__.py")} == set(MAY_IN_TASKS)


def test_there_is_no_circle():
    """A module imports none that imports it, directly or not."""
    named = {".".join(["egomill", *p.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): p for p in FILES}
    graph = {name: {n for n in imports(path) if n in named and n != name} for name, path in named.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_files_and_functions_are_short():
    """A page or two: no file above 400 lines, no function of 60."""
    long = [f"{p.relative_to(ROOT)}: {len(p.read_text().splitlines())} lines" for p in FILES if len(p.read_text().splitlines()) > 400]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno + 1 >= 60:
                long.append(f"{path.relative_to(ROOT)}: {node.name}, {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert not long, "\n".join(long)


def test_nothing_unpickles():
    for path in FILES:
        source = path.read_text()
        assert "allow_pickle=True" not in source, path
        assert not {"pickle", "cloudpickle", "dill", "joblib"} & {n.split(".")[0] for n in imports(path)}, path


def test_a_run_imports_what_it_uses():
    """What only some stages need, seconds each, is not paid for by all, nor by who starts them."""
    stages = ", ".join(
        f"egomill.tasks.stages.{path.stem}" for path in sorted((ROOT / "tasks" / "stages").glob("*.py")) if path.stem[0] != "_"
    )
    told = "print(*sorted({'diffusers', 'transformers', 'peft', 'mlflow', 'ray', 'prefect', 'lpips'} & set(sys.modules)))"
    for what, may in ((stages, set()), ("egomill.flows.rebuild, egomill.flows.cli", {"prefect"})):
        done = subprocess.run([sys.executable, "-c", f"import sys, {what}; {told}"], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) <= may, what
