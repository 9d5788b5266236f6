"""An MLflow server whose artifacts lie in an object store, and trainings whose lake and checkpoints do: both ways to reach them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import httpx
import numpy as np
import pytest

from egomill.schemas.config import Profile
from egomill.tasks.lake import releases, tracking
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import CANDIDATE, CHAMPION, Tracker
from egomill.tasks.stages import latents
from tests.tasks import tiny_lake
from tests.tasks.training.test_resume import start
from tests.tasks.training.test_train import run_here

FETCH = """
import sys
from egomill.tasks.lake.tracking import Tracker
print(Tracker(sys.argv[1]).folder(sys.argv[2]))
"""


@pytest.fixture(scope="module", params=["proxied", "direct"])
def store(request, s3_server, tmp_path_factory):
    """A server that hands artifacts on, or that only says where they lie."""
    bucket, home = f"mlflow-{request.param}", tmp_path_factory.mktemp("server")
    boto3.client("s3").create_bucket(Bucket=bucket)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {
        "proxied": ["--artifacts-destination", f"s3://{bucket}/artifacts"],
        "direct": ["--no-serve-artifacts", "--default-artifact-root", f"s3://{bucket}/artifacts"],
    }[request.param]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"]
    with (home / "log").open("w") as log:
        command += ["--host", "127.0.0.1", "--port", str(port), *place]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _answers(f"{uri}/health"):
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.5)
        yield Tracker(uri), bucket
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A machine that has fetched nothing yet, and whose environment names no MLflow server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "cache"


def keys(bucket: str) -> list[str]:
    return [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_adapters_from_registration_to_roll_back(store, cache, tmp_path, monkeypatch):
    tracker, bucket = store
    made = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "egomill.json").write_text(json.dumps({"i": i}))
        (folder / "weights").write_bytes(bytes(100_000))
        made.append(tracker.register("ego-s3", folder, tracker.start(f"t{i}"), {"release": f"r{i}"}))
        tracker.alias(made[-1], CANDIDATE)
        assert any(key.endswith(f"{made[-1].run_id}/artifacts/adapter/weights") for key in keys(bucket))
    tracker.promote(made[0], "the first")
    for spec, i in {"ego-s3@champion": 0, "ego-s3@candidate": 1, "ego-s3/1": 0, "ego-s3@v2": 1}.items():
        found = tracker.resolve(spec)
        assert (found.spec, found.tags["release"]) == (f"ego-s3@v{i + 1}", f"r{i}")
        assert json.loads(Path(found.folder, "egomill.json").read_text()) == {"i": i}
        assert Path(found.folder).parent == cache / "egomill" / "adapters"
    with pytest.raises(ValueError, match="nobody"):
        tracker.resolve("nobody@champion")

    tracker.promote(made[1], "better")
    assert tracker.champion("ego-s3").version == "2"
    left, restored = tracker.roll_back("ego-s3")
    assert (left.version, restored.version, tracker.champion("ego-s3").version) == ("2", "1", "1")
    assert [v["aliases"] for v in tracker.adapters("ego-s3")] == [[CHAMPION], [CANDIDATE]]


def test_a_machine_fetches_an_adapter_once_whoever_asks(store, cache, tmp_path, monkeypatch):
    tracker, _ = store
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"adapter")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    spec = tracker.register("ego-once", tmp_path / "adapter", tracker.start("once"), {}).spec
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    both = [subprocess.Popen([sys.executable, "-c", FETCH, tracker.uri, spec], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (one,) = {process.communicate(timeout=120)[0].split()[-1] for process in both}
    assert Path(one, "weights").read_bytes() == b"adapter"
    monkeypatch.setattr(type(tracker.client), "download_artifacts", None)  # it is not asked again
    assert tracker.folder(spec) == one
    assert not [p for p in Path(one).parent.iterdir() if p.is_dir() and str(p) != one]  # nothing half fetched

    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(tracking, "CACHED", 1)
    (tmp_path / "adapter" / "weights").write_bytes(b"another")
    other = tracker.register("ego-once", tmp_path / "adapter", tracker.start("twice"), {})
    assert Path(other.folder, "weights").read_bytes() == b"another"
    assert not Path(one).exists()  # the cache is bounded
    assert Path(tracker.folder(spec), "weights").read_bytes() == b"adapter"  # and refilled


def test_pictures_come_and_go(store, cache):
    tracker, bucket = store
    run = tracker.start("pictures")
    for name in ("a", "b"):
        tracker.image(run, np.zeros((8, 8, 3), np.uint8), f"samples/{name}.png")
    assert tracker.files(run, "samples") == ["samples/a.png", "samples/b.png"]
    assert tracker.remove(run, "samples/a.png")
    assert tracker.files(run) == ["samples/b.png"]
    assert not any(key.endswith("a.png") for key in keys(bucket))


STEPS = 40
SETTINGS = [f"train.steps={STEPS}", "train.rank=4", "train.batch=1", "train.workers=2", "train.checkpoint_every=2"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("store", ["proxied"], indirect=True)
def test_a_training_on_an_object_store_goes_on_where_it_was_killed(store, cache, s3_lake, tmp_path, monkeypatch):
    """Two workers; release, latents and checkpoints in a bucket, metrics and adapter on the server."""
    tracker, _ = store
    lake, bucket = Lake(s3_lake), s3_lake.split("/")[2]
    clips = tiny_lake.build(lake, clips=4, takes=2, held_out=1, source=str(tmp_path / "source"))
    base = str(tiny_lake.base(tmp_path / "base"))
    profile = Profile.load("local", [*SETTINGS, f"model.base='{base}'"])
    run_here(lake, latents.stage(profile), clips)
    releases.publish(lake, "run", profile, "r1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)

    def marks() -> list[str]:
        return [key for key in keys(bucket) if key.startswith("some/lake/training/egox-") and key.endswith("/step.json")]

    process, deadline = start(lake.uri, base, SETTINGS), time.monotonic() + 480
    try:
        while not marks():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert tracker.adapters("egox") == []
    process = start(lake.uri, base, SETTINGS)
    said, errors = process.communicate(timeout=480)
    assert process.returncode == 0, errors[-4000:]

    (adapter,) = tracker.adapters("egox")
    assert said.split()[-1] == adapter["tags"]["sha256"]
    assert adapter["tags"]["steps"] == str(STEPS)
    assert sorted(tracker.history(adapter["run_id"], "loss")) == list(range(STEPS))
    assert len([p for p in tracker.client.get_metric_history(adapter["run_id"], "loss") if p.step == 0]) == 1  # it went on
    assert not [key for key in keys(bucket) if key.startswith("some/lake/training/egox-")]  # registered: checkpoints have served
