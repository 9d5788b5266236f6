"""Twenty clips of which one is poisoned, one hangs, and one takes its actor with it once: eighteen videos and two failure rows."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from egomill.schemas.config import Profile, Resources
from egomill.schemas.outcome import StageFailed
from egomill.tasks.lake.runner import run
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.stages import generations, latents
from tests.tasks import tiny_lake
from tests.tasks.tiny_lake import run_here

POISON, HANGS, KILLS, CLIPS = 3, 8, 13, 20


def sabotaged(stage: Stage, hangs: str, kills: str, marker: Path) -> Stage:
    """The stage's own worker, but that one clip never ends and another kills the process when it is first met."""

    def make(made: Callable) -> Callable:
        worker = made()

        def work(row: dict):
            if row["clips"]["clip_id"] == hangs:
                re.match(r"(a+)+$", "a" * 64 + "b")  # in C, and never lets go of the interpreter
            if row["clips"]["clip_id"] == kills and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return worker(row)

        return work

    return replace(stage, worker=partial(make, stage.worker))


@pytest.mark.timeout(900)
def test_eighteen_videos_and_two_failures(tmp_path, ray_cluster):
    lake = Lake(str(tmp_path / "lake"))
    keys = tiny_lake.build(lake, clips=CLIPS, takes=4, held_out=CLIPS)
    profile = Profile.load("local", [f"model.base='{tiny_lake.base(tmp_path / 'base')}'"])
    run_here(lake, latents.stage(profile), keys)
    (row,) = lake.rows("latents", [keys[POISON]], where="name = 'prior'")
    lake.upsert("latents", [{**row, "tensor": {**row["tensor"], "data": row["tensor"]["data"][:-7]}}])
    stage = sabotaged(generations.stage(profile, "base"), keys[HANGS], keys[KILLS], tmp_path / "killed")
    strict = Resources(shard=5, cpus={"generations": 1.0}, timeouts={"generations": 10.0}, attempts=1, failure_threshold=0.05)

    with pytest.raises(StageFailed) as failed:  # two of twenty are more than 5 %
        run(stage, lake, "night", strict, keys=keys)
    report = failed.value.args[0]
    assert (report.inputs, report.outputs, report.rejected, report.failed) == (CLIPS, CLIPS - 2, 0, 2)
    reasons = {r["key"]: r["reason"] for r in lake.read("failures").to_pylist()}
    assert reasons == {keys[POISON]: "Damaged", keys[HANGS]: "Timeout"}
    assert (tmp_path / "killed").exists()
    videos = {r["clip_id"]: r for r in lake.read("generations").to_pylist()}
    assert set(videos) == set(keys) - set(reasons)
    assert {r["seed"] for r in videos.values()} == {generations.seed_of(profile.generate.seed, key) for key in videos}

    version = lake.version("generations")
    again = run(stage, lake, "morning", strict.model_copy(update={"failure_threshold": 0.2}), keys=keys)
    assert (again.computed, again.outputs, again.failed, lake.version("generations")) == (0, CLIPS - 2, 2, version)

    some = [keys[KILLS], keys[0], keys[-1]]  # with other neighbours, in another order: the same seed, the same bytes
    lake.commit("generations", None, replace=" OR ".join(f"clip_id = '{key}'" for key in some))
    assert run(stage, lake, "noon", strict.model_copy(update={"shard": 1, "failure_threshold": 1.0}), keys=keys[::-1]).computed == 3
    for made in lake.rows("generations", some):
        assert (made["video"], made["seed"]) == (videos[made["clip_id"]]["video"], videos[made["clip_id"]]["seed"])
