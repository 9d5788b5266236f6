"""The same flows against a cluster of two machines: stages run where their resources are, by the driver's code, and a machine may die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from egomill.flows.rebuild import stages
from egomill.schemas.config import STAGES, Profile
from egomill.tasks.lake import releases, runs
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from tests.flows.conftest import SMALL, write_small
from tests.flows.raylets import LOOPBACK, Cluster
from tests.tasks import tiny_lake

PACKAGE = Path(__file__).parents[2] / "egomill"
# What the driver's copy of the package has, and no other: its workers say where they are; one may be told to hold on to its shard.
SAYS = """
    import os as here
    with open({places!r}, "a") as places:
        told = {{"what": {what}, "machine": here.environ["MACHINE"], "file": __file__, "secret": here.environ.get("SECRET")}}
        places.write(json.dumps(told) + "\\n")
"""
HOLDS = """
        import os as here, time as clock
        hold, held = Path({hold!r}), Path({held!r})
        while self.stage.name == "priors" and hold.exists():
            if here.environ["MACHINE"] == "two":
                held.touch()
            elif held.exists():
                break  # both have begun
            clock.sleep(0.1)
"""
RESOURCES = ["resources.shard=1", "resources.cpus={depth=0}", "resources.gpus={depth=0.5}", "resources.actors={priors=1}"]


class Driver:
    """The command line, with a package of its own, in a folder where something else is called egomill."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.lake = Lake(str(folder / "lake"))
        self.takes = write_small(folder / "takes", 3)
        base = tiny_lake.base(folder / "base")
        self.settings = [*SMALL, *RESOURCES, f"model.base='{base}'"]
        self.places, self.hold, self.held = (folder / name for name in ("places", "hold", "held"))
        shutil.copytree(PACKAGE, folder / "driver" / "egomill", ignore=shutil.ignore_patterns("__pycache__"))
        at = '        self.watch.made(f"worker {me}")\n'
        self._change("tasks/lake/actors.py", at, SAYS.format(places=str(self.places), what="stage.name").replace("\n    ", "\n        "))
        at = "        fragments, outcomes, made, size = [], [], [], 0\n"
        self._change("tasks/lake/actors.py", at, HOLDS.format(hold=str(self.hold), held=str(self.held)))
        at = "    check_code(plan.code)\n"
        self._change("tasks/training/loop.py", at, SAYS.format(places=str(self.places), what='"training"'))
        decoy = folder / "elsewhere" / "egomill"
        decoy.mkdir(parents=True)
        (decoy / "__init__.py").write_text("raise ImportError('the wrong one')\n")

    def _change(self, file: str, after: str, what: str) -> None:
        path = self.folder / "driver" / "egomill" / file
        source = path.read_text()
        assert source.count(after) == 1
        path.write_text(source.replace(after, after + what))

    def start(self, *words: str, settings: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [sys.executable, "-P", "-c", "from egomill.flows.cli import main; main()", *words, "--lake", self.lake.uri]
        command += [part for setting in (*self.settings, *settings) for part in ("--set", setting)]
        env = {key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
        env |= {**LOOPBACK, "RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(self.folder / "driver"), "SECRET": "the driver's"}
        self.places.unlink(missing_ok=True)
        return subprocess.Popen(command, env=env, cwd=self.folder / "elsewhere", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words: str, settings: tuple[str, ...] = ()) -> dict[str, list[dict]]:
        """The command to its end; {stage, or training: [what each of its workers said]}."""
        return self.end(self.start(*words, settings=settings))

    def end(self, process: subprocess.Popen) -> dict[str, list[dict]]:
        said, errors = process.communicate()
        assert process.returncode == 0, said[-2000:] + errors[-6000:]
        found = defaultdict(list)
        for line in self.places.read_text().splitlines():
            told = json.loads(line)
            found[told["what"]].append(told)
        return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with Cluster() as cluster:
        yield Driver(tmp_path_factory.mktemp("cluster"), cluster)


@pytest.fixture(scope="module")
def rebuilt(driver):
    """What the workers of the first rebuild said."""
    return driver.run("rebuild", str(driver.takes))


def whole(lake: Lake) -> set[str]:
    """The clips, all of whose rows are there, and nobody else's."""
    clips = set(lake.read("clips", ["clip_id"], "chosen")["clip_id"].to_pylist())
    assert clips
    for table in ("depth", "priors", "directions", "captions", "latents"):
        one = "name = 'ego'" if table == "latents" else None  # of the rows that a clip has there
        assert sorted(lake.read(table, ["clip_id"], one)["clip_id"].to_pylist()) == sorted(clips), table
    assert lake.count("failures") == 0
    return clips


def test_a_rebuild_runs_where_its_resources_are_by_the_driver_s_code(driver, rebuilt):
    clips = whole(driver.lake)
    assert set(rebuilt) == {stage.name for stage in stages(Profile.load("local"))} < set(STAGES)
    assert {told["machine"] for told in rebuilt["depth"]} == {"two"}  # there alone is a GPU
    assert {told["machine"] for said in rebuilt.values() for told in said} == {"one", "two"}
    assert len(rebuilt["priors"]) == 1 < len(clips)  # resources.actors
    for told in (told for said in rebuilt.values() for told in said):
        assert "py_modules_files" in told["file"]  # not what is installed, nor what lies in the driver's working folder
        assert told["secret"] is None  # a worker's environment is its machine's
    assert [run["status"] for run in runs.history(driver.lake, 5)] == ["completed"]
    assert releases.get(driver.lake)["clips"] == len(clips)


@pytest.mark.slow
def test_training_over_both_machines(driver, rebuilt):
    short = ("train.steps=4", "train.rank=4", "train.batch=1", "train.workers=2", "train.checkpoint_every=2")
    said = driver.run("retrain", settings=short)
    assert sorted(told["machine"] for told in said["training"]) == ["one", "two"]
    assert all("py_modules_files" in told["file"] for told in said["training"])
    (adapter,) = Tracker.beside(driver.lake.uri).adapters("egox")
    assert adapter["tags"]["steps"] == "4"
    assert "candidate" in adapter["aliases"]
    made = driver.lake.read("generations", ["adapter"])["adapter"].to_pylist()
    assert set(made) == {"base", "egox@v1"}


@pytest.mark.slow
def test_a_machine_that_dies_loses_nothing(driver, rebuilt):
    before = {row["clip_id"]: row["fingerprint"] for row in driver.lake.read("priors", ["clip_id", "fingerprint"]).to_pylist()}
    driver.hold.touch()
    process = driver.start("rebuild", str(driver.takes), settings=("priors.min_coverage=0.001", "resources.actors={}"))
    deadline = time.monotonic() + 240
    while not driver.held.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.1)
    driver.cluster.kill("two")
    said = driver.end(process)
    assert {told["machine"] for told in said["priors"]} == {"one", "two"}  # an actor each, now that nothing keeps them few
    assert whole(driver.lake) == before.keys()
    assert all(row["fingerprint"] != before[row["clip_id"]] for row in driver.lake.read("priors", ["clip_id", "fingerprint"]).to_pylist())
    assert runs.history(driver.lake, 1)[0]["status"] == "completed"
