"""Two rebuilds of the same takes at once, on a folder and on an object store: both end well, nothing twice, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from egomill.scenes.take import simulate
from egomill.tasks.lake import releases, runs
from egomill.tasks.lake.tables import Lake

SETTINGS = [part for s in ("clips.exo_cameras=1", "clips.hop=0.3", "clips.unseen=0", "resources.shard=1") for part in ("--set", s)]
COMMAND = [sys.executable, "-c", "from egomill.flows.cli import main; main()"]


@pytest.fixture(scope="module")
def takes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sim") / "takes"
    simulate(folder, 2, seed=5, seconds=1.2, workers=2)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_two_rebuilds_at_once(where, takes, tmp_path, request):
    lake = Lake(str(tmp_path / "lake") if where == "folder" else request.getfixturevalue("s3_lake"))
    env = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    command = [*COMMAND, "rebuild", str(takes), "--lake", lake.uri, *SETTINGS]
    both = []
    for _ in range(2):  # the second as soon as the first has its Ray and its first row: two Rays that start at once take each other's time
        both.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        while both[0].poll() is None and not lake.count("takes"):
            time.sleep(0.2)
    said = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said

    wanted = Counter(r["clip_id"] for r in lake.read("clips", ["clip_id"], "chosen").to_pylist())
    assert wanted
    assert set(wanted.values()) == {1}
    for table in ("depth", "priors", "directions", "captions", "latents"):
        one = "name = 'ego'" if table == "latents" else None  # of the rows that a clip has there
        assert Counter(lake.read(table, ["clip_id"], one)["clip_id"].to_pylist()) == wanted, table
    assert lake.count("failures") == 0
    assert [run["status"] for run in runs.history(lake, 5)] == ["completed", "completed"]
    for release in releases.every(lake):
        assert set(release["checks"].values()) == {"passed"}
        assert release["clips"] == len(wanted)

    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0, again.stderr
    assert all(stage["computed"] == 0 for stage in runs.history(lake, 1)[0]["stages"])
