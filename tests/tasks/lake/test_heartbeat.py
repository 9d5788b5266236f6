"""Runs whose driver was killed are found out, on this host at once, on another when it has been quiet for long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from egomill.schemas.config import Profile
from egomill.tasks.lake import heartbeat, runs
from egomill.tasks.lake.tables import Lake

DRIVER = """
import sys, time
from egomill.schemas.config import Profile
from egomill.tasks.lake import runs
from egomill.tasks.lake.tables import Lake
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
    assert heartbeat.alive(lake, killed)
    assert heartbeat.sweep(lake) == []
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not heartbeat.alive(lake, killed)
    with runs.recorded(lake, "rebuild", Profile.load("local")) as run:
        assert statuses(lake) == {killed: "died", run.id: "running"}
        assert heartbeat.alive(lake, run.id)
    assert statuses(lake) == {killed: "died", run.id: "completed"}
    assert lake.noted(f"alive/{killed}.json") is lake.noted(f"alive/{run.id}.json") is None


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_another_host_is_believed_until_it_has_been_quiet_by_the_store_s_clock(place, tmp_path, request, monkeypatch):
    lake = Lake(str(tmp_path) if place == "disk" else request.getfixturevalue("s3_lake"))
    lake.note("alive/r.json", json.dumps({"host": "elsewhere", "pid": os.getpid(), "born": 0.0, "at": 4e9}))
    assert heartbeat.alive(lake, "r")
    monkeypatch.setattr(heartbeat, "QUIET", -60.0)
    assert not heartbeat.alive(lake, "r")
    assert not heartbeat.alive(lake, "never heard of")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", "\0\0", '{"host": 1}', '{"pid": "x", "host": HOST, "born": 0}', None])
def test_a_sign_of_life_that_cannot_be_read_is_believed_until_it_is_old(tmp_path, monkeypatch, text):
    lake = Lake(str(tmp_path))
    lake.note("alive/r.json", (text or "").replace("HOST", json.dumps(heartbeat._host())))
    if text is None:  # another user's, which only its owner may read
        monkeypatch.setattr(Lake, "noted", lambda *_: None)
    assert heartbeat.alive(lake, "r")
    for old in (-1, 1):  # or so young that the clock was put back
        os.utime(tmp_path / "alive" / "r.json", (0, time.time() + old * (heartbeat.QUIET + 60)))
        assert not heartbeat.alive(lake, "r")


@pytest.mark.parametrize("pid", [-1, 0, 1e99, 2**40])
def test_a_process_that_cannot_be_is_none(tmp_path, pid):
    lake = Lake(str(tmp_path))
    lake.note("alive/r.json", json.dumps({"host": heartbeat._host(), "pid": pid, "born": 5.0}))
    assert not heartbeat.alive(lake, "r")


def test_a_broken_sign_of_life_stops_nobody_for_long(tmp_path):
    lake = Lake(str(tmp_path))
    with runs.recorded(lake, "rebuild", Profile.load("local")) as run:
        pass
    lake.upsert("runs", [{**lake.rows("runs", [run.id])[0], "run_id": "cut", "status": "running"}])
    lake.note("alive/cut.json", "")
    os.utime(tmp_path / "alive" / "cut.json", (0, time.time() - 2 * heartbeat.QUIET))
    with runs.recorded(lake, "rebuild", Profile.load("local")):
        assert statuses(lake)["cut"] == "died"


def test_a_process_is_known_by_when_it_began_and_one_that_ended_is_none(tmp_path, monkeypatch):
    lake = Lake(str(tmp_path))
    with heartbeat.beating(lake, "r"):
        told = json.loads(lake.noted("alive/r.json") or "")
        assert heartbeat.alive(lake, "r")
        before = psutil.Process.create_time  # a clock put right by an hour, in both
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: before(process) + 3600)
        assert not heartbeat.alive(lake, "r")
        then = psutil.boot_time
        monkeypatch.setattr(psutil, "boot_time", lambda: then() + 3600)
        assert heartbeat.alive(lake, "r")
        lake.note("alive/r.json", json.dumps({**told, "born": told["born"] - 60}))  # its number belongs to another by now
        assert not heartbeat.alive(lake, "r")
    ended = subprocess.Popen([sys.executable, "-c", ""])  # nobody asks how it ended: a zombie
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert heartbeat._born(ended.pid) is None
    ended.wait()


def test_a_driver_leaves_signs_of_life_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    lake, place = Lake(str(tmp_path)), "alive/r.json"
    with heartbeat.beating(lake, "r"):
        first = lake.noted_at(place)
        deadline = time.monotonic() + 240
        while lake.noted_at(place) == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lake.noted_at(place) != first
    assert lake.noted(place) is lake.noted_at(place) is None


def test_what_must_run_alone_and_what_is_under_way_see_one_another(tmp_path):
    lake, profile = Lake(str(tmp_path)), Profile.load("local")
    with runs.recorded(lake, "rebuild", profile):  # which makes the lake
        pass

    def start(flow: str) -> None:
        with runs.recorded(lake, flow, profile, runs.__name__):
            raise AssertionError

    for first, second in (("rebuild", "forget"), ("forget", "rebuild"), ("repair", "housekeeping"), ("forget", "forget")):
        refused = f"{second} cannot run now.* under way: "
        with runs.recorded(lake, first, profile, runs.__name__) as run, pytest.raises(ValueError, match=f"{refused}{run.id} .{first}"):
            start(second)
    with runs.recorded(lake, "rebuild", profile), runs.recorded(lake, "housekeeping", profile, runs.__name__):
        pass


def test_only_a_rebuild_makes_a_lake(tmp_path):
    lake = Lake(f"{tmp_path}/lkae")
    with pytest.raises(ValueError, match=f"no lake at {lake.uri}"), runs.recorded(lake, "retrain", Profile.load("local")):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []
