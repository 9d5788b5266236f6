"""Real processes on one table: no key twice, no row lost, and every version is what the commits so far make, one after the other."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from egomill.schemas.tables import TABLES
from egomill.tasks.lake import upkeep
from egomill.tasks.lake.folders import listed
from egomill.tasks.lake.tables import FRESH_DAYS, Lake
from tests.tasks.lake.writers import at_once, replayed, upsert, write, write_for_ever


def check_every_version(lake: Lake, told: list) -> None:
    """Each version holds unique keys, and what replaying the commits up to it gives."""
    assert len({version for version, _, _ in told}) == len(told)  # each commit is a version of its own
    for i, (version, _, _) in enumerate(told):
        rows = [(r["clip_id"], r["text"]) for r in lake.read("captions", ["clip_id", "text"], version=version).to_pylist()]
        assert len(rows) == len(dict(rows)), f"version {version}: a key twice"
        assert dict(rows) == replayed(told[: i + 1]), f"version {version}"


def test_a_table_that_many_open_at_once_is_made_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for attempt in range(5):
            lake = Lake(str(tmp_path / str(attempt)))
            for table in TABLES:
                together = threading.Barrier(4)
                versions = pool.map(lambda _, table=table, lake=lake, together=together: (together.wait(), lake.version(table)), range(4))
                assert {version for _, version in versions} == {1}
                assert lake.open(table).data_storage_version == "2.2"


def test_a_folder_that_others_make_meanwhile_is_there_or_not(tmp_path):
    folder = str(tmp_path / "lake")
    comes_and_goes = f"import os\nwhile True:\n os.mkdir({folder!r})\n os.rmdir({folder!r})"
    other = subprocess.Popen([sys.executable, "-c", comes_and_goes])
    try:
        assert all(listed(LocalFileSystem(), folder) == [] for _ in range(50_000))  # of as many, Arrow calls hundreds an error
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_four_writers_of_overlapping_keys_on_a_new_table(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    told = at_once(write, lake.uri, writers=4, commits=25)
    assert len(told) == 100
    check_every_version(lake, told)


def test_compaction_and_index_upkeep_beside_writers_change_nothing(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    lake.open("captions")
    told = at_once(write, lake.uri, writers=2, commits=25, tidying=True)
    check_every_version(lake, told)
    expected = replayed(told)
    for key in expected:  # by the index, where there is one
        assert [r["text"] for r in lake.rows("captions", [key])] == [expected[key]]


def test_upserts_at_once_leave_one_row_a_key(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    at_once(upsert, lake.uri, writers=4, commits=10)
    rows = lake.read("failures").to_pylist()
    assert Counter(r["key"] for r in rows) == Counter(f"k{n}" for n in range(4))
    assert len({r["detail"] for r in rows}) == 1  # the last one's four rows: a commit is whole


def test_writers_killed_at_any_moment_leave_whole_commits(tmp_path):
    lake, rng, before = Lake(str(tmp_path / "lake")), random.Random(0), 0
    context = multiprocessing.get_context("spawn")
    for round_ in range(6):
        writers = [context.Process(target=write_for_ever, args=(lake.uri, 2 * round_ + n)) for n in range(2)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 240
        while lake.count("captions") == before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.3))
        for writer in writers:
            writer.kill()
            writer.join()
        rows = lake.read("captions").to_pylist()
        before = len(rows)
        assert before == len({row["clip_id"] for row in rows})
        assert set(Counter(row["text"] for row in rows).values()) == {3}
    lake.commit("captions", captions(lake, {"after": "all"}))
    assert lake.count("captions") == before + 1


def captions(lake: Lake, texts: dict[str, str]) -> str:
    return lake.write_fragments("captions", [{"clip_id": k, "fingerprint": v, "text": v} for k, v in texts.items()])


def content(lake: Lake) -> list[tuple[str, str]]:
    return sorted((r["clip_id"], r["text"]) for r in lake.read("captions").to_pylist())


def test_a_commit_repeated_changes_nothing(tmp_path):
    lake = Lake(str(tmp_path))
    fragments = captions(lake, {"a": "1", "b": "1"})
    version = lake.commit("captions", fragments)
    assert lake.commit("captions", fragments) == version
    lake.commit("captions", captions(lake, {"c": "1"}))
    assert lake.commit("captions", fragments) == version + 1
    upkeep.compact(lake, "captions")  # the files are others now; the keys are not
    lake.commit("captions", fragments)
    assert content(lake) == [("a", "1"), ("b", "1"), ("c", "1")]


def test_a_stale_driver_does_not_double_what_it_has_not_seen(tmp_path):
    """Two drivers found the same keys missing and both computed them."""
    lake = Lake(str(tmp_path))
    first, second = captions(lake, {"a": "first", "b": "first"}), captions(lake, {"b": "second", "c": "second"})
    lake.commit("captions", first)
    lake.commit("captions", second)
    assert content(lake) == [("a", "first"), ("b", "second"), ("c", "second")]


def test_fragments_that_clean_up_may_have_taken_are_refused(tmp_path):
    lake = Lake(str(tmp_path))
    fragments = json.loads(captions(lake, {"a": "1"}))
    late = {**fragments, "written": fragments["written"] - (FRESH_DAYS + 1) * 86_400}
    with pytest.raises(ValueError, match="write them again"):
        lake.commit("captions", json.dumps(late))
    os.remove(Path(lake.path("captions"), "data", fragments["fragments"][0]["files"][0]["path"]))
    with pytest.raises(ValueError, match="write them again"):
        lake.commit("captions", json.dumps(fragments))
    assert content(lake) == []


def test_keys_must_be_there_and_stand_once_in_what_is_written(tmp_path):
    lake = Lake(str(tmp_path))
    with pytest.raises(ValueError, match="without clip_id"):
        lake.write_fragments("captions", [{"text": "x"}])
    with pytest.raises(ValueError, match="twice"):
        lake.write_fragments("latents", [{"clip_id": "a", "model": "m", "name": "ego"}] * 2)
    lake.commit("latents", lake.write_fragments("latents", [{"clip_id": "a", "model": m, "name": "ego"} for m in "mn"]))
    lake.commit("latents", lake.write_fragments("latents", [{"clip_id": "a", "model": "n", "name": "ego", "fingerprint": "new"}]))
    assert sorted((r["model"], r["fingerprint"]) for r in lake.read("latents").to_pylist()) == [("m", None), ("n", "new")]


def test_a_table_emptied_and_filled_again_keeps_its_ways(tmp_path):
    lake = Lake(str(tmp_path))
    lake.commit("captions", captions(lake, {"a": "1"}))
    lake.commit("captions", None, replace="true")
    assert content(lake) == []
    lake.commit("captions", captions(lake, {"a": "2", "b": "2"}))
    assert content(lake) == [("a", "2"), ("b", "2")]
    table = lake.open("captions")
    assert (table.data_storage_version, table.has_stable_row_ids) == ("2.2", True)


def test_a_lake_made_anew_in_the_same_place_is_not_mistaken_for_the_old_one(tmp_path):
    import shutil

    lake = Lake(str(tmp_path / "lake"))
    lake.commit("captions", captions(lake, {"a": "1"}))
    shutil.rmtree(lake.uri)
    lake.commit("captions", captions(lake, {"b": "1"}))
    lake.commit("captions", captions(lake, {"b": "2", "a": "2"}))
    assert content(lake) == [("a", "2"), ("b", "2")]
