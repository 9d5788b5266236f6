"""A training that is killed again and again ends with the very bytes of one that is left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egomill.schemas.config import Profile
from egomill.tasks.lake import releases
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.stages import alignments, latents, picture_latents, sparse, view_latents
from tests.tasks import tiny_lake
from tests.tasks.tiny_lake import run_here

STEPS = 80  # Exo2EgoSyn's phases begin at 0, 24 and 56
SETTINGS = [f"train.steps={STEPS}", "train.rank=4", "train.batch=1", "train.workers=2", "train.checkpoint_every=5", "train.accumulate=2"]


SQUARE = ["clips.exo_size=[64,64]", "clips.ego_size=64", "clips.frames=5", "clips.views=2"]
SQUARE += ["exo2egosyn.align_width=32", "exo2egosyn.align_heads=2", "exo2egosyn.align_depth=1", "exo2egosyn.ray_width=8"]
HANDS = ["clips.exo_size=[64,64]", "clips.ego_size=64", "clips.frames=5", "priors.min_coverage=0", 'genego.sources=["jittered"]']
HANDS += ["genego.given=jittered", "ego_hands.picture=32", "ego_hands.width=32", "ego_hands.depth=1", "ego_hands.hidden=32"]
HANDS += ["train.steps=40", "train.targets=[]", "train.batch=1", "train.workers=2", "train.checkpoint_every=5"]


def of_hands(profile: Profile) -> list[Stage]:
    steps = [module.stage(profile, "jittered") for module in (alignments, sparse, picture_latents)]
    return [step for step in (*steps, picture_latents.stage(profile)) if step is not None]


MADE = {  # profile and method: stages, settings
    "local": (lambda profile: [latents.stage(profile)], SETTINGS),
    "local-exo2egosyn": (lambda profile: [view_latents.stage(profile)], [*SETTINGS, *SQUARE]),
    "local-genego": (of_hands, [*HANDS, "train.method=genego"]),
    "local-genego ego_hands": (of_hands, [*HANDS, "train.method=ego_hands", "ego_hands.sees=both"]),
}


@pytest.fixture(scope="module", params=list(MADE))
def built(request, tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    keys = tiny_lake.build(lake, clips=5, takes=3, held_out=1)
    stages, settings = MADE[request.param]
    if settings != SETTINGS:
        tiny_lake.square(lake, keys)
    tiny_lake.hands(lake, keys)
    name = request.param.split()[0]
    base = "embedded-pictures" if name == "local-genego" else tiny_lake.base(tmp_path_factory.mktemp("base"))
    profile = Profile.load(name, [*settings, f"model.base='{base}'"])
    for stage in stages(profile):
        run_here(lake, stage, keys)
    releases.publish(lake, "run", profile, "r1")
    return lake.uri, str(base), request.param


def start(lake: str, base: str, profile: str) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("train_once.py")), lake, base, profile.split()[0], *MADE[profile][1]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]
    return out.split()[-1]


def workers(process: subprocess.Popen) -> list[int]:
    """Training workers below a process."""
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    below, grew = {str(process.pid)}, True
    while grew:
        more = {pid for pid, parent, *_ in rows if parent in below} | below
        grew, below = more != below, more
    return [int(pid) for pid, _, *args in rows if pid in below and args and "RayTrainWorker" in args[0]]


def checkpoints(lake: str) -> int:
    """The number of the newest one that is whole."""
    steps = [json.loads(p.read_text())["step"] for p in Path(lake, "training").glob("*/checkpoint_*/step.json")]
    return max(steps, default=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_and_resumed_the_adapter_is_the_same_to_the_byte(built, tmp_path):
    lake, base, profile = built
    # The lake's place is part of no row, so a copy is the same data; sources are not read in training.
    shutil.copytree(lake, tmp_path / "killed")
    killed = str(tmp_path / "killed")
    rng = random.Random(5)
    for kill, least in (("driver", 5), ("worker", 30), ("driver", 60)):
        process = start(killed, base, profile)
        deadline = time.monotonic() + 240
        while checkpoints(killed) < least:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"no step {least}"
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.0))
        if kill == "worker":
            for pid in workers(process)[:1]:
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 240
            while checkpoints(killed) < least + 10 and process.poll() is None:  # it goes on by itself
                assert time.monotonic() < deadline
                time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    resumed = finish(start(killed, base, profile))
    assert resumed == finish(start(lake, base, profile))

    tracker = Tracker.beside(killed)
    (name,) = tracker.names()
    (adapter,) = tracker.adapters(name)
    (run,) = tracker.client.search_runs([tracker.client.get_experiment_by_name("egomill").experiment_id])
    assert adapter["run_id"] == run.info.run_id  # one MLflow run over all four processes
    assert run.info.status == "FINISHED"
    once = Tracker.beside(lake)
    losses = once.history(once.adapters(name)[0]["run_id"], "loss")
    assert sorted(losses) == list(range(STEPS))
    assert tracker.history(adapter["run_id"], "loss") == losses
