"""Rows that are made without Ray: processes of our own that die alone, and with their driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray.cloudpickle  # noqa: F401, before there is no path to it

from egomill.schemas.config import Resources
from egomill.tasks.lake import actors, child, cluster, runner
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from tests.tasks.lake.test_stage import GENEROUS, add_clips, texts, toy

ROOT = Path(__file__).parents[3]
SLEEPS = """
import os, sys, time
from functools import partial
from egomill.schemas.config import Resources
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.runner import run
from egomill.tasks.lake.stage import Stage
from pathlib import Path

def make(place):
    def work(row):
        Path(place).write_text(str(os.getpid()))
        time.sleep(600)
    return work

run(Stage("captions", {"clips": ("take_name",)}, {}, partial(make, sys.argv[2]), where="chosen"), Lake(sys.argv[1]), "r", Resources())
"""


def test_few_rows_start_no_ray_and_as_many_processes_as_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda: pytest.fail("no need"))
    monkeypatch.setattr(cluster, "cpus", lambda: 3)
    lake, started = Lake(str(tmp_path)), []
    start = child.Child.start
    monkeypatch.setattr(child.Child, "start", lambda self: started.append(self) or start(self))
    add_clips(lake, [str(i) for i in range(8)])
    assert runner.run(toy(), lake, "r1", Resources(shard=2, cpus={"captions": 1.5})).computed == 8
    assert sorted(texts(lake).values()) == [f"hello {i}" for i in range(8)]
    assert len(started) == 2
    assert all(each.process.returncode is not None for each in started)


def test_ray_is_for_more_rows_for_gpus_and_for_clusters(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    few = lambda rows, **settings: actors.few(toy(), rows, Resources(**settings))  # noqa: E731
    assert few(actors.FEW)
    assert not few(actors.FEW + 1)
    assert not few(1, gpus={"captions": 0.5})
    assert not few(1, cpus={"captions": 4096.0})  # which Ray refuses by name
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert not few(1)


def test_a_process_that_does_not_begin_is_said_why(tmp_path, monkeypatch):
    add_clips(lake := Lake(str(tmp_path)), ["a"])
    monkeypatch.setattr(sys, "path", [])  # it finds nothing there
    with pytest.raises(RuntimeError, match=r"ends with 1 before it begins: ModuleNotFoundError: No module named 'egomill'"):
        runner.run(toy(), lake, "r1", GENEROUS)


def test_what_a_worker_s_making_raises_is_raised_as_it_is(tmp_path):
    def make():
        raise ValueError("no weights in /nowhere")

    add_clips(lake := Lake(str(tmp_path)), ["a"])
    with pytest.raises(ValueError, match=r"^no weights in /nowhere") as caught:
        runner.run(Stage("captions", {"clips": ("take_name",)}, {}, make, where="chosen"), lake, "r1", GENEROUS)
    assert str(caught.value) == "no weights in /nowhere"
    assert "in make" in caught.value.__notes__[0]


def test_they_die_with_their_driver(tmp_path):
    add_clips(Lake(str(tmp_path / "lake")), ["a"])
    script, pid = tmp_path / "sleeps.py", tmp_path / "pid"
    script.write_text(SLEEPS)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, str(script), str(tmp_path / "lake"), str(pid)], env=env)
    try:
        while not (pid.exists() and pid.read_text()):
            assert driver.poll() is None
            time.sleep(0.05)
        process = psutil.Process(int(pid.read_text()))
        assert os.getpgid(process.pid) != os.getpgid(driver.pid)  # a signal to the driver's group is the driver's to answer
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        process.wait(timeout=60)
    finally:
        driver.kill()
