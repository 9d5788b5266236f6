"""Runs, dataset inputs and adapters in MLflow on sqlite."""

import contextlib
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


class Died(BaseException):
    """As kill -9 would: nothing after it runs."""


@pytest.fixture
def dying(monkeypatch):
    """dying(k): from here on the k-th write to the registry does not happen any more; returns how many did, asked again."""
    writes = ("set_registered_model_alias", "set_model_version_tag", "delete_model_version_tag")

    def at(tracker: Tracker, k: int) -> None:
        left = [k]

        def counted(write):
            def call(*arguments):
                left[0] -= 1
                if left[0] < 0:
                    raise Died
                return write(*arguments)

            return call

        for name in writes:
            monkeypatch.setattr(tracker.client, name, counted(getattr(type(tracker.client), name).__get__(tracker.client)))

    return at


def standing(tracker: Tracker, name: str) -> dict:
    """{version: (aliases, tags by which champions go)}."""
    told = ("champion_before", "promoted", "rolled_back", "rolling_back")
    return {r["version"]: (r["aliases"], {k: v for k, v in r["tags"].items() if k in told}) for r in tracker.adapters(name)}


@pytest.mark.parametrize("k", range(5))
def test_wherever_a_change_of_champion_dies_the_next_run_mends_it(store, tmp_path, dying, k):
    _, tracker = store
    name = f"dying-{k}"
    (tmp_path / "a").mkdir()
    one, two = (tracker.register(name, tmp_path / "a", tracker.start("r"), {}) for _ in range(2))
    tracker.nominate(one)
    tracker.promote(one, "first")
    tracker.nominate(two)
    before = standing(tracker, name)
    dying(tracker, k)
    with contextlib.suppress(Died):
        tracker.promote(two, "better")
    dying(tracker, 1000)
    tracker.settle(name)
    found = standing(tracker, name)
    assert (found["1"][1], found["2"][0].count("champion") + found["1"][0].count("champion")) == (before["1"][1], 1)
    if k < 2:
        assert found["1"][0] == ["champion"]  # as if it had not begun, but for where it would have returned to
        tracker.promote(two, "better")
    after = standing(tracker, name)
    assert after["2"][0] == ["candidate", "champion"]
    assert after["2"][1]["champion_before"] == f"{name}@v1"
    assert after["2"][1]["promoted"] == ("(broken off before the reason was written)" if k == 2 else "better")

    dying(tracker, k)
    with contextlib.suppress(Died):
        tracker.roll_back(name)
    dying(tracker, 1000)
    tracker.settle(name)
    found = standing(tracker, name)
    if k == 0:
        assert found == after
    else:
        assert (found["1"][0], found["2"][0], found["2"][1]["rolled_back"]) == (["champion"], ["candidate"], f"to {name}@v1")
        assert "rolling_back" not in found["2"][1]
    tracker.settle(name)
    assert standing(tracker, name) == found


def test_the_candidate_is_the_newest_that_a_retraining_looked_at(store, tmp_path):
    _, tracker = store
    (tmp_path / "a").mkdir()
    run = tracker.start("r")
    one, two, three = (tracker.register("nominated", tmp_path / "a", run, {}) for _ in range(3))
    assert tracker.registered(run)
    assert not tracker.registered(tracker.start("r"))
    for nominated, candidate in ((two, two), (one, two), (three, three), (three, three)):
        tracker.nominate(nominated)
        assert tracker.find("nominated@candidate").spec == candidate.spec


def test_a_question_makes_no_store_and_names_with_quotes_are_asked_for(store, tmp_path):
    assert not Tracker.beside(str(tmp_path / "none")).exists()
    assert list(tmp_path.iterdir()) == []
    _, tracker = store
    run = tracker.start("r", {"release": "it's"})
    assert tracker.runs_on("it's") == [run]
    assert tracker.unfinished({"release": "it's"}) == run
