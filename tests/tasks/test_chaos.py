"""kill -9, at random moments, of workers, of the driver and of Ray itself; a full disk; a driver that dies between two commits.

After each the same command is given again, and the lake must end as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import chaos_chain
import psutil
import pytest

from egomill.schemas.tables import KEYS
from egomill.tasks.lake import Lake

PROGRAM = Path(chaos_chain.__file__)
SECONDS = 0.03  # a row


class Driver:
    """The program in a session of its own, with a Ray of its own."""

    def __init__(self, lake: Lake, takes: int, folder: Path, program: Path = PROGRAM) -> None:
        self.progress = folder / "progress"
        self.before = len(self.lines())
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        command = [sys.executable, str(program), lake.uri, str(takes), str(SECONDS), str(self.progress)]
        self.log = (folder / "log").open("a")
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log, start_new_session=True)
        self.known: set[psutil.Process] = set()

    def lines(self) -> list[str]:
        return self.progress.read_text().splitlines() if self.progress.exists() else []

    @property
    def steps(self) -> int:
        return len(self.lines()) - self.before

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def processes(self, *names: str) -> list[psutil.Process]:
        """What it started and still runs, by the beginning of the name."""
        try:
            self.known |= set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []
        return [p for p in self.known if p.is_running() and _name(p).startswith(names)]

    def end(self) -> None:
        """Kill it and all that it started."""
        self.processes("")
        for process in (self.process, *self.known):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(self.known, 30)
        self.log.close()


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def chaos(folder: Path, kills: int, takes: int, seed: int) -> tuple[Lake, Counter]:
    """Run the chain under `kills` kills and to its end."""
    dice, lake, done, starts = random.Random(seed), Lake(str(folder / "lake")), Counter(), 0
    driver = Driver(lake, takes, folder)
    try:
        while True:
            # Mostly in the middle of the work, now and then while everything starts.
            steps = 0 if dice.random() < 0.1 else driver.steps + dice.randint(1, 3)
            plan = [victim for victim in ("worker", "driver", "ray") for _ in range({"worker": 5, "driver": 3, "ray": 2}[victim])]
            victim = dice.choice(plan)
            while driver.alive and driver.steps < max(steps, victim == "worker"):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.3))
            if sum(done.values()) < kills and driver.alive:
                if victim == "driver":
                    driver.process.kill()
                    done[victim] += 1
                elif prey := driver.processes(*(("ray::MapWorker", "ray::Journal") if victim == "worker" else ("raylet", "gcs_server"))):
                    dice.choice(sorted(prey, key=lambda p: p.pid)).kill()
                    done[victim] += 1
                if victim == "ray":
                    driver.process.wait(timeout=240)  # it must notice
            elif driver.alive:
                driver.process.wait(timeout=400)
            if not driver.alive:
                code = driver.process.returncode
                driver.end()
                if code == 0 and sum(done.values()) >= kills:
                    return lake, done
                assert code or sum(done.values()) >= kills, f"the work was over after {sum(done.values())} kills"
                starts += 1
                assert starts < 3 * kills + 5, (folder / "log").read_text()[-5000:]
                driver = Driver(lake, takes, folder)
    finally:
        driver.end()


def undisturbed(folder: Path, takes: int) -> dict:
    """What the chain makes when it is left alone."""
    folder.mkdir()
    driver = Driver(Lake(str(folder / "lake")), takes, folder)
    try:
        assert driver.process.wait(timeout=400) == 0, (folder / "log").read_text()[-5000:]
    finally:
        driver.end()
    return chaos_chain.content(Lake(str(folder / "lake")))


def check(folder: Path, kills: int, takes: int, seed: int) -> Counter:
    lake, done = chaos(folder, kills, takes, seed)
    found, wanted = chaos_chain.content(lake), undisturbed(folder / "calm", takes)
    for table, rows in found.items():
        assert max(Counter(tuple(r[k] for k in KEYS[table]) for r in rows).values()) == 1, table
        assert rows == wanted[table], table
    good = sum(i % 7 != 3 for i in range(takes))
    assert [len(found[t]) for t in ("takes", "clips")] == [good, 2 * good]
    assert {r["status"] for r in found["failures"]} == {"rejected"}
    return done


def test_six_kills_leave_no_trace(tmp_path):
    assert sum(check(tmp_path, kills=6, takes=40, seed=3).values()) == 6


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_fifty_kills_leave_no_trace(tmp_path):
    done = check(tmp_path, kills=50, takes=150, seed=1)
    assert sum(done.values()) == 50
    assert set(done) == {"worker", "driver", "ray"}
    print(dict(done))
