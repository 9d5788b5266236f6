"""Bad data has one name each, costs nobody else anything, and leads nowhere outside. The animals are in zoo.py."""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from egomill.schemas.config import Profile, Resources
from egomill.schemas.outcome import REASONS, Rejected
from egomill.tasks.lake.runner import run
from egomill.tasks.lake.tables import Lake
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import clips, depth, takes
from tests.tasks.stages.zoo import SETTINGS, ZOO, Kind, Take, breed, enclosure, settle

PROFILE = Profile.load("local", SETTINGS)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    return breed(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def outside(samples, tmp_path_factory) -> Path:
    """A folder with a healthy take, to which links and paths lead."""
    folder = tmp_path_factory.mktemp("canary") / "outside"
    settle(samples / "release", folder, "canary_cooking_1", "zoo-7")
    return folder


@pytest.fixture(scope="module")
def workers():
    return {stage.name: stage.worker() for stage in (takes.stage(PROFILE), clips.stage(PROFILE), depth.stage(PROFILE))}


@pytest.fixture(scope="module")
def healthy(samples, outside, tmp_path_factory, workers) -> dict[bool, dict]:
    """What the neighbours become where nobody is spoilt, by layout (EgoX or not)."""
    out = {}
    for egox in (False, True):
        root = tmp_path_factory.mktemp("healthy") / "data"
        enclosure(Kind(lambda take: None, egox=egox), samples, root, outside)
        (fate,) = [fate for key, fate in fates(root, workers).items() if key.startswith("beside")]
        out[egox] = fate
    return out


def census(*folders: Path) -> dict[str, tuple]:
    """All there is below the folders: kind, size, time of change of every file and folder, links not followed."""
    found = {}
    for folder in folders:
        for place, dirs, files in os.walk(os.fsencode(folder)):
            for path in (place, *(os.path.join(place, name) for name in (*dirs, *files))):
                at = os.lstat(path)
                found[path] = at.st_mode, at.st_size, at.st_mtime_ns, at.st_ctime_ns
    return found


def fates(root: Path, workers: dict, allow: Sequence[str] = ()) -> dict[str, tuple[str, Rejected] | dict]:
    """Every take through ingest, the spoilt ones through clips and depth: the stage that rejected one and how, or its row of takes."""
    out: dict = {}
    for item in discover([root], allow):
        take = workers["takes"](item.row)
        if isinstance(take, Rejected):
            out[item.key] = ("takes", take)
            continue
        if item.key.startswith("beside"):  # what becomes of it depends on its row alone
            out[item.key] = take
            continue
        windows = workers["clips"]({"takes": {"take_uid": item.key, **take}})
        if isinstance(windows, Rejected):
            out[item.key] = ("clips", windows)
            continue
        made = [workers["depth"]({"clips": clip}) for clip in windows if clip["chosen"]]
        bad = [row for row in made if isinstance(row, Rejected)]
        assert made
        assert len(bad) in (0, len(made))
        out[item.key] = ("depth", bad[0]) if bad else take
    assert len(out) == len({item.key for item in discover([root], allow)})
    return out


def told(take: dict) -> dict:
    """A row of takes without where and when its files lay, and without the split where it depends on who else is there (EgoX: one of
    the sound takes is held out)."""
    digests = {name: file["sha256"] for name, file in json.loads(take["files"]).items()}
    without = ("root", "content", "split") if take["layout"] == "egox" else ("root", "content")
    return {k: v for k, v in take.items() if k not in without} | {"files": digests}


def possible(kind: Kind, name: str) -> None:
    if name == "video that may not be read" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if name == "device for a video" and os.geteuid() != 0:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize("name", ZOO)
def test_one_name_no_crash_nothing_touched_and_the_neighbour_unharmed(name, samples, outside, healthy, workers, tmp_path):
    kind = ZOO[name]
    possible(kind, name)
    take = enclosure(kind, samples, tmp_path / "data", outside)
    before, memory = census(tmp_path, outside), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = fates(take.root, workers)
    assert census(tmp_path, outside) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000  # kB: nothing was believed that says it is large

    neighbour = found.pop("beside" if not kind.egox else "beside_bike_1", None)
    rejected = [(stage, fate) for fate in found.values() if isinstance(fate, tuple) for stage, fate in [fate]]
    if kind.whole:
        rejected += [neighbour] if neighbour else []
        assert {(stage, r.reason) for stage, r in rejected} == {("takes", kind.reason)}
    else:
        assert isinstance(neighbour, dict), neighbour
        assert told(neighbour) == told(healthy[kind.egox])
        assert [(stage, r.reason) for stage, r in rejected] == ([(kind.at, kind.reason)] if kind.reason else []), found
        assert sum(isinstance(fate, dict) for fate in found.values()) == kind.taken
    for _, bad in rejected:
        assert bad.reason in REASONS
        assert kind.told in bad.detail, bad
        json.dumps(bad.detail, ensure_ascii=False).encode()  # can be stored


@pytest.fixture(scope="module")
def without_cam01(samples, outside, tmp_path_factory, workers) -> dict:
    """What becomes of the take where that camera was never there."""
    spoil = lambda take: (take.exo.unlink(), take.depth[0].unlink())  # noqa: E731
    take = enclosure(Kind(spoil), samples, tmp_path_factory.mktemp("without") / "data", outside, beside=False, cam02=True)
    return workers["takes"](discover([take.root])[0].row)


@pytest.mark.parametrize("name", [name for name, kind in ZOO.items() if kind.cam01])
def test_one_bad_exo_camera_is_left_out_and_nothing_else(name, samples, outside, workers, without_cam01, tmp_path):
    kind = ZOO[name]
    possible(kind, name)
    take = enclosure(kind, samples, tmp_path / "data", outside, beside=False, cam02=True)
    (item,) = discover([take.root])
    found = workers["takes"](item.row)
    assert isinstance(found, dict), found
    ((camera, (reason, detail)),) = json.loads(found["left_out"]).items()
    assert (camera, reason) == ("cam01", kind.reason)
    assert kind.told in detail
    assert list(json.loads(found["exo"])) == ["cam02"]
    same = {k: v for k, v in told(found).items() if k not in ("left_out", "files")}
    assert same == {k: told(without_cam01)[k] for k in same}


def test_links_that_are_allowed_are_followed_by_every_stage_and_others_by_none(samples, outside, healthy, workers, tmp_path):
    take = enclosure(Kind(lambda take: None), samples, tmp_path / "data", outside, cam02=True)
    scratch = tmp_path / "scratch"
    for room in ("takes", "sidecar"):
        scratch.mkdir(exist_ok=True)
        (take.root / room).rename(scratch / room)
        (take.root / room).symlink_to(scratch / room)
    assert {fate[1].reason for fate in fates(take.root, workers).values()} == {"path_outside_root"}
    profile = Profile.load("local", [*SETTINGS, f'ingest.allow=["{scratch}"]'])
    assert takes.stage(profile).recipe == takes.stage(PROFILE).recipe  # what is there need not be read again
    allowed = {stage.name: stage.worker() for stage in (takes.stage(profile), clips.stage(profile), depth.stage(profile))}
    found = fates(take.root, allowed, [str(scratch)])
    assert told(found["beside"]) == told(healthy[False])
    assert isinstance(found[take.uid], dict)
    clip = allowed["clips"]({"takes": {"take_uid": take.uid, **found[take.uid]}})[0]
    assert workers["depth"]({"clips": clip}).reason == "path_outside_root"


def test_a_file_that_changes_while_it_is_read(samples, outside, workers, tmp_path, monkeypatch):
    take = enclosure(Kind(lambda take: None), samples, tmp_path / "data", outside)
    item = next(item for item in discover([take.root]) if item.key == take.uid)
    whole = takes.file_sha256

    def written_to(path: Path) -> str:
        if path == take.exo:
            path.write_bytes(path.read_bytes() + b"\0")
        return whole(path)

    monkeypatch.setattr(takes, "file_sha256", written_to)
    found = workers["takes"](item.row)
    assert isinstance(found, Rejected)
    assert (found.reason, Path(found.detail).name) == ("changed_while_read", "cam01.mp4")
    assert next(i for i in discover([take.root]) if i.key == take.uid).digest != item.digest  # so the next run looks again


def test_there_are_enough_kinds_and_each_reason_of_a_take_has_one():
    assert len(ZOO) >= 100
    of_takes = list(REASONS)[: list(REASONS).index("too_short") + 1]
    assert set(of_takes) - {kind.reason for kind in ZOO.values()} == {"changed_while_read", "forgotten"}


def test_all_kinds_at_once_through_the_stages(samples, outside, tmp_path, ray_cluster):
    """One lake with the zoo and two healthy takes, another with the healthy takes alone: the same rows, and every row accounted for."""
    well = tmp_path / "well"
    for number in range(2):
        settle(samples / "release", well, f"well_bike_{number}", f"well-{number}")
    kinds: dict[str, tuple[Kind, Take]] = {}
    for number, (name, kind) in enumerate(ZOO.items()):
        if name in ("video that may not be read", "device for a video", "uid with dots"):
            continue  # as root all may be read, as nobody no device made; ".." is one uid only as it stands
        kinds[name] = kind, enclosure(kind, samples, tmp_path / f"zoo {number:03d}", outside, label=f"-{number}", beside=False)
    before = census(tmp_path, outside)
    resources = Resources(shard=8, failure_threshold=0.0)
    reports, lakes = {}, {}
    for where, roots in (("alone", [well]), ("zoo", [well, *(take.root for _, take in kinds.values())])):
        lake = lakes[where] = Lake(str(tmp_path / f"lake {where}"))
        items = discover(roots)
        reports[where] = [
            run(takes.stage(PROFILE), lake, "r1", resources, items=items),
            run(clips.stage(PROFILE), lake, "r1", resources),
            run(depth.stage(PROFILE), lake, "r1", resources, keys=clips.selected(lake, PROFILE.clips)),
        ]
        assert reports[where][0].inputs == len(items)
        for report in reports[where]:
            assert report.balanced, report
            assert report.failed == 0, lake.read("failures").to_pylist()
    ours = tuple(os.fsencode(lake.uri) for lake in lakes.values())
    after = {path: at for path, at in census(tmp_path, outside).items() if not path.startswith(ours)}
    assert {path for path in after | before if after.get(path) != before.get(path)} == {os.fsencode(tmp_path)}  # where the lakes were put

    expected = Counter(kind.reason for kind, _ in kinds.values() if kind.reason)
    failures = lakes["zoo"].read("failures").to_pylist()
    assert Counter(f["reason"] for f in failures) == expected
    assert Counter(f["stage"] for f in failures) == Counter(kind.at for kind, _ in kinds.values() if kind.reason)
    assert sum((report.reasons for report in reports["zoo"]), Counter()) == expected
    assert reports["zoo"][0].outputs == 2 + sum(kind.taken + (kind.at != "takes") for kind, _ in kinds.values())
    for table in ("takes", "clips", "depth"):
        mine = {
            where: {row[next(iter(row))]: row for row in lake.read(table).to_pylist() if next(iter(row.values())).startswith("well-")}
            for where, lake in lakes.items()
        }
        assert mine["alone"]
        assert mine["alone"] == mine["zoo"]
