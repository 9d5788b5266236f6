"""What a disk does to a lake: every byte that changed is noticed, and what is damaged is made again, not learnt from."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from egomill.flows import verbs
from egomill.flows.cli import app
from egomill.models.egox import METHOD
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import content_of
from egomill.schemas.tables import NO_CONTENT, RELEASED, as_stored
from egomill.schemas.tensors import pack
from egomill.tasks.keeping import repair
from egomill.tasks.lake import damage, releases, upkeep
from egomill.tasks.lake import tables as lakes
from egomill.tasks.lake.pending import pending
from egomill.tasks.lake.rows import handed, read_rows
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Damaged, Lake
from egomill.tasks.training.samples import Samples, clips_of

READS = METHOD.reads
CLIPS = [f"take{t}.cam01.{i:06d}" for t in range(2) for i in range(3)]


def add(lake: Lake, table: str, rows: list[dict]) -> None:
    stored = as_stored(table, rows)
    lake.upsert(table, [{**row, "content": content_of(row, NO_CONTENT), "fingerprint": "f"} for row in stored])


def tensor(rng: np.random.Generator) -> dict:
    return pack(rng.random((2, 8, 8)).astype(np.float16))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Lake:
    """A release "first" of six clips with latents, each table of two files, one with a deletion; and a run."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    rng = np.random.default_rng(0)
    add(lake, "takes", [{"take_uid": f"take{t}", "take_name": f"take{t}", "files": "{}"} for t in range(2)])
    for some in (CLIPS[:3], CLIPS[3:]):
        add(lake, "clips", [{"clip_id": c, "take_uid": c[:5], "split": "train", "chosen": True} for c in [*some, f"{some[0]}.gone"]])
        lake.commit("clips", None, replace=f"clip_id = '{some[0]}.gone'")
        named = [(c, n) for c in some for n in ("exo", "ego")]
        add(lake, "latents", [{"clip_id": c, "model": "m", "name": n, "names": ["exo", "ego"], "tensor": tensor(rng)} for c, n in named])
        add(lake, "directions", [{"clip_id": c, "centres": tensor(rng)} for c in some])
    with lakes_run(lake) as run:
        releases.publish(lake, run.id, Profile.load("local"), "first")
    return lake


def lakes_run(lake: Lake):
    from egomill.tasks.lake.runs import recorded

    return recorded(lake, "rebuild", Profile.load("local"))


@pytest.fixture
def lake(made, tmp_path) -> Lake:
    shutil.copytree(made.uri, tmp_path / "lake")
    return Lake(str(tmp_path / "lake"))


def files(lake: Lake, table: str, kind: str = "data") -> list[Path]:
    return sorted(Path(lake.path(table), kind).glob("*"), key=lambda p: p.stat().st_mtime_ns)


def told(lake: Lake, *command: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*command, "--lake", lake.uri])
    error = done.exception
    return (2, f"error: {error}") if isinstance(error, ValueError) else (done.exit_code, done.output)


def test_what_is_whole_is_whole(lake):
    assert verbs.verify_deep(lake.uri, "first")["damaged"] == 0
    assert told(lake, "verify", "--deep")[0] == told(lake, "status")[0] == 0
    assert verbs.repair(lake.uri) == {"mended": [], "withdrawn": {}}
    assert releases.get(lake)["name"] == "first"


def test_every_flipped_bit_of_every_file_of_a_release_is_noticed(lake):
    release, rng = releases.get(lake, "first"), random.Random(0)
    for table in RELEASED:
        for path in damage.files_of(lake, table, release["tables"][table]):
            file = Path(lake.path(table), path)
            good = file.read_bytes()
            for at in [0, len(good) - 1, *rng.sample(range(len(good)), 4)]:
                bad = bytearray(good)
                bad[at] ^= 1 << rng.randrange(8)
                file.write_bytes(bad)
                found = verbs.verify_deep(lake.uri, "first")
                assert found["damaged"], (path, at)
                assert any(t["damaged"] for t in found["tables"] if t["table"] == table), (path, at)
            file.write_bytes(good)
    assert verbs.verify_deep(lake.uri, "first")["damaged"] == 0


def test_no_training_and_no_stage_takes_a_row_with_a_flipped_bit(lake):
    at = releases.get(lake, "first")["tables"]
    reads = {"latents": ("exo", "ego"), "clips": ("fps",)}

    def trained() -> list[bytes]:
        found = Samples(lake, at, "m", READS, CLIPS[3:]).get(range(3))
        return [sample[name].numpy().tobytes() for sample in found for name in ("exo", "ego", "centres")]

    def made_from() -> list[bytes]:
        rows, _ = read_rows(lake, reads, at, CLIPS[3:], "model = 'm'")
        return [handed(reads, rows[clip])["latents"][name] for clip in CLIPS[3:] for name in ("exo", "ego")]

    file, rng = files(lake, "latents")[-1], random.Random(1)
    good, wholes, refused = file.read_bytes(), (trained(), made_from()), 0
    for _ in range(60):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        for read, whole in zip((trained, made_from), wholes, strict=True):
            try:
                assert read() == whole  # the bit was one that no value depends on
            except Damaged:
                refused += 1
    assert refused > 60


def test_a_column_that_came_after_a_row_is_no_damage():
    row = as_stored("depth", [{"clip_id": "c", "estimator": "e"}])[0]
    before = {name: value for name, value in row.items() if name not in ("known", "alpha")}
    lakes.intact("depth", {**row, "content": content_of(before, NO_CONTENT)})
    with pytest.raises(Damaged):
        lakes.intact("depth", {**row, "estimator": "f", "content": content_of(before, NO_CONTENT)})


def test_a_damaged_row_is_named_with_what_to_do(lake):
    (row,) = lake.rows("latents", CLIPS[:1], where="name = 'exo'")
    lake.upsert("latents", [{**row, "tensor": pack(np.zeros((2, 8, 8), np.float16))}])
    with pytest.raises(Damaged, match=rf"row {CLIPS[0]} m exo of table latents is not what was committed: `egomill repair`"):
        Samples(lake, {t: lake.version(t) for t in RELEASED}, "m", READS, CLIPS).get([0])
    with pytest.raises(Damaged, match=r"table latents has no row of clip gone any more: `egomill repair`"):
        Samples(lake, {t: lake.version(t) for t in RELEASED}, "m", READS, ["gone"]).get([0])
    (row,) = lake.rows("clips", CLIPS[:1])
    at = {t: lake.version(t) for t in RELEASED}
    assert CLIPS[0] in clips_of(lake, at, "m", READS, ("train",))
    lake.upsert("clips", [{**row, "split": "unseen"}])
    with pytest.raises(Damaged, match=rf"row {CLIPS[0]} of table clips"):
        clips_of(lake, {**at, "clips": lake.version("clips")}, "m", READS, ("unseen",))


BROKEN = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", ["data", "_deletions"])
def test_files_that_are_gone_or_cut_are_named_at_once_and_their_rows_made_again(lake, how, kind):
    table = "latents" if kind == "data" else "clips"
    before = lake.read(table, ["clip_id"])["clip_id"].to_pylist()
    path = files(lake, table, kind)[0]
    BROKEN[how](path)
    code, said = told(lake, "status")
    if kind == "data" or how == "gone":  # Lance keeps no size of deletions
        assert code == 1
        assert f"damaged: {lake.folder(table)}/{kind}/{path.name}" in said.replace("\n", "")
    assert told(lake, "verify", "--deep")[0] == 1
    code, said = told(lake, "verify")
    assert (code, "egomill repair" in said) == (2, True)

    answer = verbs.repair(lake.uri)
    assert [m["table"] for m in answer["mended"]] == [table]
    assert list(answer["withdrawn"]) == ["first"]
    rest = lake.read(table, ["clip_id"])["clip_id"].to_pylist()
    assert len(rest) == len(before) - answer["mended"][0]["rows"] == len(before) // 2
    assert told(lake, "status")[0] == 0
    assert verbs.repair(lake.uri)["mended"] == []
    with pytest.raises(ValueError, match=r"was withdrawn on .*: damaged on disk"):
        releases.get(lake, "first")
    stage = Stage("latents", {"clips": ("fps",)}, {}, dict, constants={"model": "m"})
    if table == "latents":
        states = pending(stage, lake).to_pylist()
        assert {row["key"] for row in states if row["made"] is None} == set(before) - set(rest)


def test_a_clip_that_lacks_some_of_its_rows_is_made_again(lake):
    stage = Stage("latents", {"clips": ("fps",)}, {}, dict, constants={"model": "m"})
    lake.commit("latents", None, replace=f"clip_id = '{CLIPS[1]}' AND name = 'ego'")
    made = {row["key"]: row["made"] for row in pending(stage, lake).to_pylist()}
    assert made == {clip: "" if clip == CLIPS[1] else "f" for clip in CLIPS}


def test_no_release_is_published_of_a_table_whose_file_is_gone(lake):
    add(lake, "depth", [{"clip_id": c, "known": 1.0} for c in CLIPS])
    (path,) = files(lake, "depth")
    good = path.read_bytes()
    with path.open("wb"):
        pass
    with pytest.raises(Damaged, match="egomill repair"):
        releases.publish(lake, "r", Profile.load("local"), "second")
    path.write_bytes(good)
    assert releases.publish(lake, "r", Profile.load("local"), "second")[1]


def test_a_flipped_bit_that_no_value_shows_is_mended_too(lake):
    path = files(lake, "latents")[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    answer = verbs.repair(lake.uri)
    assert [(m["table"], m["rows"]) for m in answer["mended"]] == [("latents", 6)]
    row = releases.publish(lake, "r", Profile.load("local"), "second")[0]
    assert row["clips"] == 3
    assert verbs.verify_deep(lake.uri, "")["damaged"] == 0


def test_a_cut_manifest_gives_way_to_the_one_before(lake):
    newest = files(lake, "latents", "_versions")
    path = min((p for p in newest if p.suffix == ".manifest"), key=lambda p: p.name)
    path.write_bytes(path.read_bytes()[:100])
    code, said = told(lake, "status")
    assert (code, "table latents" in said, "egomill repair" in said) == (2, True, True)
    with pytest.raises(Damaged, match=r"release 'first' is damaged: table latents at version 3"):
        releases.get(lake, "first")
    answer = verbs.repair(lake.uri)
    assert answer["mended"] == [{"table": "latents", "what": "stands at version 2 again", "rows": None}]
    assert list(answer["withdrawn"]) == ["first"]
    assert lake.count("latents") == 6
    add(lake, "latents", [{"clip_id": c, "model": "m", "name": "exo"} for c in CLIPS[3:]])  # which is called version 3 again
    assert releases.latest(lake) is None
    assert releases.publish(lake, "r", Profile.load("local"), "second")[1]


def test_where_no_manifest_is_left_the_table_begins_anew_beside_its_files(lake):
    for path in files(lake, "captions", "_versions") + files(lake, "latents", "_versions"):
        path.write_bytes(b"")
    answer = verbs.repair(lake.uri)
    assert {m["what"] for m in answer["mended"]} == {"begins anew; its files are put aside"}
    assert lake.count("latents") == 0
    (aside,) = Path(lake.uri).glob("tensors.damaged-*")
    assert len(list((aside / "data").iterdir())) == 2


def test_a_table_made_anew_does_not_answer_for_an_old_release(lake):
    old = releases.get(lake, "first")
    rows = lake.read("latents").to_pylist()
    shutil.rmtree(lake.path("latents"))
    lake.upsert("latents", rows[:4])
    with pytest.raises(Damaged, match="release 'first' is damaged"):
        releases.get(lake, "first")
    while lake.version("latents") < old["tables"]["latents"]:
        lake.upsert("latents", rows[:4])
    assert {t: lake.version(t) for t in RELEASED} == old["tables"]
    with pytest.raises(Damaged, match="version 3 of table latents holds other rows"):
        releases.get(lake, "first")
    assert verbs.verify_deep(lake.uri, "first")["damaged"]
    made, new = releases.publish(lake, "r", Profile.load("local"), "second")
    assert (new, made["clips"]) == (True, 2)


@pytest.mark.parametrize("table", ["runs", "releases", "forgotten", "failures"])
def test_what_no_run_makes_again_is_told_as_lost(lake, table):
    lake.upsert("forgotten", [{"take": "x"}])
    lake.upsert("failures", [{"key": "k", "stage": "s"}])
    for path in files(lake, table):
        path.write_bytes(b"")
    assert "egomill repair" in told(lake, "status")[1]
    code, said = told(lake, "repair")
    assert (code, f"{table}: " in said, "rows lost" in said) == (1, True, True)
    assert ("forget them again" in said) == (table == "forgotten")
    assert lake.count(table) == (1 if table == "runs" else 0)  # the repair's own
    assert told(lake, "status")[0] == 0


def test_a_damaged_index_is_dropped(lake, monkeypatch):
    monkeypatch.setattr(upkeep, "INDEX_ROWS", 1)
    assert upkeep.index(lake, "latents")
    for path in Path(lake.path("latents"), "_indices").rglob("*.lance"):
        path.write_bytes(b"")
    assert told(lake, "status")[0] == 1
    assert verbs.repair(lake.uri)["mended"][0]["what"].startswith("an index was damaged")
    assert {r["clip_id"] for r in lake.rows("latents", CLIPS)} == set(CLIPS)
    assert repair.records(lake) == []


def test_a_list_of_digests_that_is_cut_counts_as_none(lake):
    (Path(lake.uri) / "releases" / "first.json").write_text('{"files": {')
    assert releases.file_digests(lake, "first") is None
    assert verbs.verify_deep(lake.uri, "first")["damaged"] == 0  # rows still have theirs
