"""Who may import whom. The rooms of the house, read from the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "egomill"
MAY = {
    "flows": {"tasks", "scenes", "schemas"},
    "tasks": {"models", "kernels", "schemas", "scenes"},
    "models": {"kernels", "schemas"},
    "kernels": set(),
    "schemas": set(),
    "scenes": {"kernels", "schemas"},
}
ONLY_HERE = {
    "lance": {"tasks/lake.py"},
    "mlflow": {"tasks/tracking.py"},
    "prefect": {"flows"},
    "ray": {"tasks/stage.py", "tasks/cluster.py", "tasks/train.py", "tasks/train_loop.py"},
}
# Stages meet in tables. These are no stages: tools that any of them may use.
SHARED_TASKS = {"lake", "stage", "cluster", "tracking", "video", "views", "weights", "releases", "runs"}
STAGES = {"ingest", "clips", "depth", "priors", "directions", "captions", "latents", "generate", "scores"}
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


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stage_files_never_import_one_another(stage):
    path = ROOT / "tasks" / f"{stage}.py"
    others = {f"egomill.tasks.{s}" for s in STAGES - {stage}}
    assert not {name for name in imports(path) if ".".join(name.split(".")[:3]) in others}


def test_nothing_unpickles():
    for path in FILES:
        source = path.read_text()
        assert "allow_pickle=True" not in source, path
        assert not {"pickle", "cloudpickle", "dill", "joblib"} & {n.split(".")[0] for n in imports(path)}, path
