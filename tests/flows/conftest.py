"""One small lake, made once a session from takes written in a second, of which tests get copies; a Prefect server for a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egomill.flows.rebuild import rebuild
from egomill.flows.up import stop, wait_for
from egomill.flows.verbs import plan
from egomill.tasks.lake import runs
from egomill.tasks.lake.tables import Lake
from tests.tasks.tiny_release import EXO, write_release

ROOT = Path(__file__).parents[2]
SMALL = ["clips.exo_cameras=1", "clips.hop=0.6", "clips.frames=5", "clips.unseen=0", "clips.exo_size=[112,64]", "clips.ego_size=64"]
SMALL += ["depth.height=64", "priors.min_coverage=0.0"]


@dataclass
class Small:
    """A lake and the takes that it was made of."""

    source: Path
    lake: Lake

    def rebuild(self, *settings: str, **more: Any) -> dict:
        return rebuild.fn(self.lake.uri, [str(self.source)], settings=[*SMALL, *settings], **more)

    def plan(self, *settings: str) -> dict[str, dict]:
        return {step["stage"].split("/")[0]: step for step in plan(self.lake.uri, [str(self.source)], settings=[*SMALL, *settings])}

    def computed(self) -> dict[str, int]:
        """By the newest run, by stage."""
        return {stage["stage"].split("/")[0]: stage["computed"] for stage in runs.history(self.lake, 1)[0]["stages"]}


def write_small(root: Path, takes: int) -> Path:
    """A release with depth beside it: a sphere of 4 m around each exo camera."""
    rng = np.random.default_rng(7)
    for name in write_release(root, takes):
        for cam in ("cam01", "cam02"):
            path = root / "sidecar" / name / f"{cam}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, static_depth=(4 + 0.2 * rng.random(EXO[::-1])).astype(np.float32))
    return root


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, ray_cluster) -> Small:
    """Three takes, two in training and one held out, and their release "first". Nobody changes it."""
    folder = tmp_path_factory.mktemp("small")
    small = Small(write_small(folder / "in", 3), Lake(str(folder / "lake")))
    small.rebuild(release="first")
    return small


@pytest.fixture
def small(made_once, tmp_path) -> Small:
    """A copy of the lake; the takes are shared."""
    shutil.copytree(made_once.lake.uri, tmp_path / "lake")
    return Small(made_once.source, Lake(str(tmp_path / "lake")))


@pytest.fixture
def server(tmp_path):
    """(environment, processes): a Prefect server of this test's own, and what it has to end."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_LOGGING_LEVEL": "WARNING"}
    env = {**os.environ, **quiet, "PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "prefect"), "EGOMILL_TEST": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        processes = [subprocess.Popen(command, env=env, start_new_session=True, stdout=log, stderr=log)]
    try:
        wait_for(f"{api}/health", processes[0])
        yield env, processes
    finally:
        stop(processes, patience=2.0)  # a worker waits for runs that nobody wants any more


def prefect(env: dict, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
