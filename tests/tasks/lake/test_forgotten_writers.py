"""A take's name is data, and a writer who started before the take was forgotten does not bring it back. No Ray, no tracker."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from egomill.schemas.fingerprint import digest
from egomill.schemas.item import Item
from egomill.schemas.tables import KEYS
from egomill.tasks.keeping import forget as forgetting
from egomill.tasks.lake import upkeep
from egomill.tasks.lake.tables import Lake, one_of

TAKES = ["a", "a.b", "a.b.cam01", "take1", "take10", "take_1", "takex1", "it's", 'say "q"', "100%", "100", "küche.♞", "a#b", "b\\c"]
TAKES += ["[red]", "--"]
WRITTEN = ("takes", *forgetting.OF_CLIPS, "failures")


def rows_of(take: str, table: str) -> list[dict]:
    clip = f"{take}.cam01.000000"
    if table == "takes":
        return [{"take_uid": take, "take_name": f"name of {take}", "files": "{}"}]
    if table == "failures":
        return [{"key": take, "stage": "takes", "detail": f"{take} is bad"}, {"key": clip, "stage": "depth", "detail": "so it is"}]
    more = dict.fromkeys(KEYS[table][1:], "x") | ({"take_uid": take} if table == "clips" else {})
    return [{"clip_id": clip, **more}]


def keys(lake: Lake, table: str) -> list[tuple]:
    return sorted(tuple(row.values()) for row in lake.read(table, list(KEYS[table])).to_pylist())


@pytest.fixture
def lake(tmp_path) -> Lake:
    lake = Lake(str(tmp_path / "lake"))
    for table in WRITTEN:
        lake.upsert(table, [row for take in TAKES for row in rows_of(take, table)])
    return lake


def forgotten(lake: Lake, *takes: str) -> None:
    lake.upsert("forgotten", [{"take": digest(take), "at": datetime.now(UTC)} for take in takes])


def test_whatever_a_take_is_called_it_is_forgotten_and_nobody_else(lake):
    lake.upsert("failures", [{"key": "take1#/d/take1", "stage": "takes", "detail": "take1 is also /d"}])
    lake.upsert("failures", [{"key": "other", "stage": "takes", "detail": "take1 and take10, it's 100%"}])
    left = list(TAKES)
    for victim in ("a", "take1", "it's", "100%", "küche.♞", "a#b", "b\\c", "a.b"):
        left.remove(victim)
        known = forgetting.find(lake, f"name of {victim}" if victim == "it's" else victim)
        assert known.uid == victim
        assert forgetting.forget(lake, None, known, "run")["left"] == []
        for table in WRITTEN:
            rest = sorted(tuple(row[key] for key in KEYS[table]) for take in left for row in rows_of(take, table))
            twin = [("take1#/d/take1", "takes")] if table == "failures" and "take1" in left else []
            assert keys(lake, table) == sorted([*rest, *twin, *([("other", "takes")] if table == "failures" else [])]), (victim, table)
    (row,) = lake.rows("failures", ["other"])  # another's row stays, and says the name no more
    assert row["detail"] == "{0} and take10, {0} {0}".format("(a forgotten take)")
    for name in ("küche.♞", "it's"):
        assert not [p for p in Path(lake.uri).rglob("*") if p.is_file() and name.encode() in p.read_bytes()]

    items = [Item(key, "d", {}) for key in (*TAKES, "a#/data/a", "a.b#/data/1", "100#/x")]
    found = {item.key for item in forgetting.withheld(lake, items)}
    gone = {f"forgotten-{digest(take)}" for take in set(TAKES) - set(left)}
    assert found == {*left, "100#/x", *gone}


def test_a_name_that_could_stand_anywhere_is_not_searched_for(lake):
    for take, searched in (("a", False), ("depth", False), ("take1", False), ("100%", False), ('say "q"', True)):
        assert bool(forgetting.Take(take, "", f"take10 {' '.join(KEYS)}").words) == searched
    written = '{"name": "say \\"q\\""} <p>say &quot;q&quot;</p> /say%20%22q%22/'
    assert sum(written.encode().count(word) for word in forgetting.Take('say "q"', "", "").words) == 3


@pytest.mark.parametrize("table", WRITTEN)
def test_no_commit_brings_a_forgotten_take_back(lake, table):
    lake.commit(table, None, replace=one_of(KEYS[table][0], [row[KEYS[table][0]] for row in rows_of("a", table)]))
    before, folder = keys(lake, table), Path(lake.path(table), "data")
    started_before = lake.write_fragments(table, rows_of("a", table))
    forgotten(lake, "a", "it's")
    for fragments in (started_before, lake.write_fragments(table, rows_of("it's", table) + rows_of("new", table))):
        with pytest.raises(ValueError, match="a take was forgotten with `egomill forget` while this run worked on it"):
            lake.commit(table, fragments)
    assert keys(lake, table) == before
    assert len(list(folder.iterdir())) == 1  # what was written of it is no more
    lake.commit(table, lake.write_fragments(table, rows_of("a.b", table) + rows_of("new", table)))
    assert len(keys(lake, table)) == len(before) + len(rows_of("new", table))


@pytest.mark.parametrize("filled", [True, False])
def test_who_looked_before_the_take_was_written_down_has_to_look_again(tmp_path, monkeypatch, filled):
    lake = Lake(str(tmp_path))
    if filled:
        lake.upsert("captions", [{"clip_id": "b.cam01.0"}, {"clip_id": "c.cam01.0"}])
    fragments, look = lake.write_fragments("captions", [{"clip_id": "a.cam01.0"}]), Lake._refuse_forgotten

    def then_forget(self, table, found, files):
        look(self, table, found, files)
        monkeypatch.setattr(Lake, "_refuse_forgotten", look)
        forgotten(self, "a")
        lake.commit("captions", None, replace=one_of("clip_id", []), fence=True)

    monkeypatch.setattr(Lake, "_refuse_forgotten", then_forget)
    with pytest.raises(ValueError, match="was forgotten"):
        lake.commit("captions", fragments)
    assert lake.count("captions") == (2 if filled else 0)


def test_asked_again_by_name_after_it_was_broken_off(lake, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(upkeep, "purge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forgetting.forget(lake, None, forgetting.find(lake, "name of take1"), "run")
    assert lake.count("takes", "take_uid = 'take1'") == 0
    assert forgetting.forget(lake, None, forgetting.find(lake, "name of take1"), "run")["left"] == []
