"""Releases: named, protected, compared; and the same inputs at the same code give the same release in another lake."""

from __future__ import annotations

import json

import pytest

from egomill.schemas.config import Profile
from egomill.schemas.tables import RELEASED
from egomill.tasks.keeping.changes import diff
from egomill.tasks.lake import releases
from egomill.tasks.lake.tables import Lake
from tests.flows.conftest import Small
from tests.flows.test_cli import egomill


def everything(lake: Lake, table: str) -> list[dict]:
    """All columns but which run made a row."""
    rows = [{k: v for k, v in row.items() if k != "run_id"} for row in lake.read(table).to_pylist()]
    return sorted(rows, key=lambda row: next(iter(row.values())))


def test_a_rebuild_from_nothing_gives_identical_content(made_once, tmp_path):
    again = Small(made_once.source, Lake(str(tmp_path / "again")))
    again.rebuild("resources.shard=1", release="again")
    for table in RELEASED:
        assert everything(again.lake, table) == everything(made_once.lake, table), table
    first, second = (json.loads(egomill("release", "show", "--json", "--lake", s.lake.uri).stdout) for s in (made_once, again))
    assert first["content"] == second["content"]
    assert set(second["content"]) == set(RELEASED)
    assert all(second["tags"].values())


def test_a_diff_says_which_clips_came_went_and_changed_by_which_stage_and_why(small):
    lake = small.lake
    clips = set(lake.read("latents", ["clip_id"])["clip_id"].to_pylist())
    gone = sorted(clips)[0]
    small.rebuild("depth.relative_error=0.002", release="second")
    found = diff(lake, "first", "second")
    assert found["came"] == found["went"] == []
    assert [c["clip_id"] for c in found["changed"]] == sorted(clips)
    assert all({"depth", "priors", "directions"} <= set(c["tables"]) and "clips" not in c["tables"] for c in found["changed"])
    assert found["why"] == [{"stage": "depth", "why": "changed setting", "what": "relative_error: 0.001 -> 0.002", "clips": len(clips)}]
    assert found["tables"]["captions"] == {"came": 0, "went": 0, "changed": 0, "remade": 0}

    for table in ("clips", "depth", "priors", "directions", "captions", "latents"):
        lake.commit(table, None, replace=f"clip_id = '{gone}'")
    releases.publish(lake, "r", Profile.load("local"), "third")
    found = diff(lake, "second", "third")
    assert (found["came"], found["changed"]) == ([], [])
    assert found["went"] == [{"clip_id": gone, "because": "clips: no such window"}]
    assert [c["clip_id"] for c in diff(lake, "third", "first")["came"]] == [gone]
    with pytest.raises(ValueError, match="no release 'fourth'"):
        diff(lake, "first", "fourth")


def test_create_list_show_and_diff_on_the_command_line(small):
    at = ("--json", "--lake", small.lake.uri)
    made = json.loads(egomill("release", "create", "--name", "mine", *at).stdout)
    assert made["name"] == "mine"
    assert {r["name"] for r in json.loads(egomill("release", "list", *at).stdout)} == {"first", "mine"}
    assert set(json.loads(egomill("release", "diff", "first", "mine", *at).stdout)["tables"]) == set(RELEASED)
    assert "first to mine" in egomill("release", "diff", "first", "mine", "--lake", small.lake.uri).stdout
