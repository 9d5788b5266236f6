"""Housekeeping takes what nobody needs, no more: few files, named versions whole, a live writer's files there, a dead one's gone."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from egomill.schemas.config import Profile
from egomill.schemas.tensors import pack
from egomill.tasks.keeping import housekeeping
from egomill.tasks.lake import heartbeat, runs, upkeep
from egomill.tasks.lake.tables import FRESH_DAYS, Lake, one_of

CLIPS = [f"clip{i:02d}" for i in range(12)]


def priors(lake: Lake, clips: list[str], text: str) -> str:
    rng = np.random.default_rng(len(text))
    rows = [{"clip_id": c, "fingerprint": text, "video": rng.bytes(500), "valid": pack(rng.random((2, 8, 8)) > 0.5)} for c in clips]
    return lake.write_fragments("priors", rows)


def rebuild(lake: Lake, commits: int, name: str) -> None:
    """Shards that replace one another's rows, as rebuilds with changing settings do."""
    for i in range(commits):
        some = [CLIPS[(i + j) % len(CLIPS)] for j in range(4)]
        lake.commit("priors", priors(lake, some, f"{name}.{i}"), replace=one_of("clip_id", some))


def test_files_stay_few_however_often_one_rebuilds(tmp_path):
    lake = Lake(str(tmp_path))
    files, content = [], None
    for night in range(4):
        rebuild(lake, 30, f"{night}")
        content = lake.read("priors").sort_by("clip_id")
        assert upkeep.files(lake, "priors") >= 30
        told = {t["table"]: t for t in housekeeping.keep(lake, days=0)}["priors"]
        assert told["compacted"]
        assert told["freed_mb"] > 0
        assert told["versions_removed"] >= 30
        assert told["files"] == upkeep.files(lake, "priors")
        files.append(told["files"])
        assert lake.read("priors").sort_by("clip_id").equals(content)
    assert max(files) == 1
    everything = [p for p in Path(lake.path("priors")).rglob("*") if p.is_file()]
    assert len(everything) < 10, everything  # manifests, transactions and deletion marks are cleaned too


def test_what_a_release_names_stays_bit_for_bit(tmp_path):
    lake = Lake(str(tmp_path))
    rebuild(lake, 5, "first")
    pinned = lake.version("priors")
    content = lake.read("priors", version=pinned)
    upkeep.tag(lake, "priors", pinned, "release-r1")
    rebuild(lake, 30, "later")
    housekeeping.keep(lake, days=0)
    assert lake.read("priors", version=pinned).equals(content)
    with pytest.raises(ValueError, match="not found"):
        lake.read("priors", version=pinned + 1)


def test_versions_stay_as_long_as_they_should(tmp_path):
    lake = Lake(str(tmp_path))
    rebuild(lake, 3, "a")
    version, content = lake.version("priors"), lake.read("priors")
    housekeeping.keep(lake)  # seven days
    assert lake.read("priors", version=version).equals(content)
    with pytest.raises(ValueError, match="--days -1: "):
        housekeeping.keep(lake, days=-1)


def test_a_version_is_as_old_as_what_replaced_it(tmp_path, monkeypatch):
    lake = Lake(str(tmp_path))
    rebuild(lake, 3, "a")
    pinned, content = lake.version("priors"), lake.read("priors")
    time.sleep(0.05)  # the table rests; who reads it at its end finds the version the newest, however old it is
    lake.commit("priors", priors(lake, ["new"], "new"))
    assert upkeep.compact(lake, "priors")  # which replaces a version, too
    made = {v["version"]: v["timestamp"].timestamp() for v in lake.open("priors").versions()}
    monkeypatch.setattr(upkeep.time, "time", lambda: made[pinned] + 100)
    assert (
        upkeep.clean(lake, "priors", timedelta(seconds=100 - 0.02))["versions"] == pinned - 1
    )  # those that were replaced before it rested
    assert lake.read("priors", version=pinned).equals(content)
    monkeypatch.setattr(upkeep.time, "time", lambda: made[max(made)] + 100)
    assert upkeep.clean(lake, "priors", timedelta(seconds=100))["versions"] == len(made) - pinned - 1
    assert upkeep.clean(lake, "priors", timedelta(seconds=99))["versions"] == 1


def test_a_run_that_lives_keeps_what_was_the_newest_since_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "QUIET", 0.0)
    lake = Lake(str(tmp_path))
    rebuild(lake, 3, "a")
    with runs.recorded(lake, "rebuild", Profile.load("local")):
        pinned, content = lake.version("priors"), lake.read("priors")
        rebuild(lake, 3, "b")
        told = {t["table"]: t for t in housekeeping.keep(lake, days=0)}["priors"]
        assert told["versions_removed"] == pinned - 1
        assert lake.read("priors", version=pinned).equals(content)
    housekeeping.keep(lake, days=0)
    with pytest.raises(ValueError, match="not found"):
        lake.read("priors", version=pinned)


def test_a_dead_writers_files_go_and_a_live_ones_stay(tmp_path):
    lake = Lake(str(tmp_path))
    rebuild(lake, 3, "a")
    folder = Path(lake.path("priors"), "data")
    committed = set(folder.iterdir())
    dead = priors(lake, ["dead"], "dead")
    (orphan,) = set(folder.iterdir()) - committed
    long_ago = time.time() - 7.1 * 86_400
    os.utime(orphan, (long_ago, long_ago))
    slow = priors(lake, ["slow"], "slow")
    (waiting,) = set(folder.iterdir()) - committed - {orphan}
    old = time.time() - (FRESH_DAYS + 1) * 86_400  # older than any commit would take: the margin for clocks that differ
    os.utime(waiting, (old, old))
    live = priors(lake, ["live"], "live")

    told = {t["table"]: t for t in housekeeping.keep(lake, days=0)}["priors"]
    assert not orphan.exists()
    assert waiting.exists()
    assert told["files_removed"] > 0
    with pytest.raises(ValueError, match="write them again"):
        lake.commit("priors", dead)
    lake.commit("priors", live)
    lake.commit("priors", slow)
    assert {"live", "slow"} < set(lake.read("priors", ["clip_id"])["clip_id"].to_pylist())


def test_an_index_is_made_where_it_pays_and_kept_up_to_date(tmp_path, monkeypatch):
    lake = Lake(str(tmp_path))
    rebuild(lake, 3, "a")
    assert not upkeep.index(lake, "priors")
    monkeypatch.setattr(upkeep, "INDEX_ROWS", 2)
    for name in "bc":
        rebuild(lake, 5, name)
        expected = {r["clip_id"]: r["fingerprint"] for r in lake.read("priors").to_pylist()}
        assert {t["table"]: t["indexed"] for t in housekeeping.keep(lake, days=0)}["priors"]
        assert [index.name for index in lake.open("priors").describe_indices()] == ["clip_id_idx"]
        for clip in CLIPS[:3]:
            assert [r["fingerprint"] for r in lake.rows("priors", [clip])] == [expected[clip]]
    rebuild(lake, 5, "d")  # rows that the index does not know yet
    assert [r["fingerprint"] for r in lake.rows("priors", ["clip04"])] == ["d.4"]


def test_compaction_does_not_rewrite_what_is_large_already(tmp_path, monkeypatch):
    lake = Lake(str(tmp_path))
    monkeypatch.setattr(upkeep, "FILE_BYTES", 3000)
    for i in range(4):
        lake.commit("priors", priors(lake, [f"{i}{c}" for c in "abcdefgh"], "x"))  # over 3000 bytes each
    before = {p.name for p in Path(lake.path("priors"), "data").iterdir()}
    assert upkeep.compact(lake, "priors")
    upkeep.clean(lake, "priors", timedelta(0))
    assert {p.name for p in Path(lake.path("priors"), "data").iterdir()} == before
