"""After a refactor nothing has to be made again, if a sample shows that nothing changed; and a release can be held to its word.

Code is changed for real: the tests run a copy of the package with an edited file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import egomill
from egomill.flows import verbs
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import TABLES
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.keeping.rederive import differences
from egomill.tasks.lake import runs, upkeep
from egomill.tasks.lake.tables import Lake
from tests.flows.conftest import SMALL, Small

SETTINGS = [part for s in SMALL for part in ("--set", s)]


def edited(folder: Path, **changes: tuple[str, str]) -> Path:
    """A copy of the package in which text of files in tasks/ is replaced."""
    shutil.copytree(Path(egomill.__file__).parent, folder / "egomill", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in changes.items():
        file = folder / "egomill" / "tasks" / "stages" / f"{name}.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    return folder


def egomill_at(place: Path, *arguments: str) -> tuple[int, dict | list]:
    env = {**{k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from egomill.flows.cli import main; main()", *arguments, "--json"]
    done = subprocess.run(command, env=env, cwd=place, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def labels(lake: Lake, table: str) -> dict[str, tuple]:
    rows = lake.read(table, ["clip_id", "fingerprint", "recipe", "content", "run_id"]).to_pylist()
    return {r["clip_id"]: (r["fingerprint"], r["recipe"], r["content"], r["run_id"]) for r in rows}


REFACTORED = (
    "def __call__(self, row: dict) -> dict | Rejected:\n        clip =",
    "def __call__(self, row: dict) -> dict | Rejected:\n        why = ''; clip =",
)
BROKEN = ("covered = float(coverage(valid, ego_camera.rays()[1]).mean())", "covered = 0.5")


def test_a_refactor_is_planned_by_file_and_adopted_after_a_sample(small, tmp_path):
    place = edited(tmp_path / "code", priors=REFACTORED)
    _, steps = egomill_at(place, "plan", str(small.source), "--lake", small.lake.uri, *SETTINGS)
    told = {s["stage"].split("/")[0]: s for s in steps}
    clips = small.lake.count("priors")
    reasons = [(r["why"], r["what"], r["rows"]) for r in told["priors"]["reasons"]]
    assert reasons == [("changed code", "egomill/tasks/stages/priors.py", clips)]
    assert [r["what"] for r in told["latents"]["reasons"]] == ["priors"]
    before = {table: labels(small.lake, table) for table in ("priors", "latents", "depth")}

    code, answer = egomill_at(place, "adopt", "priors", "--lake", small.lake.uri, "--sample", "2", *SETTINGS)
    assert (code, answer["adopted"], len(answer["compared"]), answer["differs"]) == (0, clips, 2, [])
    assert answer["code"] == ["egomill/tasks/stages/priors.py"]
    after = labels(small.lake, "priors")
    assert all(after[clip][2:] == row[2:] and after[clip][0] != row[0] for clip, row in before["priors"].items())
    assert all(labels(small.lake, table) == before[table] for table in ("latents", "depth"))
    run = runs.history(small.lake, 1)[0]
    assert (run["flow"], run["status"], json.loads(run["detail"])["compared"]) == ("adopt", "completed", answer["compared"])

    code, done = egomill_at(place, "rebuild", str(small.source), "--lake", small.lake.uri, *SETTINGS)
    assert (code, done["computed"], done["release"]) == (0, 0, "first")
    assert small.plan()["priors"]["compute"] == clips  # the old code would now make them again
    _, found = egomill_at(place, "verify", "first", "--lake", small.lake.uri, "--sample", "1")
    assert next(t for t in found["tables"] if t["table"] == "priors")["ok"] == 1  # other code, the same row


def test_a_change_that_shows_is_not_adopted_and_verify_cannot_tell(small, tmp_path):
    place = edited(tmp_path / "code", priors=BROKEN)
    before = labels(small.lake, "priors"), small.lake.version("priors")
    code, answer = egomill_at(place, "adopt", "priors", "--lake", small.lake.uri, "--sample", "1", *SETTINGS)
    assert (code, answer["adopted"]) == (1, 0)
    assert [(d["row"], d["column"]) for d in answer["differs"]] == [(answer["compared"][0], "coverage")]
    assert before == (labels(small.lake, "priors"), small.lake.version("priors"))
    code, found = egomill_at(place, "verify", "first", "--lake", small.lake.uri, "--sample", "1")
    assert (code, found["differs"]) == (3, 0)
    (told,) = (d for t in found["tables"] for d in t["details"])
    assert (told["verdict"], told["column"]) == ("cannot", "coverage")
    assert "code changed since (egomill/tasks/stages/priors.py)" in told["what"]


def test_changed_settings_are_not_for_adoption(small):
    answer = verbs.adopt(small.lake.uri, "depth", settings=[*SMALL, "depth.relative_error=0.002"], sample=1)
    assert (answer["candidates"], answer["adopted"], answer["compared"]) == (0, 0, [])
    assert answer["skipped"] == {"changed setting relative_error: 0.001 -> 0.002": small.lake.count("depth")}
    assert verbs.adopt(small.lake.uri, "depth", settings=SMALL)["candidates"] == 0  # current already
    with pytest.raises(ValueError, match="no stage 'dept'"):
        verbs.adopt(small.lake.uri, "dept")


def test_a_release_is_verified_and_a_changed_value_found(small):
    found = verbs.verify(small.lake.uri, "first", sample=2, seed=0)
    assert (found["ok"], found["differs"], found["cannot"]) == (14, 0, 0), found["tables"]
    (clip, *_) = sorted(labels(small.lake, "captions"))
    (row,) = small.lake.rows("captions", [clip])
    fragments = small.lake.write_fragments("captions", [{**row, "text": "something else"}])
    small.lake.commit("captions", fragments, replace=f"clip_id = '{clip}'")
    small.rebuild(release="second")  # finds nothing to do: the row says that it is current
    found = verbs.verify(small.lake.uri, "second", sample=100)
    told = {t["table"]: t for t in found["tables"]}["captions"]
    assert (told["differs"], told["ok"], told["details"][0]["row"]) == (1, told["rows"] - 1, clip)


def test_where_sources_changed_nothing_can_be_told(small, tmp_path):
    moved = Small(shutil.copytree(small.source, tmp_path / "in"), small.lake)
    upkeep.relabel(small.lake, "takes", "", lambda row: {"root": str(moved.source)}, ["root"])
    upkeep.relabel(small.lake, "clips", "", lambda row: {"root": str(moved.source)}, ["root"])
    for file in moved.source.rglob("cam01.mp4"):
        file.write_bytes(file.read_bytes() + b" ")
    at = {"takes": small.lake.version("takes"), "clips": small.lake.version("clips")}
    release = small.lake.rows("releases", ["first"])[0]
    small.lake.upsert("releases", [{**release, "tables": json.dumps({**json.loads(release["tables"]), **at})}])
    found = verbs.verify(small.lake.uri, "first", sample=1)
    assert (found["ok"], found["differs"], found["cannot"]) == (0, 0, 7)
    assert all("gone or changed" in d["what"] or "changed since" in d["what"] for t in found["tables"] for d in t["details"])


def test_rows_are_compared_bit_for_bit_or_within_a_stated_tolerance():
    values = np.array([1.0, -4.0, np.nan], np.float32)
    near, far = values * np.float32(1.0005), values * np.float32(1.1)
    row = {"clip_id": "a", "text": "t", "exo_points": pack(values), "exo_valid": pack(np.array([True, False]))}

    def columns(new: dict | Rejected | Exception, tolerance: float = 0.0) -> list[str]:
        full = dict.fromkeys(TABLES["directions"].names)
        after = [{**full, **new}] if isinstance(new, dict) else new
        return [d["column"] for d in differences("directions", [{**full, **row}], after, tolerance)]

    assert columns(row) == []
    assert columns({**row, "exo_points": pack(near)}) == ["exo_points"]
    assert columns({**row, "exo_points": pack(near)}, 1e-3) == []
    assert columns({**row, "exo_points": pack(far)}, 1e-3) == ["exo_points"]
    assert columns({**row, "exo_points": pack(near[:2])}, 1.0) == ["exo_points"]
    assert columns({**row, "exo_points": pack(near.astype(np.float64))}, 1.0) == ["exo_points"]
    assert columns({**row, "exo_valid": pack(np.array([True, True]))}, 1.0) == ["exo_valid"]  # no tolerance for what is no number
    assert columns({**row, "exo_points": None}, 1.0) == ["exo_points"]
    assert columns({**row, "clip_id": "b"}) == ["", ""]
    assert columns(Rejected("depth_empty")) == columns(ValueError("x")) == [""]
    assert np.array_equal(unpack(row["exo_points"]), values, equal_nan=True)
