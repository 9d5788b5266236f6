"""`plan` says what a rebuild would compute and why, touches nothing, and is right."""

from __future__ import annotations

import os
from pathlib import Path

from egomill.tasks.lake import recipes
from egomill.tasks.lake.tables import Lake
from tests.flows.conftest import Small

DERIVED = ("depth", "priors", "directions", "captions", "latents")


def files(folder: str) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()}


def whys(step: dict) -> set[tuple[str, str]]:
    return {(r["why"], r["what"]) for r in step["reasons"]}


def test_of_a_lake_that_is_not_there_everything_is_new_and_nothing_is_created(made_once, tmp_path):
    steps = Small(made_once.source, Lake(str(tmp_path / "none"))).plan()
    assert (steps["takes"]["compute"], whys(steps["takes"])) == (3, {("new input", "on disk")})
    assert (steps["clips"]["compute"], steps["clips"]["may"]) == (0, 3)
    assert steps["depth"]["unknown"] == "clips of 3 inputs that are new or changed"
    assert not (tmp_path / "none").exists()


def test_of_a_current_lake_nothing_is_planned_or_written(small):
    before = files(small.lake.uri)
    steps = small.plan()
    assert files(small.lake.uri) == before
    assert all(step["compute"] == step["may"] == step["retired"] == 0 and not step["reasons"] for step in steps.values())
    assert all(step["inputs"] == step["current"] > 0 for step in steps.values())


def test_a_changed_setting_is_named_and_what_lies_below_follows(small):
    steps = small.plan("depth.relative_error=0.002")
    clips = small.lake.count("depth")
    assert (steps["depth"]["compute"], whys(steps["depth"])) == (clips, {("changed setting", "relative_error: 0.001 -> 0.002")})
    assert (steps["priors"]["may"], whys(steps["priors"])) == (clips, {("changed input", "depth")})
    assert whys(steps["directions"]) == {("changed input", "depth")}
    assert whys(steps["latents"]) == {("changed input", "priors")}
    assert steps["captions"]["current"] == clips
    small.rebuild("depth.relative_error=0.002")
    for stage, computed in small.computed().items():
        assert steps[stage]["compute"] <= computed <= steps[stage]["compute"] + steps[stage]["may"], stage
    assert small.computed()["priors"] == clips


def test_where_a_row_comes_out_as_it_was_nothing_below_is_made_again(small):
    steps = small.plan("clips.max_bad_exposure=0.95")
    assert steps["clips"]["compute"] == 3
    assert all(steps[stage]["may"] == small.lake.count("depth") for stage in ("depth", "captions"))
    answer = small.rebuild("clips.max_bad_exposure=0.95")
    assert small.computed() == {"takes": 0, "clips": 3, **dict.fromkeys(DERIVED, 0)}
    assert (answer["new"], answer["release"]) == (False, "first")  # the same content is the same release


def test_failures_missing_rows_and_rows_without_input_are_told_apart(small):
    lake = small.lake
    one, two, *_ = sorted(lake.read("captions", ["clip_id"])["clip_id"].to_pylist())
    made = lake.rows("captions", [one], ["fingerprint", "recipe", "inputs"])[0]
    lake.commit("captions", None, replace=f"clip_id = '{one}'")
    lake.upsert("failures", [{"key": one, "stage": "captions", **made, "status": "failed", "reason": "OSError", "attempt": 1}])
    lake.commit("depth", None, replace=f"clip_id = '{two}'")
    steps = small.plan()
    assert (steps["captions"]["compute"], whys(steps["captions"])) == (1, {("retry of failures", "OSError")})
    assert (steps["depth"]["compute"], whys(steps["depth"])) == (1, {("new input", "clips")})
    assert (steps["priors"]["may"], whys(steps["priors"])) == (1, {("new input", "depth")})
    lake.commit("clips", None, replace=f"clip_id = '{two}'")
    steps = small.plan()
    assert [steps[stage]["retired"] for stage in DERIVED] == [0, 1, 1, 1, 1]
    assert all(("retired", "no clips any more") in whys(steps[stage]) for stage in DERIVED[1:])


def test_a_changed_take_is_planned_with_its_clips(small):
    old = next(small.source.rglob("sidecar/*/cam01.npz"))
    before = old.read_bytes()
    stat = old.stat()
    try:
        old.write_bytes(before + b" ")
        steps = small.plan()
    finally:
        old.write_bytes(before)
        os.utime(old, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (steps["takes"]["compute"], whys(steps["takes"])) == (1, {("changed input", "files or annotations on disk")})
    assert (steps["clips"]["may"], whys(steps["clips"])) == (1, {("changed input", "takes")})
    assert 0 < steps["depth"]["may"] < steps["depth"]["inputs"]
    assert steps["depth"]["unknown"] == "clips of 1 inputs that are new or changed"
    assert small.plan()["takes"]["compute"] == 0


def test_every_kind_of_difference_between_recipes_has_its_words():
    old = {"stage": "depth", "reads": ["clips"], "config": {"a": 1, "b": {"c": [1]}}, "code": {"egomill.x": "1", "egomill.y": "1"}}
    old |= {"weights": "w1", "columns": "c1", "constants": {"model": "m"}}
    new = {**old, "reads": ["clips", "depth"], "config": {"a": 1.0, "b": {"c": [2]}}, "code": {"egomill.x": "2", "egomill.z": "1"}}
    new |= {"weights": "w2", "columns": "c2"}
    assert recipes.differences(old, old) == []
    assert recipes.differences(None, old) == [("unknown recipe", "")]
    assert recipes.differences(old, new) == [
        ("changed setting", "a: 1 -> 1.0"),
        ("changed setting", "b.c: [1] -> [2]"),
        ("changed code", "egomill/x.py"),
        ("changed code", "egomill/y.py (not used any more)"),
        ("changed code", "egomill/z.py (new)"),
        ("changed weights", "w1 -> w2"),
        ("changed reads", "clips -> clips, depth"),
        ("changed table", "columns of depth"),
    ]
