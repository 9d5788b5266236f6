"""The command line's manners: what needs no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from egomill.flows import cli
from egomill.flows.cli import app, common
from egomill.flows.rebuild import publish, rebuild, takes_in
from egomill.flows.verbs import plan
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Report
from egomill.tasks.lake import releases
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.tables import Lake
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
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert command in done.output


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
    rows = {
        "clips": [{"clip_id": "t.cam01.0", "take_uid": "t", "split": "train"}],
        "latents": [{"clip_id": "t.cam01.0", "model": "m", "name": "ego"}],
    }
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


def test_a_reader_of_video_that_is_not_there_is_named_before_any_video_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("EGOMILL_VIDEO_READER", "decrod")
    write_release(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="EGOMILL_VIDEO_READER=decrod: the readers are pyav and decord"):
        plan(str(tmp_path / "lake"), [str(tmp_path / "in")])


def test_failures_stand_under_what_began_them_and_cameras_that_are_left_out_beside(tmp_path):
    from egomill.tasks.lake.tables import Lake

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
    from egomill.flows.cli.common import allowing
    from egomill.schemas.config import Profile

    with pytest.raises(ValueError, match=r"--allow .*nowhere: no such folder"):
        allowing("local", None, [tmp_path / "nowhere"])
    there = tmp_path / "ä 'b\"c"
    there.mkdir()
    given = allowing("local", ['ingest.allow=["/data"]'], [there])
    assert Profile.load("local", given).ingest.allow == ("/data", str(there))
    assert allowing("local", ["depth.momentum=0.9"], None) == ["depth.momentum=0.9"]
    with pytest.raises(ValueError, match=r"ingest.allow: .* no absolute path"):
        Profile.load("local", ['ingest.allow=["here"]'])


def test_a_callers_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = egomill("release", "show", "nothing", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: no lake at {tmp_path}: none of its tables is there. Check --lake; `egomill rebuild` makes one"
    done = egomill("release", "create", "--set", "depth.momentm=1", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert "did you mean 'momentum'" in done.stderr


def failed(lake: Path, key: str, detail: str) -> None:
    row = {"stage": "takes", "fingerprint": "", "recipe": "", "inputs": [], "run_id": "r", "status": "rejected", "attempt": 1}
    Lake(str(lake)).upsert("failures", [{**row, "key": key, "detail": detail, "reason": "file_unusable", "at": datetime.now(UTC)}])


def test_names_of_takes_neither_break_a_command_nor_drive_the_terminal(tmp_path):
    failed(tmp_path, "t1 \x1b]0;TITLE\x07", "takes/x[cam01]/[/takes/2] \x1b[31m\u202e: a pipe")
    done = egomill("failures", "--lake", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == r"t1 \x1b]0;TITLE\x07  takes  file_unusable: takes/x[cam01]/[/takes/2] \x1b[31m\u202e: a pipe"
    (row,) = json.loads(egomill("failures", "--json", "--lake", str(tmp_path)).stdout)
    assert row["key"] == "t1 \x1b]0;TITLE\x07"


def test_error_messages_show_what_was_typed(tmp_path):
    done = egomill("release", "show", "--lake", f"{tmp_path}/[/data]")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: no lake at {tmp_path}/[/data]: none of its tables is there. Check --lake; `egomill rebuild` makes one\n",
    )
    done = egomill("status", "--nope")
    assert (done.returncode, done.stderr) == (2, "error: No such option: --nope (see egomill status --help)\n")
    done = egomill("status", "--lake", f"{tmp_path}/\x1b[2J\udcff")
    assert done.returncode == 2
    assert rf"{tmp_path}/\x1b[2J\udcff has a name that is no Unicode" in done.stderr


def test_a_reader_that_leaves_and_a_full_disk_are_told_apart(tmp_path):
    failed(tmp_path, "t", "x" * 1_000_000)
    command = f"{Path(sys.executable).with_name('egomill')} failures --json --lake {tmp_path}"
    done = subprocess.run(["bash", "-c", f"{command} | head -c 1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.returncode in (0, 141), done.stderr) == (True, "")  # 0: all of it was written before the reader left
    done = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert done.returncode == 4
    assert "No space left on device: make room" in done.stderr


def test_a_lake_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for command, code in (("status", 4), ("rollback", 2)):  # there is no registry at all
        done = egomill(command, "--lake", str(tmp_path / "file" / "lake"))
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert str(tmp_path) in done.stderr


def test_a_fault_of_our_own_shows_where(monkeypatch, capsys):
    monkeypatch.setattr(cli, "settle", lambda: {}["\x1b[2J"])
    assert cli._command() == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "a fault of Egomill's own" in told
    assert "\x1b" not in told


def test_json_has_no_nan(capsys):
    common.reply({"a": float("nan"), "b": [float("inf"), 1.5], "at": datetime(2026, 1, 1, tzinfo=UTC), "c": "\udcff\u202e"}, True)
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text, parse_constant=pytest.fail)["b"] == [None, 1.5]


def test_a_server_that_is_not_there_is_told_in_a_line(tmp_path):
    nobody = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    for command, server in ((["rollback"], "MLflow"), (["housekeeping"], "Prefect")):
        done = egomill(*command, "--lake", str(tmp_path), env=nobody)
        assert done.returncode == 4
        (line,) = done.stderr.splitlines()
        assert f"the {server} server http://127.0.0.1:9" in line
        assert "refused" in line
