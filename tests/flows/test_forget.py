"""`forget`: a take leaves the lake, its old versions, its releases and the disk; what was made with it is named; the fact stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from egomill.flows import verbs
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.tables import KEYS, TABLES
from egomill.tasks.keeping import forget as forgetting
from egomill.tasks.keeping import lineage
from egomill.tasks.lake import releases, upkeep
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker

UID = "uid-0"
TABLES_OF_IT = ("takes", *forgetting.OF_CLIPS)


def tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def on_disk(lake: Lake) -> dict[str, bytes]:
    return {str(p.relative_to(lake.uri)): p.read_bytes() for p in Path(lake.uri).rglob("*") if p.is_file()}


def tables_only(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if ".lance/" in name}


def data_files(lake: Lake, uid: str) -> set[str]:
    """Data files, of any version, that hold a row of a take: asked of Lance, deleted rows included."""
    found = set()
    for table in TABLES_OF_IT:
        column = KEYS[table][0]
        for version in upkeep.versions(lake, table):
            for fragment in lake.open(table, version).get_fragments():
                options = {"with_row_id": True, "include_deleted_rows": True}
                keys = fragment.scanner(columns=[column], **options).to_table()[column].to_pylist()
                if any(key.partition(".")[0] == uid for key in keys):
                    found |= {f"{lake.folder(table)}/data/{file.path}" for file in fragment.data_files()}
    return found


@pytest.fixture
def used(small):
    """The lake as it is after some use: an older version of every row, a release without the take, adapters, generations, a report."""
    lake, tracker = small.lake, Tracker.beside(small.lake.uri)
    for table in ("priors", "captions"):  # rows that were replaced: their old files lie in old versions
        rows = lake.read(table).to_pylist()
        lake.commit(table, lake.write_fragments(table, rows), replace="true")
    releases.publish(lake, "r", Profile.load("local"), "second")
    for release, how in (("first", "old"), ("second", "new")):
        folder = Path(lake.uri).parent / how
        folder.mkdir()
        (folder / "egomill.json").write_text("{}")
        run = tracker.start(how, {"release": release})
        tracker.image(run, np.zeros((8, 8, 3), np.uint8), "samples/first-batch.png")
        tracker.register("egox", folder, run, {"release": release})
    tracker.alias(tracker.resolve("egox@v2"), "champion")
    clips = lake.read("clips", ["clip_id"], "chosen")["clip_id"].to_pylist()
    made = [{"clip_id": c, "adapter": "egox@v2", "video": f"video of {c}".encode(), "content": c} for c in clips]
    lake.upsert("generations", made)
    lake.upsert("scores", [{"clip_id": c, "adapter": "egox@v2", "metric": "psnr.all", "value": 1.0} for c in clips])
    lake.upsert("failures", [{"key": f"{UID}#/x/y", "stage": "takes", "status": "rejected", "detail": f"{UID} is also /x"}])
    (run,) = lake.read("runs").to_pylist()
    lake.upsert("runs", [{**run, "run_id": "broke", "status": "failed", "detail": f"ValueError: clip {UID}.cam01.000000"}])
    (Path(lake.uri) / "report.html").write_text(f"<p>{UID}.cam01.000000</p>")
    (Path(lake.uri) / "other.html").write_text("<p>nobody</p>")
    return small


def test_nothing_of_the_take_is_left_on_disk_and_the_fact_is_kept(used):
    lake = used.lake
    (name,) = lake.rows("takes", [UID], ["take_name"])
    words = (UID.encode(), name["take_name"].encode())
    mine = [row["video"] for row in lake.read("priors").to_pylist() if row["clip_id"].startswith(UID)]
    before, sources = tables_only(on_disk(lake)), tree(used.source)
    held = data_files(lake, UID)
    assert held <= before.keys()
    assert {file.partition("/")[0] for file in held} == {lake.folder(table) for table in TABLES_OF_IT if lake.count(table)}
    everywhere = b"".join(before.values())
    assert all(word in everywhere for word in words)  # so the search below would find them
    assert any(video[:200] in everywhere for video in mine)

    answer = verbs.forget(lake.uri, UID)
    assert answer["left"] == []
    assert answer["searched"]

    after = on_disk(lake)
    assert not held & after.keys()  # no file that ever held a row of it
    assert not [path for path, data in after.items() for word in words if word in data]  # manifests, transactions, MLflow: all files
    assert not [path for path, data in after.items() for video in mine if video[:200] in data]
    assert data_files(lake, UID) == set()
    for table in TABLES:  # nothing lies there that no version knows
        at = lake.open(table)
        tracked = {row["path"] for batch in at.tracked_files() for row in batch.to_pylist()}
        lying = {row["path"] for batch in at.all_files() for row in batch.to_pylist() if row["path"].startswith(("data/", "_deletions/"))}
        assert lying <= tracked, table
        assert upkeep.versions(lake, table) == [at.version] or table in ("runs", "forgotten")
    assert tree(used.source) == sources  # the take's own files are not ours

    (fact,) = lake.read("forgotten").to_pylist()
    assert fact["take"] == digest(UID) == answer["take"]
    assert fact["done"] is not None
    clips = json.loads(fact["rows"])["clips"]
    assert json.loads(fact["rows"])["takes"] == 1
    assert clips > 0
    assert set(json.loads(fact["releases"])) == {"first", "second"}
    assert lake.count("priors") > 0  # the others stay


def test_what_was_made_with_it_is_withdrawn_named_and_marked(used):
    lake, tracker = used.lake, Tracker.beside(used.lake.uri)
    answer = verbs.forget(lake.uri, UID)
    assert [(a["spec"], a["trained"], a["aliases"]) for a in answer["adapters"]] == [("egox@v1", True, []), ("egox@v2", True, ["champion"])]
    assert answer["generations"] == {"egox@v2": lake.count("generations") + answer["rows"]["generations"]}
    for row in tracker.adapters("egox"):
        assert digest(UID) in row["tags"]["tainted"]
        assert digest(UID) in tracker.client.get_run(row["run_id"]).data.tags["tainted"]
        assert tracker.files(row["run_id"], "samples") == []
    assert all(p["removed"] for p in answer["pictures"])
    assert len(answer["pictures"]) == 2
    assert [Path(page).name for page in answer["pages"]] == ["report.html"]
    assert (Path(lake.uri) / "other.html").exists()
    assert {r["name"] for r in releases.every(lake) if r["withdrawn"]} == {"first", "second"}
    with pytest.raises(ValueError, match=r"was withdrawn on .*forgotten"):
        releases.get(lake, "first")
    assert releases.latest(lake) is None
    assert not [tag for table in TABLES for tag in upkeep.tags(lake, table)]
    chain = lineage.of_adapter(lake, tracker, "egox@v1")
    assert (chain["release"]["name"], chain["clips"]) == ("first", [])
    assert chain["adapter"]["tags"]["tainted"]
    assert not any(UID in (r["detail"] or "") for r in lake.read("runs").to_pylist())


def test_a_take_that_was_held_out_taints_no_adapter(used):
    answer = verbs.forget(used.lake.uri, "uid-2")
    assert {(a["spec"], a["trained"]) for a in answer["adapters"]} == {("egox@v1", False), ("egox@v2", False)}
    assert answer["pictures"] == []
    assert answer["generations"] == {}
    assert not any("tainted" in row["tags"] for row in Tracker.beside(used.lake.uri).adapters("egox"))


def test_a_later_rebuild_does_not_bring_it_back(small):
    lake = small.lake
    rest = small.lake.count("latents")
    answer = verbs.forget(lake.uri, UID)
    plan = small.plan()
    assert (plan["takes"]["inputs"], plan["takes"]["compute"], plan["depth"]["compute"]) == (3, 1, 0)
    done = small.rebuild(release="after")
    assert (done["computed"], done["new"]) == (0, True)
    (failure,) = lake.read("failures").to_pylist()
    assert (failure["key"], failure["reason"], failure["status"]) == (f"forgotten-{digest(UID)}", "forgotten", "rejected")
    assert lake.count("takes", f"take_uid = '{UID}'") == 0
    assert lake.count("latents") == rest - answer["rows"]["latents"]
    assert not [path for path, data in on_disk(lake).items() if UID.encode() in data]
    assert small.rebuild()["release"] == "after"
    row = lake.rows("takes", ["uid-1"])[0]
    back = lake.write_fragments("takes", [{**row, "take_uid": UID, "content": "x"}])
    with pytest.raises(ValueError, match="a take was forgotten"):
        lake.commit("takes", back)
    lake.open("takes").insert(pa.Table.from_pylist([{**row, "take_uid": UID, "content": "x"}], schema=TABLES["takes"]))  # past our door
    with pytest.raises(ValueError, match="no take that was forgotten: 1 came back"):
        releases.publish(lake, "r", Profile.load("local"), "bad")


def test_a_release_that_lists_it_no_more_but_whose_files_hold_it_is_withdrawn_and_others_stay(small):
    lake = small.lake
    for table in ("takes", "clips", "depth", "priors", "directions", "captions", "latents"):
        column = KEYS[table][0]
        lake.commit(table, None, replace=f"{column} = '{UID}' OR starts_with({column}, '{UID}.')")
    releases.publish(lake, "r", Profile.load("local"), "without")
    for table in ("takes", "clips", "depth", "priors", "directions", "captions", "latents"):
        lake.open(table).optimize.compact_files(materialize_deletions_threshold=0.0)
    rows = lake.read("captions").to_pylist()
    lake.commit("captions", lake.write_fragments("captions", [{**r, "text": "new", "content": "new"} for r in rows]), replace="true")
    releases.publish(lake, "r", Profile.load("local"), "clean")
    answer = verbs.forget(lake.uri, UID)
    assert {name: about["rows"] for name, about in answer["releases"].items()} == {"first": True, "without": False}
    assert answer["left"] == []
    kept = releases.get(lake, "clean")
    assert all(upkeep.tags(lake, table) == {"release-clean": version} for table, version in kept["tables"].items())
    assert lake.read("captions", ["text"], version=kept["tables"]["captions"])["text"].to_pylist() == ["new"] * len(rows)


def test_broken_off_anywhere_it_is_finished_by_asking_again(used, monkeypatch):
    lake = used.lake
    steps = ["_withdraw", "_taint", "_delete", "_pages"]
    for step in steps:
        with monkeypatch.context() as broken:

            def stop(*_, step=step):
                raise KeyboardInterrupt(step)

            broken.setattr(forgetting, step, stop)
            with pytest.raises(KeyboardInterrupt, match=step):
                verbs.forget(lake.uri, UID)
        assert [row["done"] for row in lake.read("forgotten").to_pylist()] == [None]
    answer = verbs.forget(lake.uri, UID)
    assert answer["left"] == []
    assert set(answer["releases"]) == {"first", "second"}
    assert [a["trained"] for a in answer["adapters"]] == [True, True]
    assert answer["rows"]["takes"] == 1
    assert not [path for path, data in on_disk(lake).items() if UID.encode() in data]


def test_by_name_and_only_what_is_known_and_only_when_nothing_writes(small):
    lake = small.lake
    with pytest.raises(ValueError, match="no take 'uid-9'"):
        verbs.forget(lake.uri, "uid-9")
    assert lake.count("forgotten") == 0
    with recorded(lake, "rebuild", Profile.load("local")) as run, pytest.raises(ValueError, match=rf"under way: {run.id}"):
        verbs.forget(lake.uri, UID)
    lake.upsert("runs", [{**lake.read("runs").to_pylist()[0], "run_id": "killed", "status": "running"}])
    (row,) = lake.rows("takes", ["uid-1"], ["take_name"])
    answer = verbs.forget(lake.uri, row["take_name"])
    assert lake.rows("runs", ["killed"])[0]["status"] == "died"
    assert answer["take"] == digest("uid-1")
    assert lake.count("takes") == 2
