"""The nightly for real: a Prefect server, a worker, a schedule that fires twice, a cancellation; a release that starts retraining; a flow
run whose machine went.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from egomill.flows.up import AUTOMATIONS, POOL
from egomill.tasks.lake import releases, runs
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from tests.flows.conftest import ROOT, SMALL, prefect, write_small
from tests.tasks import tiny_lake

FEW = ["train.rank=4", "train.batch=1", "train.workers=1", "train.checkpoint_every=10"]
PATIENCE = 900.0  # seconds, for a machine that has other things to do


class Served:
    """A lake, its takes, and a server with a worker and one deployment after another."""

    def __init__(self, env: dict, processes: list, folder: Path) -> None:
        self.env, self.folder = {**env, "PREFECT_LOGGING_LEVEL": "INFO"}, folder
        self.api = env["PREFECT_API_URL"]
        self.lake = Lake(str(folder / "lake"))
        self.source = write_small(folder / "in", 3)
        self.settings = [*SMALL, *FEW, f"model.base='{tiny_lake.base(folder / 'base')}'"]
        self.shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        prefect(self.env, "work-pool", "create", POOL, "--type", "process")
        self.log = folder / "worker.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
            self.worker = subprocess.Popen(command, env=self.env, cwd=ROOT, start_new_session=True, stdout=log, stderr=log)
        processes.append(self.worker)

    def deploy(self, name: str, steps: int, cron: str = "") -> None:
        """A shipped deployment, with this lake and these takes in the place of the shipped ones."""
        shipped = next(d for d in self.shipped["deployments"] if d["name"] == name)
        ours = {"lake": self.lake.uri, "sources_": [str(self.source)], "settings": [*self.settings, f"train.steps={steps}"]}
        parameters = {key: ours.get(key, value) for key, value in shipped["parameters"].items()}
        schedules = [{"cron": cron, "timezone": "UTC", "active": True}] if cron else []
        deployment = {**shipped, "parameters": parameters, "schedules": schedules}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**self.shipped, "deployments": [deployment]}))
        prefect(self.env, "deploy", "--prefect-file", str(file), "--name", name)

    def post(self, path: str, **body: Any) -> Any:
        return httpx.post(f"{self.api}/{path}", json=body, timeout=30).raise_for_status().json()

    def flow_runs(self, flow: str) -> list[dict]:
        """Oldest first."""
        return self.post("flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="START_TIME_ASC")

    def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := what()):
            assert self.worker.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.5)
        return found

    def ended(self, flow: str, count: int) -> list[dict]:
        def look() -> list[dict]:
            found = [r for r in self.flow_runs(flow) if r["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
            return found if len(found) >= count else []

        return self.until(look)

    def children(self) -> list[str]:
        """Names of what the worker started, and what that started."""
        return [p.name() for p in psutil.Process(self.worker.pid).children(recursive=True)]


@pytest.fixture
def served(server, tmp_path) -> Served:
    return Served(*server, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_nightly_fires_twice_and_the_second_is_up_to_date_then_one_is_cancelled(served):
    served.deploy("nightly", steps=4, cron="* * * * *")
    first, second = served.ended("nightly", 2)[:2]
    assert (first["state_type"], second["state_type"]) == ("COMPLETED", "COMPLETED"), served.log.read_text()[-4000:]
    assert first["auto_scheduled"]
    assert first["end_time"] <= second["start_time"]  # one at a time, though it took longer than a minute
    (release,) = releases.every(served.lake)
    tracker = Tracker.beside(served.lake.uri)
    (adapter,) = tracker.adapters("egox")
    by_flow = [(r["flow"], r["status"], sum(s["computed"] for s in r["stages"])) for r in reversed(runs.history(served.lake))]
    (_, built, some), (_, trained, scored), (_, again, none), (_, later, nothing) = by_flow[:4]
    assert {built, trained, again, later} == {"completed"}
    assert some > 0
    assert scored > 0
    assert none == nothing == 0

    told = served.post("logs/filter", sort="TIMESTAMP_ASC", limit=200, logs={"level": {"ge_": 20}})
    lines = "\n".join(line["message"] for line in told)
    assert f"release {release['name']} (unchanged: up to date)" in lines
    assert "egox@v1 is up to date" in lines
    kept = {a["key"].removesuffix(f"-{adapter['tags']['base']}") for a in served.post("artifacts/filter")}
    assert {"stage-takes", "stage-latents", "mlflow-run", "report", "held-out"} <= kept

    # A longer training, cancelled in the middle of it.
    file = yaml.safe_load((served.folder / "nightly.yaml").read_text())
    (deployment,) = file["deployments"]
    found = httpx.get(f"{served.api}/deployments/name/nightly/nightly").raise_for_status().json()
    httpx.patch(f"{served.api}/deployments/{found['id']}", json={"paused": True}).raise_for_status()
    parameters = {**deployment["parameters"], "settings": [*served.settings, "train.steps=100000"]}
    long = served.post(f"deployments/{found['id']}/create_flow_run", parameters=parameters)
    training = served.lake.uri + "/training"
    served.until(lambda: list(Path(training).glob("*/checkpoint_manager_snapshot.json")))
    prefect(served.env, "flow-run", "cancel", long["id"])

    def over() -> bool:
        return httpx.get(f"{served.api}/flow_runs/{long['id']}").raise_for_status().json()["state_name"] == "Cancelled"

    served.until(over)
    served.until(lambda: not [name for name in served.children() if name.startswith(("ray", "gcs"))])
    newest = runs.history(served.lake, 1)[0]
    assert (newest["flow"], newest["status"]) == ("retrain", "cancelled")
    assert served.lake.noted(f"alive/{newest['run_id']}.json") is None
    assert [r["name"] for r in releases.every(served.lake)] == [release["name"]]
    assert [a["version"] for a in tracker.adapters("egox")] == [adapter["version"]]
    assert tracker.running() == {}
    (snapshot,) = Path(training).glob("*/checkpoint_manager_snapshot.json")
    whole = snapshot.read_text()
    for checkpoint in snapshot.parent.glob("checkpoint_*/"):
        assert checkpoint.name in whole
        assert json.loads((checkpoint / "step.json").read_text())["step"] % 10 == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_release_starts_retraining_and_what_was_rejected_is_on_the_rebuild_s_page(served):
    (served.source / "sidecar" / "site_bike_00_1" / "cam01.npz").write_bytes(b"no depth")
    served.deploy("retrain", steps=2)
    served.deploy("rebuild", steps=2, cron="* * * * *")
    (rebuilt, *_) = served.ended("rebuild", 1)
    assert rebuilt["state_type"] == "COMPLETED", served.log.read_text()[-4000:]
    (trained, *_) = served.ended("retrain", 1)
    assert trained["state_type"] == "COMPLETED", served.log.read_text()[-4000:]
    assert trained["created_by"]["type"] == "AUTOMATION"
    assert Tracker.beside(served.lake.uri).adapters("egox")
    (release,) = releases.every(served.lake)
    lines = [line["message"] for line in served.post("logs/filter", limit=200, logs={"flow_run_id": {"any_": [rebuilt["id"]]}})]
    assert any(release["name"] in line for line in lines)
    assert any("takes: 3 in = 2 made + 1 rejected" in line for line in lines)
    assert any("1 depth_sidecar_invalid" in line for line in lines)
    assert len(served.flow_runs("retrain")) == 1  # the rebuilds since were up to date


def test_a_flow_run_whose_machine_went_is_called_crashed(server, tmp_path):
    env, _ = server
    api = env["PREFECT_API_URL"]
    shipped = yaml.safe_load((ROOT / AUTOMATIONS).read_text())
    (automation,) = shipped["automations"]
    file = tmp_path / AUTOMATIONS
    file.write_text(yaml.safe_dump({"automations": [{**automation, "trigger": {**automation["trigger"], "within": 10}}]}))
    prefect(env, "automation", "create", "--from-file", str(file))

    def post(path: str, body: Any) -> Any:
        answer = httpx.post(f"{api}/{path}", json=body, timeout=30).raise_for_status()
        return answer.json() if answer.content else None

    flow = post("flows/", {"name": "nightly"})
    lost, fine = (post("flow_runs/", {"flow_id": flow["id"], "state": {"type": "RUNNING"}})["id"] for _ in range(2))

    def beat(run: str, *more: str) -> None:
        """What a run says: that it lives, and what follows at once."""
        about = {"resource": {"prefect.resource.id": f"prefect.flow-run.{run}"}}
        for event in ("prefect.flow-run.heartbeat", *more):
            time.sleep(0.01)  # the second comes after the first
            post("events", [{**about, "event": event, "occurred": datetime.now(UTC).isoformat(), "id": str(uuid.uuid4())}])

    def state(run: str) -> str:
        return httpx.get(f"{api}/flow_runs/{run}").raise_for_status().json()["state_type"]

    beat(fine, "prefect.flow-run.Completed")
    beat(lost)
    deadline = datetime.now(UTC) + timedelta(seconds=600)
    while state(lost) == "RUNNING" and datetime.now(UTC) < deadline:
        time.sleep(0.5)
    assert state(lost) == "CRASHED"
    assert state(fine) == "RUNNING"  # it said how it ended (its state, made up here, is nobody's to change)
