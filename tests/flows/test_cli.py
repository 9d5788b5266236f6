"""The command line's manners: what needs no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from egomill.flows import cli
from egomill.tasks.lake import Lake


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


def test_a_callers_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = egomill("release", "show", "nothing", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: no release in {tmp_path} yet: run `egomill rebuild`"
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
    assert (done.returncode, done.stderr) == (2, f"error: no release in {tmp_path}/[/data] yet: run `egomill rebuild`\n")
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
    for command in ("status", "rollback"):
        done = egomill(command, "--lake", str(tmp_path / "file" / "lake"))
        assert done.returncode == 4
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
    cli._answer({"a": float("nan"), "b": [float("inf"), 1.5], "at": datetime(2026, 1, 1, tzinfo=UTC), "c": "\udcff\u202e"}, True)
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
