"""Tables: what is written, replaced, tagged and read at a version."""

from __future__ import annotations

import pyarrow as pa
import pytest

from egomill.schemas.config import Profile
from egomill.schemas.tables import TABLES, take_of
from egomill.tasks.lake import releases, upkeep
from egomill.tasks.lake.tables import Glimpse, Lake, one_of


@pytest.mark.parametrize(
    ("table", "key", "take"),
    [
        ("takes", ("a.b",), "a.b"),
        ("clips", ("a.b.cam01.000000",), "a.b"),
        ("latents", ("a#b.cam01.000000", "model", "ego"), "a#b"),
        ("failures", ("a#/data/a", "takes"), "a"),
        ("failures", ("a#b", "clips"), "a#b"),
        ("failures", ("a.cam01.000000", "takes"), "a.cam01.000000"),  # a take may be called like another's clip
        ("failures", ("a.cam01.000000", "latents/m"), "a"),
        ("runs", ("a.cam01.000000",), ""),
    ],
)
def test_whose_row_it_is_stands_in_its_key(table, key, take):
    assert take_of(table, key) == take


def captions(lake: Lake, texts: dict[str, str]) -> str:
    return lake.write_fragments("captions", [{"clip_id": k, "fingerprint": v, "text": v} for k, v in texts.items()])


def content(lake: Lake, version: int | None = None) -> dict[str, str]:
    return {r["clip_id"]: r["text"] for r in lake.read("captions", version=version).to_pylist()}


def test_nothing_is_visible_before_its_commit(tmp_path):
    lake = Lake(str(tmp_path))
    fragments = captions(lake, {"a": "1"})
    assert content(lake) == {}
    lake.commit("captions", fragments, properties={"run_id": "r"})
    assert content(lake) == {"a": "1"}


def test_replacing_is_one_version_and_the_old_one_stays_readable(tmp_path):
    lake = Lake(str(tmp_path))
    first = lake.commit("captions", captions(lake, {"a": "1", "b": "1"}))
    second = lake.commit("captions", captions(lake, {"b": "2", "c": "2"}), replace=one_of("clip_id", "bc"))
    assert second == first + 1
    assert content(lake) == {"a": "1", "b": "2", "c": "2"}
    assert content(lake, first) == {"a": "1", "b": "1"}
    lake.commit("captions", None, replace="clip_id = 'a'")
    assert content(lake) == {"b": "2", "c": "2"}
    upkeep.compact(lake, "captions")
    assert content(lake) == {"b": "2", "c": "2"}


def test_upsert_overwrites_by_key_and_quotes_survive(tmp_path):
    lake = Lake(str(tmp_path))
    row = {"key": "it's", "stage": "s", "fingerprint": "f", "attempt": 1}
    lake.upsert("failures", [row])
    lake.upsert("failures", [{**row, "attempt": 2}])
    assert [r["attempt"] for r in lake.rows("failures", ["it's"])] == [2]


def test_unknown_tables_are_named(tmp_path):
    with pytest.raises(ValueError, match="no table 'clip'"):
        Lake(str(tmp_path)).read("clip")


def test_a_release_pins_versions_and_refuses_doubled_keys(tmp_path):
    lake, profile = Lake(str(tmp_path)), Profile.load("local")
    with pytest.raises(ValueError, match="no release"):
        releases.get(lake)
    with pytest.raises(ValueError, match="no clip has come through all stages"):
        releases.publish(lake, "r1", profile, "first")
    with pytest.raises(ValueError, match="cannot be named so"):
        releases.publish(lake, "r1", profile, "../first")
    assert releases.every(lake) == []
    for table in ("clips", "latents"):
        more = {"model": "m", "name": "ego"} if table == "latents" else {}
        lake.upsert(table, [{"clip_id": "take.cam01.0", **more}])
    row, new = releases.publish(lake, "r1", profile, "first")
    assert new
    assert releases.publish(lake, "r2", profile) == (releases.get(lake), False)
    lake.commit("captions", captions(lake, {"a": "1"}))
    with pytest.raises(ValueError, match="without"):  # a caption of no clip
        releases.publish(lake, "r3", profile)
    lake.commit("captions", None, replace="true")
    lake.open("clips").insert(pa.Table.from_pylist([{"clip_id": "a"}, {"clip_id": "a"}], schema=TABLES["clips"]))  # past our own door
    with pytest.raises(ValueError, match="1 doubled"):
        releases.publish(lake, "r3", profile)
    assert [r["name"] for r in releases.every(lake)] == [row["name"]]
    assert "release-first" in lake.open("captions").tags.list()


def test_a_relative_lake_is_the_same_place_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lake = Lake("lake")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    lake.commit("captions", captions(lake, {"a": "1"}))
    assert (tmp_path / "lake").is_dir()


def test_relabelling_rewrites_labels_and_not_what_they_stand_on(tmp_path):
    lake = Lake(str(tmp_path))
    lake.commit("captions", captions(lake, {"a": "1", "b": "1", "c": "1"}))
    lake.commit("captions", captions(lake, {"d": "1"}))
    lake.commit("captions", None, replace="clip_id = 'b'")
    kept = {p: p.read_bytes() for p in (tmp_path / "captions.lance" / "data").iterdir()}
    new = {"a": "2", "c": "3"}
    count = upkeep.relabel(
        lake, "captions", "", lambda row: {"fingerprint": new[row["clip_id"]]} if row["clip_id"] in new else None, ["fingerprint"]
    )
    assert count == 2
    rows = {r["clip_id"]: (r["fingerprint"], r["text"]) for r in lake.read("captions").to_pylist()}
    assert rows == {"a": ("2", "1"), "c": ("3", "1"), "d": ("1", "1")}
    assert all(p.read_bytes() == data for p, data in kept.items())
    assert upkeep.relabel(lake, "captions", "false", lambda row: {"fingerprint": "9"}, ["fingerprint"]) == 0


def test_purging_leaves_no_file_that_held_a_deleted_row_and_spares_tagged_versions(tmp_path):
    lake = Lake(str(tmp_path))
    lake.commit("captions", captions(lake, {"only-a": "secret one", "b": "1"}))
    kept = lake.commit("captions", captions(lake, {"c": "1"}), replace="clip_id = 'only-a'")
    upkeep.tag(lake, "captions", kept, "keep")
    assert upkeep.held(lake, "captions", "clip_id", "clip_id < 'z'") == {"only-a", "b", "c"}  # deleted, and still on disk
    upkeep.purge(lake, "captions")
    assert upkeep.held(lake, "captions", "clip_id", "clip_id = 'only-a'") == set()
    assert upkeep.held(lake, "captions", "clip_id", "clip_id = 'only-a'", kept) == {"only-a"}  # what is tagged stays
    upkeep.untag(lake, "captions", "keep")
    lake.write_fragments("captions", [{"clip_id": "orphan", "text": "secret two"}])
    lake.open("captions").create_scalar_index("clip_id", "BTREE")
    upkeep.purge(lake, "captions")
    assert content(lake) == {"b": "1", "c": "1"}
    left = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert not [word for word in (b"only-a", b"secret", b"orphan") if word in left]
    assert upkeep.versions(lake, "captions") == [lake.version("captions")]


def test_a_glimpse_creates_nothing_and_cannot_write(tmp_path):
    glimpse = Glimpse(str(tmp_path / "none"))
    assert glimpse.read("captions", ["clip_id"], "clip_id = 'a'").num_rows == 0
    assert glimpse.count("clips", version=glimpse.version("clips")) == 0
    assert not (tmp_path / "none").exists()
    with pytest.raises(RuntimeError, match="looked at"):
        glimpse.upsert("captions", [{"clip_id": "a"}])
    Lake(glimpse.uri).commit("captions", captions(Lake(glimpse.uri), {"a": "1"}))
    assert content(glimpse) == {"a": "1"}


def test_a_table_of_an_earlier_release_reads_as_null_and_gets_the_column_when_written(tmp_path, monkeypatch):
    lake, whole = Lake(str(tmp_path)), TABLES["depth"]
    with monkeypatch.context() as earlier:
        earlier.setitem(TABLES, "depth", whole.remove(whole.get_field_index("head_scale")))
        lake.upsert("depth", [{"clip_id": "a", "known": 0.5}, {"clip_id": "b", "known": 0.5}])
    before = lake.version("depth")
    assert lake.read("depth", ["head_scale", "clip_id"]).to_pylist() == [{"clip_id": k, "head_scale": None} for k in "ab"]
    assert lake.rows("depth", ["b"], ["clip_id", "head_scale"]) == [{"clip_id": "b", "head_scale": None}]
    assert lake.version("depth") == before  # a question writes nothing
    lake.upsert("depth", [{"clip_id": "b", "known": 0.7, "head_scale": 1.4}, {"clip_id": "c", "known": 0.7, "head_scale": 0.9}])
    upkeep.compact(lake, "depth")
    found = {r["clip_id"]: (r["known"], r["head_scale"]) for r in lake.read("depth").to_pylist()}
    assert found == {"a": (0.5, None), "b": (0.7, 1.4), "c": (0.7, 0.9)}
    assert "head_scale" not in lake.read("depth", version=before).column_names
    assert lake.read("depth", ["head_scale"], version=before)["head_scale"].to_pylist() == [None, None]
