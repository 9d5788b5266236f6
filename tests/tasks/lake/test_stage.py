"""The runner's promises on a toy stage: captions from clips."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import signal
import sys

import pyarrow as pa
import pytest

from egomill.schemas.config import Resources
from egomill.schemas.fingerprint import content_of
from egomill.schemas.item import Item
from egomill.schemas.outcome import FAULTS, Rejected, StageFailed
from egomill.schemas.tables import NO_CONTENT, TABLES
from egomill.tasks.lake import actors
from egomill.tasks.lake.pending import pending
from egomill.tasks.lake.runner import retry, run
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake


@pytest.fixture(params=["processes", "ray"])
def way(request, monkeypatch):
    """What is promised of rows holds whoever makes them: processes of our own, or Ray's. Other tests' rows are few."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    monkeypatch.setattr(actors, "FEW", 0 if request.param == "ray" else 100)


def toy(text: str = "hello", calls: str = "") -> Stage:
    def make(text: str):  # nested, so that Ray's workers get it by value
        def work(row: dict):
            name = row["clips"]["take_name"]
            if name == "bad":
                return Rejected("caption_failed", "told to")
            if name == "bug":
                raise ZeroDivisionError("our own")
            return {"text": f"{text} {name}", "source": "toy"}

        return work

    return Stage("captions", {"clips": ("take_name",)}, {"text": text}, functools.partial(make, text), where="chosen")


def add_clips(lake: Lake, names: list[str]) -> None:
    empty = dict.fromkeys(TABLES["clips"].names)
    rows = [{**empty, "clip_id": f"c{i}", "take_name": n, "chosen": True} for i, n in enumerate(names)]
    rows = [{**row, "content": content_of(row, NO_CONTENT)} for row in rows]
    lake.commit("clips", lake.write_fragments("clips", rows), replace="true")


def texts(lake: Lake) -> dict:
    return {r["clip_id"]: r["text"] for r in lake.read("captions").to_pylist()}


GENEROUS = Resources(failure_threshold=1.0, shard=2)


def test_every_input_is_an_output_rejected_or_failed(tmp_path, way):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "bad", "b", "bug", "c"])
    report = run(toy(), lake, "r1", GENEROUS)
    assert (report.inputs, report.outputs, report.rejected, report.failed) == (5, 3, 1, 1)
    assert report.balanced
    assert report.computed == 3
    assert texts(lake) == {"c0": "hello a", "c2": "hello b", "c4": "hello c"}
    rows = {r["key"]: r for r in lake.read("failures").to_pylist()}
    assert rows["c1"]["reason"] == "caption_failed"
    assert rows["c3"]["reason"] == "ZeroDivisionError"
    assert "our own" in rows["c3"]["detail"]
    assert "Traceback" in rows["c3"]["detail"]


def test_a_second_run_does_nothing_and_retries_only_what_we_broke(tmp_path):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "bad", "bug"])
    run(toy(), lake, "r1", GENEROUS)
    version = lake.version("captions")
    report = run(toy(), lake, "r2", GENEROUS)
    assert report.computed == 0
    assert report.balanced
    assert lake.version("captions") == version
    attempts = {r["key"]: r["attempt"] for r in lake.read("failures").to_pylist()}
    assert attempts == {"c1": 1, "c2": 2}


def test_changed_settings_and_changed_inputs_replace_rows_and_gone_inputs_retire_theirs(tmp_path):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "b"])
    run(toy(), lake, "r1", GENEROUS)
    assert run(toy("bye"), lake, "r2", GENEROUS).computed == 2
    assert texts(lake) == {"c0": "bye a", "c1": "bye b"}
    add_clips(lake, ["bad"])
    report = run(toy("bye"), lake, "r3", GENEROUS)
    assert (report.rejected, report.retired, report.computed) == (1, 1, 0)
    assert texts(lake) == {}  # what was rejected now keeps no stale row
    add_clips(lake, ["fine"])
    assert run(toy("bye"), lake, "r4", GENEROUS).outputs == 1
    assert lake.count("failures") == 0


def test_too_many_failures_fail_the_run_but_keep_what_succeeded(tmp_path):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "bug"])
    with pytest.raises(StageFailed) as caught:
        run(toy(), lake, "r1", Resources(failure_threshold=0.2))
    assert caught.value.args[0].failed == 1
    assert texts(lake) == {"c0": "hello a"}


def test_a_missing_upstream_row_is_a_named_rejection(tmp_path):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a"])
    needs_depth = Stage("priors", {"clips": ("take_name",), "depth": ("estimator",)}, {}, toy().worker, where="chosen")
    report = run(needs_depth, lake, "r1", GENEROUS)
    assert (report.rejected, dict(report.reasons)) == (1, {"upstream": 1})
    assert lake.read("failures").to_pylist()[0]["detail"] == "depth"


def test_items_from_disk_are_never_retired(tmp_path):
    lake = Lake(str(tmp_path))

    def make():
        return lambda row: {"take_name": row["name"]}

    takes = Stage("takes", {}, {}, make)
    assert run(takes, lake, "r1", GENEROUS, items=[Item("u1", "d1", {"name": "one"})]).outputs == 1
    report = run(takes, lake, "r2", GENEROUS, items=[Item("u2", "d2", {"name": "two"})])
    assert (report.inputs, report.retired, lake.count("takes")) == (1, 0, 2)


def deadly() -> Stage:
    """Rows that end, hang or spoil what works on them, each in its own way."""

    def make():
        def work(row: dict):
            name = row["clips"]["take_name"]
            if name == "hang":
                re.match(r"(a+)+$", "a" * 64 + "b")  # in C, and never lets go of the interpreter
            elif name == "segfault":
                ctypes.string_at(0)
            elif name == "killed":  # as the kernel does when memory runs out
                os.kill(os.getpid(), signal.SIGKILL)
            elif name == "exit":
                sys.exit(3)
            elif name == "unfit":
                return {"text": ["no", "string"], "source": "toy"}
            elif name == "doubled":
                return [{"clip_id": "x", "text": "", "source": "toy"}] * 2
            return {"text": f"hello {name}", "source": "toy"}

        return work

    return Stage("captions", {"clips": ("take_name",)}, {}, make, where="chosen")


def test_a_row_that_hangs_or_kills_is_lost_alone_and_named(tmp_path, way):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "hang", "b", "segfault", "c", "killed", "d", "exit", "e", "unfit", "f", "doubled"])
    settings = Resources(failure_threshold=1.0, shard=12, timeouts={"captions": 5.0})
    report = run(deadly(), lake, "r1", settings)
    assert (report.inputs, report.outputs, report.failed) == (12, 6, 6)
    assert sorted(texts(lake).values()) == [f"hello {name}" for name in "abcdef"]
    failed = {r["key"]: r for r in lake.read("failures").to_pylist()}
    named = {"c1": "Timeout", "c3": "WorkerDied", "c5": "WorkerDied", "c7": "SystemExit", "c9": "ArrowTypeError", "c11": "ValueError"}
    assert {key: r["reason"] for key, r in failed.items()} == named
    assert "in work" in failed["c1"]["detail"]  # where it hung
    assert "Segmentation fault" in failed["c3"]["detail"]
    assert "without a word" in failed["c5"]["detail"]
    assert set(FAULTS) - {"Damaged"} < set(named.values())


def test_a_worker_that_cannot_be_made_fails_the_run(tmp_path, way):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a"])

    def make():
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does with models that do not fit
        return lambda row: row

    with pytest.raises(Exception, match="processes died while they made the worker"):
        run(Stage("captions", {"clips": ("take_name",)}, {}, make), lake, "r1", GENEROUS)
    assert lake.count("captions") == lake.count("failures") == 0


def test_a_run_that_ends_early_leaves_no_actors_that_the_next_one_would_wait_for(tmp_path, ray_cluster):
    class Full(Lake):
        def write_fragments(self, table, rows):
            if table == "captions" and rows[0]["clip_id"] == "c5":
                raise OSError(28, "No space left on device")
            return super().write_fragments(table, rows)

    add_clips(Lake(str(tmp_path)), [str(i) for i in range(12)])
    whole = Resources(shard=1, cpus={"captions": os.cpu_count() / 4}, failure_threshold=1.0)
    for again in range(3):
        with pytest.raises(Exception, match="No space left"):
            run(toy(), Full(str(tmp_path)), f"full {again}", whole)
    assert run(toy(), Lake(str(tmp_path)), "room", whole).balanced


def test_retrying_by_reason_gives_rows_all_their_attempts_again(tmp_path):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "bad", "bug", "bug"])
    once = Resources(failure_threshold=1.0, attempts=1)
    run(toy(), lake, "r1", once)
    assert set(pending(toy(), lake, attempts=1)["state"].to_pylist()) == {"current", "rejected", "failed"}
    with pytest.raises(ValueError, match="there are: ZeroDivisionError, caption_failed"):
        retry(lake, "Timeout")
    assert retry(lake, "ZeroDivisionError", "captions") == 2
    assert pending(toy(), lake, attempts=1)["state"].to_pylist() == ["current", "rejected", "pending", "pending"]
    assert lake.count("failures") == 3  # still told, until they are tried
    assert run(toy(), lake, "r2", once).failed == 2
    assert retry(lake, "caption_failed") == 1
    states = pending(toy(), lake, attempts=1)
    assert states["state"].to_pylist() == ["current", "pending", "failed", "failed"]
    assert states["attempt"].to_pylist()[1] == 1


def test_the_worker_runs_without_ray():
    assert toy().worker()({"clips": {"take_name": "x"}}) == {"text": "hello x", "source": "toy"}


def test_many_fingerprints_are_those_of_one(tmp_path):
    stage, inputs = toy(), [["a1", 'quoted "\u00e9"'], ["b", ""]]
    columns = pa.table({"x": [row[0] for row in inputs], "y": [row[1] for row in inputs]})
    made, told = stage.fingerprints(columns)
    assert made.to_pylist() == [stage.fingerprint(row) for row in inputs]
    assert [json.loads(text) for text in told.to_pylist()] == inputs


def test_a_row_made_from_a_damaged_one_fails_alone_and_by_name(tmp_path):
    lake = Lake(str(tmp_path))
    add_clips(lake, ["a", "b", "c"])
    (row,) = lake.rows("clips", ["c1"])
    lake.upsert("clips", [{**row, "take_name": "d"}])  # other values, under the digest of those that were committed
    report = run(toy(), lake, "r1", GENEROUS)
    assert (report.outputs, report.failed, dict(report.reasons)) == (2, 1, {"Damaged": 1})
    (failure,) = lake.read("failures").to_pylist()
    assert "row c1 of table clips is not what was committed: `egomill repair` makes it pending again" in failure["detail"]
