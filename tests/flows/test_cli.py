"""The command line's manners: what needs no run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


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


def test_questions_to_an_empty_lake_answer_in_json(tmp_path):
    done = egomill("status", "--json", "--lake", str(tmp_path))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["balanced"]
    assert answer["tables"]["clips"] == 0
    assert json.loads(egomill("failures", "--json", "--lake", str(tmp_path)).stdout) == []
    assert json.loads(egomill("release", "list", "--json", "--lake", str(tmp_path)).stdout) == []


def test_failures_stand_under_what_began_them_and_cameras_that_are_left_out_beside(tmp_path):
    from egomill.tasks.lake import Lake

    def row(key: str, stage: str, reason: str, detail: str) -> dict:
        return {"key": key, "stage": stage, "status": "rejected", "reason": reason, "detail": detail, "attempt": 1}

    lake = Lake(str(tmp_path))
    lake.upsert("failures", [
        row("a.cam01.0", "depth", "depth_empty", "no known depth"),
        *(row("a.cam01.0", stage, "upstream", detail) for stage, detail in
          (("priors", "depth"), ("directions", "depth"), ("latents", "priors, directions"), ("generations/egox@v1", "latents"))),
        row("b.cam01.0", "latents", "upstream", "captions"),  # whose row is no more
        row("c", "takes", "no_ego_video", "takes/c"),
    ])  # fmt: skip
    left = json.dumps({"cam03": ["video_frozen", "cam03.mp4: one picture"]})
    lake.upsert("takes", [{"take_uid": "d", "left_out": left}, {"take_uid": "e", "left_out": "{}"}, {"take_uid": "f"}])

    rows = json.loads(egomill("failures", "--json", "--lake", str(tmp_path)).stdout)
    assert len(rows) == 8
    causes = {(r["key"], r["stage"]): r["cause"] for r in rows if r["reason"] == "upstream"}
    began = {"stage": "depth", "reason": "depth_empty"}
    assert causes == {("b.cam01.0", "latents"): {"stage": "captions", "reason": "upstream"}} | {
        ("a.cam01.0", stage): began for stage in ("priors", "directions", "latents", "generations/egox@v1")
    }
    (out,) = (r for r in rows if r["status"] == "left out")
    assert (out["key"], out["stage"], out["reason"]) == ("d cam03", "takes", "video_frozen")

    shown = egomill("failures", "--lake", str(tmp_path)).stdout
    assert "a.cam01.0  depth  depth_empty: no known depth; so none in " in shown
    assert {line.split()[0] for line in shown.splitlines() if line.count("  ") > 1 and "." in line.split()[0]} == {"a.cam01.0", "b.cam01.0"}
    assert "rejected  depth_empty   4" in shown
    assert "d cam03  takes  video_frozen: cam03.mp4: one picture" in shown
    assert [r["stage"] for r in json.loads(egomill("failures", "--stage", "priors", "--json", "--lake", str(tmp_path)).stdout)] == [
        "priors"
    ]


def test_allowed_places_are_there_and_stand_beside_the_profile_s(tmp_path):
    from egomill.flows.cli import _allowing
    from egomill.schemas.config import Profile

    with pytest.raises(ValueError, match=r"--allow .*nowhere: no such folder"):
        _allowing("local", None, [tmp_path / "nowhere"])
    there = tmp_path / "ä 'b\"c"
    there.mkdir()
    given = _allowing("local", ['ingest.allow=["/data"]'], [there])
    assert Profile.load("local", given).ingest.allow == ("/data", str(there))
    assert _allowing("local", ["depth.momentum=0.9"], None) == ["depth.momentum=0.9"]
    with pytest.raises(ValueError, match=r"ingest.allow: .* no absolute path"):
        Profile.load("local", ['ingest.allow=["here"]'])


def test_a_callers_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = egomill("release", "show", "nothing", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: no release in {tmp_path} yet: run `egomill rebuild`"
    done = egomill("release", "create", "--set", "depth.momentm=1", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert "did you mean 'momentum'" in done.stderr
