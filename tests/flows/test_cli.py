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


def test_a_callers_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = egomill("release", "show", "nothing", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: no release in {tmp_path} yet: run `egomill rebuild`"
    done = egomill("release", "create", "--set", "depth.momentm=1", "--lake", str(tmp_path))
    assert done.returncode == 2
    assert "did you mean 'momentum'" in done.stderr
