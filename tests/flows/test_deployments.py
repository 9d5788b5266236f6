"""prefect.yaml for real: a server, a deployment with a schedule, a worker, and the release that a scheduled run leaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from egomill.flows.up import POOL, stop, wait_for
from egomill.scenes.take import simulate
from egomill.tasks import releases, runs
from egomill.tasks.lake import Lake

ROOT = Path(__file__).parents[2]


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
        stop(processes)


def prefect(env: dict, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_deployments_are_complete():
    deployments = {d["name"]: d for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert set(deployments) == {"rebuild", "retrain", "nightly", "housekeeping"}
    assert deployments["nightly"]["schedules"][0]["cron"]
    for deployment in deployments.values():
        file, _, flow = deployment["entrypoint"].partition(":")
        assert f"def {flow}(" in (ROOT / file).read_text()
        assert deployment["work_pool"]["name"] == POOL


def test_a_worker_runs_what_the_schedule_asks_for(server, tmp_path):
    env, processes = server
    lake = Lake(str(tmp_path / "lake"))
    simulate(tmp_path / "takes", 2, seed=3, seconds=1.5)
    shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    rebuild = next(d for d in shipped["deployments"] if d["name"] == "rebuild")
    rebuild["parameters"] = {"lake": lake.uri, "sources_": [str(tmp_path / "takes")], "profile": "local", "settings": [], "release": ""}
    rebuild["schedules"] = [{"cron": "* * * * *", "timezone": "UTC", "active": True}]
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({**shipped, "deployments": [rebuild]}))

    prefect(env, "work-pool", "create", POOL, "--type", "process")
    prefect(env, "deploy", "--prefect-file", str(file), "--name", "rebuild")
    with (tmp_path / "worker.log").open("w") as log:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
        processes.append(subprocess.Popen(command, env=env, cwd=tmp_path, start_new_session=True, stdout=log, stderr=log))

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (releases.latest(lake) and runs.history(lake)[-1]["status"] == "completed"):
        assert processes[-1].poll() is None, (tmp_path / "worker.log").read_text()
        time.sleep(1)
    first = runs.history(lake)[-1]
    assert first["status"] == "completed", (tmp_path / "worker.log").read_text()
    assert first["flow"] == "rebuild"
    published = releases.latest(lake)
    assert published is not None
    assert published["clips"] > 0
    assert all(stage["inputs"] == stage["outputs"] + stage["rejected"] + stage["failed"] for stage in first["stages"])
