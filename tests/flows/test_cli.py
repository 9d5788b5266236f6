"""The command line's manners: what needs no run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from egomill.flows.cli import app
from egomill.flows.rebuild import publish, rebuild, takes_in
from egomill.flows.verbs import plan
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Report
from egomill.tasks import releases
from egomill.tasks.lake import Lake
from egomill.tasks.runs import recorded
from tests.tasks.tiny_release import write_release


def egomill(*arguments: str, **more) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("egomill")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)


@pytest.mark.parametrize(
    "command",
    [
        "simulate",
        "pretrain",
        "rebuild",
        "retrain",
        "generate",
        "evaluate",
        "nightly",
        "report",
        "status",
        "failures",
        "lineage",
        "plan",
        "adopt",
        "verify",
        "forget",
        "register",
        "release",
        "up",
    ],
)
def test_every_command_explains_itself(command):
    done = egomill(command, "--help")
    assert done.returncode == 0
    assert command in done.stdout


QUESTIONS = [
    "status", "failures", "lineage", "lineage egox@champion", "release list", "release show", "release diff a b", "verify", "verify --deep",
    "report", "failures --retry x",
]  # fmt: skip
WORK = ["forget x", "adopt depth", "repair", "housekeeping", "retrain", "generate", "evaluate", "release create", "rollback"]


def told(command: str, lake: Path) -> tuple[int, str]:
    """Exit code and what is said, as `main` would have it."""
    done = CliRunner().invoke(app, [*command.split(), "--lake", str(lake)])
    return (2, str(done.exception)) if isinstance(done.exception, ValueError) else (done.exit_code, done.output)


def tree(folder: Path) -> dict[str, tuple]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


@pytest.mark.parametrize("command", [*QUESTIONS, *WORK])
@pytest.mark.parametrize("there", [False, True])
def test_a_mistyped_lake_is_an_error_that_names_it_and_nothing_is_made(tmp_path, monkeypatch, command, there):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lake = tmp_path / "lkae"
    if there:
        lake.mkdir()
    code, said = told(command, lake)
    assert code == 2
    assert str(lake) in said
    assert [p.name for p in tmp_path.rglob("*")] == ["lkae"] * there


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("asked")))
    rows = {"clips": [{"clip_id": "t.cam01.0", "take_uid": "t", "split": "train"}], "latents": [{"clip_id": "t.cam01.0", "model": "m"}]}
    with recorded(lake, "rebuild", Profile.load("local")) as run:
        for table, some in rows.items():
            lake.upsert(table, some)
        releases.publish(lake, run.id, Profile.load("local"), "a")
        lake.upsert("captions", [{"clip_id": "t.cam01.0"}])
        releases.publish(lake, run.id, Profile.load("local"), "b")
    return lake


@pytest.mark.parametrize("command", [*QUESTIONS[:-2], "lineage t.cam01.0", "plan IN"])
def test_a_question_changes_nothing(asked, tmp_path, monkeypatch, command):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if "IN" in command:
        write_release(tmp_path, 1)
    for path in (Path(asked.uri), *Path(asked.uri).rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)  # binds all but root
    before = tree(Path(asked.uri))
    code, said = told(command.replace("IN", str(tmp_path)), Path(asked.uri))
    assert code == (2 if "@" in command else 3 if command == "verify" else 0), said
    assert tree(Path(asked.uri)) == before


def test_answers_in_json(asked):
    done = egomill("status", "--json", "--lake", asked.uri)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["balanced"]
    assert (answer["tables"]["clips"], answer["tables"]["depth"], answer["damaged"]) == (1, 0, {})
    assert json.loads(egomill("failures", "--json", "--lake", asked.uri).stdout) == []
    assert len(json.loads(egomill("release", "list", "--json", "--lake", asked.uri).stdout)) == 2


def test_nothing_found_or_all_rejected_is_no_success(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "in" / "takes").mkdir(parents=True)
    lake = Lake(str(tmp_path / "lake"))
    with pytest.raises(ValueError, match=rf"no take in {tmp_path}/in: looked for folders in takes/"):
        rebuild.fn(lake.uri, [str(tmp_path / "in")])
    with pytest.raises(ValueError, match=rf"no take in {tmp_path}/in"):
        plan(lake.uri, [str(tmp_path / "in")])

    def rejected(run, stage, items):
        lake.upsert("failures", [{"key": item.key, "stage": "takes", "status": "rejected", "reason": "no_exo_video"} for item in items])
        return Report("takes", inputs=len(items), rejected=len(items))

    monkeypatch.setattr(sys.modules[takes_in.__module__], "make", rejected)
    (tmp_path / "in" / "takes" / "one").mkdir()
    with pytest.raises(ValueError, match=r"none of the 1 takes in .* can be used: 1 no_exo_video \(takes\); `egomill failures --lake"):
        rebuild.fn(lake.uri, [str(tmp_path / "in")])
    with pytest.raises(ValueError, match=r"no clip has come through all stages. 1 no_exo_video"):
        publish(lake.uri, "local", [], "")
    assert releases.every(lake) == []
    assert {r["status"] for r in lake.read("runs").to_pylist()} == {"failed"}


def test_a_callers_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = egomill("release", "show", "nothing", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: no lake at {tmp_path}: none of its tables is there. Check --lake; `egomill rebuild` makes one"
    done = egomill("release", "create", "--set", "depth.momentm=1", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert "did you mean 'momentum'" in done.stderr
