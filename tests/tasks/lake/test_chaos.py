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

import psutil
import pytest

from egomill.schemas.fingerprint import digest
from egomill.schemas.item import Item
from egomill.schemas.tables import KEYS
from egomill.tasks.lake import actors
from egomill.tasks.lake.runner import run
from egomill.tasks.lake.tables import Lake
from tests.tasks.lake import chaos_chain

ROOT = Path(__file__).parents[3]
PROGRAM = "from egomill.tasks.lake.cluster import connect\nfrom tests.tasks.lake import chaos_chain\nconnect()\n"
SECONDS = 0.03  # a row
NAMES = {"worker": ("ray::MapWorker", "ray::Journal"), "ray": ("raylet", "gcs_server")}


class Driver:
    """The program in a session of its own, with a Ray of its own."""

    def __init__(self, lake: Lake, takes: int, folder: Path, version: int = 1, patch: str = "") -> None:
        self.progress = folder / "progress"
        self.before = len(self.lines())
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        env["RAY_gcs_rpc_server_reconnect_timeout_s"] = "1"  # else most of the work is done before the loss of the gcs is noticed
        program = f"{PROGRAM}{patch}chaos_chain.main({lake.uri!r}, {takes}, {SECONDS}, {str(self.progress)!r}, {version})"
        self.log = (folder / "log").open("a")
        command = [sys.executable, "-c", program]
        self.process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=self.log, stderr=self.log, start_new_session=True)
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


def chaos(folder: Path, victims: list[str], takes: int, seed: int) -> tuple[Lake, Counter, int]:
    """Run the chain while its processes are killed, one after the other, and to its end. What is done too early is done anew, with other
    settings: the version of the last ones is the third answer.
    """
    dice, lake, done, version, starts = random.Random(seed), Lake(str(folder / "lake")), Counter(), 1, 1
    dice.shuffle(victims)
    driver = Driver(lake, takes, folder, version)
    try:
        while True:
            if driver.alive and victims:
                # Mostly in the middle of the work, now and then while everything starts.
                steps = 0 if dice.random() < 0.1 else driver.steps + dice.randint(1, 3)
                while driver.alive and driver.steps < max(steps, victims[-1] == "worker"):
                    time.sleep(0.01)
                time.sleep(dice.uniform(0, 0.3))
                prey = driver.processes(*NAMES[victims[-1]]) if victims[-1] in NAMES else [driver.process]
                if driver.alive and prey:
                    dice.choice(sorted(prey, key=lambda p: p.pid)).kill()
                    done[victims.pop()] += 1
                    if not driver.processes("raylet") or not driver.processes("gcs_server"):
                        driver.process.wait(timeout=240)  # it must notice
            elif driver.alive:
                driver.process.wait(timeout=400)
            if not driver.alive:
                driver.end()
                if driver.process.returncode == 0:
                    if not victims:
                        return lake, done, version
                    version += 1
                starts += 1
                assert starts < 3 * (sum(done.values()) + 3), (folder / "log").read_text()[-5000:]
                driver = Driver(lake, takes, folder, version)
    finally:
        driver.end()


def calmly(uri: str, takes: int, version: int) -> None:
    """The chain without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors, "FEW", 2 * takes)
        chaos_chain.main(uri, takes, 0, os.devnull, version)


def undisturbed(folder: Path, takes: int, version: int) -> dict:
    """What the chain makes when it is left alone."""
    lake = Lake(str(folder / "lake"))
    calmly(lake.uri, takes, version)
    return chaos_chain.content(lake)


def check(folder: Path, victims: list[str], takes: int, seed: int) -> Counter:
    lake, done, version = chaos(folder, victims, takes, seed)
    found, wanted = chaos_chain.content(lake), undisturbed(folder / "calm", takes, version)
    for table, rows in found.items():
        assert max(Counter(tuple(r[k] for k in KEYS[table]) for r in rows).values()) == 1, table
        assert rows == wanted[table], table
    good = sum(i % 7 != 3 for i in range(takes))
    assert [len(found[t]) for t in ("takes", "clips")] == [good, 2 * good]
    assert {r["status"] for r in found["failures"]} == {"rejected"}
    print(f"kills: {dict(done)}; the chain was made {version} times; rows: { {t: len(rows) for t, rows in found.items()} }")
    return done


def test_a_kill_of_each_kind_leaves_no_trace(tmp_path):
    assert check(tmp_path, ["worker", "driver", "ray"], takes=20, seed=3) == {"worker": 1, "driver": 1, "ray": 1}


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_fifty_kills_leave_no_trace(tmp_path):
    victims = ["worker"] * 30 + ["driver"] * 12 + ["ray"] * 8
    assert sum(check(tmp_path, victims, takes=60, seed=1).values()) == 50


def test_a_driver_that_dies_between_a_commit_and_its_failures_tells_them_the_next_time(tmp_path):
    patch = "import os\nfrom egomill.tasks.lake.tables import Lake\nupsert = Lake.upsert\n"
    patch += "Lake.upsert = lambda self, table, rows: os._exit(9) if table == 'failures' and rows else upsert(self, table, rows)\n"
    lake = Lake(str(tmp_path / "lake"))
    driver = Driver(lake, 8, tmp_path, patch=patch)
    try:
        assert driver.process.wait(timeout=400) == 9, (tmp_path / "log").read_text()[-5000:]
    finally:
        driver.end()
    kept = {r["take_uid"]: r["run_id"] for r in lake.read("takes").to_pylist()}
    assert (len(kept) > 0, lake.count("failures")) == (True, 0)
    calmly(lake.uri, 8, 1)
    found = chaos_chain.content(lake)
    assert len(found["takes"]) == len({r["take_uid"] for r in found["takes"]}) == 7
    assert Counter(r["reason"] for r in found["failures"]) == {"no_ego_video": 1, "caption_failed": 2}
    assert {r["take_uid"]: r["run_id"] for r in lake.read("takes").to_pylist()}.items() >= kept.items()  # not made again


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB; skips where mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_fails_the_run_and_room_lets_it_go_on(small_disk, tmp_path, ray_cluster):
    lake = Lake(str(small_disk / "lake"))
    takes, clips, captions = chaos_chain.stages(0)
    items = [Item(f"t{i:04d}", digest(i), {"number": i}) for i in range(8)]
    run(takes, lake, "r1", chaos_chain.RESOURCES, items=items)
    disk = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 120_000))

    def until_full() -> None:
        for again in range(100):  # commits of a few kB each: soon one does not fit
            run(clips, lake, f"r2.{again}", chaos_chain.RESOURCES)
            lake.commit("clips", None, replace="true")

    with pytest.raises(Exception, match=r"[Nn]o space left|os error 28"):
        until_full()
    before = {row["clip_id"] for row in lake.read("clips").to_pylist()}  # still readable, and whole
    assert len(before) % 2 == 0
    (small_disk / "ballast").unlink()
    report = run(clips, lake, "r3", chaos_chain.RESOURCES)
    assert report.balanced
    run(captions, lake, "r3", chaos_chain.RESOURCES)
    made = [row["clip_id"] for row in lake.read("clips").to_pylist()]
    assert len(made) == len(set(made)) == 2 * lake.count("takes")
    assert run(captions, lake, "r3", chaos_chain.RESOURCES).outputs == lake.count("captions") > 0
