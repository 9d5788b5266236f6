"""Runs, dataset inputs and adapters in MLflow on sqlite."""

import json
import subprocess
import sys

import numpy as np
import pytest

from egomill.tasks.lake import Lake
from egomill.tasks.tracking import CANDIDATE, CHAMPION, Tracker

REOPEN = """
import sys, mlflow
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
dataset = client.get_run(sys.argv[2]).inputs.dataset_inputs[0].dataset
print(mlflow.data.get_source(dataset).load()["captions"].count_rows())
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    return lake, Tracker.beside(lake.uri)


def test_import_of_tracking_does_not_import_mlflow():
    code = "import sys, egomill.tasks.tracking; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_and_reopening_its_dataset_at_its_version_elsewhere(store):
    lake, tracker = store
    row = {"clip_id": "a", "text": "t", "source": "template", "fingerprint": "f", "run_id": "r"}
    lake.upsert("captions", [row])
    versions = {"captions": lake.version("captions")}
    lake.upsert("captions", [{**row, "clip_id": "b"}])
    run = tracker.start("train", {"profile": "local"})
    tracker.params(run, {"train": {"steps": 3, "rank": 4}, "model": {"base": "embedded"}})
    tracker.metrics(run, [(step, {"loss": 1.0 / (step + 1)}) for step in range(3)])
    tracker.metrics(run, [(2, {"loss": 0.25})])
    tracker.image(run, np.zeros((8, 8, 3), np.uint8), "samples/first.png")
    digest = tracker.dataset(run, "r1", lake.uri, versions)
    tracker.end(run)
    assert tracker.history(run, "loss") == {0: 1.0, 1: 0.5, 2: 0.25}
    assert tracker.runs_of(digest) == [run]
    assert tracker.inputs(run)[0]["tables"] == versions
    assert tracker.client.get_run(run).data.params["train.steps"] == "3"
    out = subprocess.run([sys.executable, "-c", REOPEN, tracker.uri, run], check=True, capture_output=True, text=True)
    assert out.stdout.split()[-1] == "1"  # the second row came later


def test_adapters_by_alias_and_version(store, tmp_path):
    _, tracker = store
    made = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "egomill.json").write_text(json.dumps({"i": i}))
        made.append(tracker.register("ego-test", folder, tracker.start(f"t{i}"), {"release": f"r{i}"}))
        tracker.alias(made[-1], CANDIDATE)
    assert tracker.champion("ego-test") is None
    tracker.alias(made[0], CHAMPION)
    for spec, i in {"ego-test@champion": 0, "ego-test@candidate": 1, "ego-test/1": 0, "ego-test@v2": 1}.items():
        adapter = tracker.resolve(spec)
        assert (adapter.spec, adapter.tags["release"]) == (f"ego-test@v{i + 1}", f"r{i}")
        with open(f"{adapter.folder}/egomill.json") as f:
            assert json.load(f) == {"i": i}
    assert [v["aliases"] for v in tracker.adapters("ego-test")] == [[CHAMPION], [CANDIDATE]]
    with pytest.raises(ValueError, match="nobody"):
        tracker.resolve("nobody@champion")

    tracker.promote(made[1], "better")
    assert tracker.champion("ego-test").version == "2"
    left, restored = tracker.roll_back("ego-test")
    assert (left.version, restored.version, tracker.champion("ego-test").version) == ("2", "1", "1")
    assert tracker.resolve("ego-test@v2").tags["rolled_back"] == "to ego-test@v1"  # the gate does not promote it again
    with pytest.raises(ValueError, match="replaced nobody"):
        tracker.roll_back("ego-test")
