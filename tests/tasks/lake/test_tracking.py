"""Runs, dataset inputs and adapters in MLflow on sqlite."""

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from egomill.tasks.lake import connection
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import CANDIDATE, CHAMPION, Tracker
from egomill.tasks.training import loop

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
    code = "import sys, egomill.tasks.lake.tracking; assert 'mlflow' not in sys.modules"
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


def test_an_adapter_on_disk_is_read_in_place(store, tmp_path):
    lake, tracker = store
    (tmp_path / "egomill.json").write_text("{}")
    made = tracker.register("in-place", tmp_path, tracker.start("t"), {})
    assert made.folder.startswith(lake.uri)


def test_the_store_lies_in_the_lake_whatever_its_name(tmp_path):
    for name in ("lake?v=2", "x?mode=ro", "a?uri=true", "a%3Fb", "a#b", "file:a?b", "ü 中'\"&;@\\"):
        assert Tracker.beside(str(tmp_path / "none" / name)).database == tmp_path / "none" / name / "mlflow.db"
    name = "a#b?mode=ro%41"
    tracker = Tracker.beside(str(tmp_path / name / "lake"))
    assert not tracker.exists()
    tracker.end(tracker.start("x"))
    assert tracker.exists()
    assert tracker.database == tmp_path / name / "lake" / "mlflow.db"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tracker.database]


def test_names_and_texts_of_any_kind_go_in_and_are_found(store):
    _, tracker = store
    tags = {"release": "o'brien", "quoted": 'say "x"', "broken": "\udcff\x1b", "long": "x" * 20_000}
    run = tracker.start("name \udcff " + "n" * 1000, tags)
    assert tracker.runs_on("o'brien") == [run]
    assert tracker.unfinished({key: tags[key] for key in ("release", "quoted", "broken", "long")}) == run
    tracker.params(run, {"a": {"b": "\udcff" + "y" * 20_000}})
    assert tracker.adapters("no'body") == []
    with pytest.raises(ValueError, match="both kinds"):
        tracker.runs_on("a'b\"c")


def test_a_damaged_store_is_told_at_once(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match=r"mlflow\.db: file is not a database"):
        Tracker.of("", str(tmp_path)).names()


def answering(code: int, kind: str = "text/plain") -> http.server.ThreadingHTTPServer:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (200, "is no MLflow"),
        (401, "does not let us in: set MLFLOW_TRACKING_USERNAME"),
        (403, "does not let us in: set MLFLOW_TRACKING_USERNAME"),
        (404, "answers 404"),
        (500, "answers 500"),
        (503, "answers 503"),
    ],
)
def test_a_server_that_answers_otherwise_is_told(code, told):
    with answering(code) as server:
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(OSError, match=f"http://{address} .*{told}") as error:
            Tracker.of(f"http://user:password@{address}", "lake")
        server.shutdown()
    assert "password@" not in str(error.value)


def test_a_server_that_answers_is_asked_once_and_an_outage_later_is_not_told_here(monkeypatch):
    with answering(200, "application/json") as server:
        uri = f"http://127.0.0.1:{server.server_port}"
        Tracker.of(uri, "lake")
        server.shutdown()
    Tracker.of(uri, "lake")


def test_a_server_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(OSError, match=r"does not answer .nothing within 1 s"):
            Tracker.of(f"http://127.0.0.1:{port}", "lake")
    for uri, told in (
        (f"http://127.0.0.1:{port}", "connection refused"),
        ("http://no-such-host.invalid:5000", "has a name that is not found"),
        (f"https://127.0.0.1:{port}", "connection refused"),
    ):
        with pytest.raises(OSError, match=told):
            Tracker.of(uri, "lake")
    with pytest.raises(ValueError, match="no address"):
        Tracker.of("http://[half", "lake")


class Away:
    """A tracker whose server is away for some calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.written = calls, []

    def metrics(self, run_id: str, rows: list) -> None:
        self.calls -= 1
        if self.calls >= 0:
            raise ConnectionError("nobody there")
        self.written += rows


def test_training_outlasts_a_server_that_is_away_for_a_while():
    away = Away(2)
    book = loop.Book(away, "run", True)
    rows = [(step, {"loss": 1.0}) for step in range(2 * loop.FLUSH)]
    for row in rows:
        book.add(*row)
    assert away.written == []
    book.flush()
    assert away.written == rows
    book = loop.Book(Away(1), "run", True)
    book.add(0, {"loss": 1.0})
    with pytest.raises(ConnectionError):
        book.flush(last=True)
