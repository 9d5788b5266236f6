"""Runs whose driver was killed are found out, on this host at once, on another when it has been quiet for long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from egomill.schemas.config import Profile
from egomill.tasks import alive, runs
from egomill.tasks.lake import Lake

DRIVER = """
import sys, time
from egomill.schemas.config import Profile
from egomill.tasks import runs
from egomill.tasks.lake import Lake
with runs.recorded(Lake(sys.argv[1]), "rebuild", Profile.load("local")) as run:
    print(run.id, flush=True)
    time.sleep(600)
"""


def statuses(lake: Lake) -> dict[str, str]:
    return {row["run_id"]: row["status"] for row in runs.history(lake)}


def test_a_killed_driver_s_run_is_called_dead_by_the_next_one(tmp_path):
    lake = Lake(str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, lake.uri], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    killed = driver.stdout.readline().strip()
    assert alive.alive(lake, killed)
    assert alive.sweep(lake) == []
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not alive.alive(lake, killed)
    with runs.recorded(lake, "rebuild", Profile.load("local")) as run:
        assert statuses(lake) == {killed: "died", run.id: "running"}
        assert alive.alive(lake, run.id)
    assert statuses(lake) == {killed: "died", run.id: "completed"}
    assert lake.noted(f"alive/{killed}.json") is lake.noted(f"alive/{run.id}.json") is None


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_another_host_is_believed_until_it_has_been_quiet(place, tmp_path, request):
    lake = Lake(str(tmp_path) if place == "disk" else request.getfixturevalue("s3_lake"))
    for run_id, ago in (("fresh", 10.0), ("quiet", alive.QUIET + 1)):
        lake.note(f"alive/{run_id}.json", json.dumps({"host": "elsewhere", "pid": os.getpid(), "born": 0.0, "at": time.time() - ago}))
    assert alive.alive(lake, "fresh")
    assert not alive.alive(lake, "quiet")
    assert not alive.alive(lake, "never heard of")


def test_a_driver_leaves_signs_of_life_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(alive, "BEAT", 0.05)
    lake = Lake(str(tmp_path))
    with alive.beating(lake, "r"):
        first = lake.noted("alive/r.json")
        deadline = time.monotonic() + 30
        while lake.noted("alive/r.json") == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lake.noted("alive/r.json") != first
    assert lake.noted("alive/r.json") is None
