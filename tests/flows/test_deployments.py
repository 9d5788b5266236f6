"""prefect.yaml for real: a server, a deployment with a schedule, a worker, and the release that a scheduled run leaves."""

from __future__ import annotations

import subprocess
import sys
import time

import yaml

from egomill.flows.up import POOL
from egomill.tasks.lake import releases, runs
from egomill.tasks.lake.tables import Lake
from tests.flows.conftest import ROOT, SMALL, prefect, write_small


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
    takes = write_small(tmp_path / "takes", 1)
    shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    rebuild = next(d for d in shipped["deployments"] if d["name"] == "rebuild")
    rebuild["parameters"] = {"lake": lake.uri, "sources_": [str(takes)], "profile": "local", "settings": SMALL, "release": ""}
    rebuild["schedules"] = [{"interval": 10, "timezone": "UTC", "active": True}]
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
