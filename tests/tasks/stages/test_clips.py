"""Windows are chosen by geometry, then by what is seen; each row says why; splits never share what they must not."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from egomill.kernels import quality
from egomill.kernels.cameras import Camera, T_shown_sensor
from egomill.schemas.config import Clips, Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import MADE, TABLES, VIEW
from egomill.schemas.tensors import unpack
from egomill.tasks.media import video, views
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import clips, takes
from tests.tasks.tiny_release import EXO, FRAMES, put, write_release, write_take

torch.set_num_threads(1)  # as in a stage's actor
SMALL = ["clips.exo_cameras=1", "clips.exo_size=[112, 64]", "clips.ego_size=64", "clips.hop=0.2"]


@pytest.fixture(scope="module")
def take(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_release(root)
    return taken(root)


def taken(root):
    (item,) = discover([root])
    take = takes.stage(Profile.load("local")).worker()(item.row)
    assert isinstance(take, dict), take
    return take


def windows(take, *settings):
    return clips.stage(Profile.load("local", [*SMALL, *settings])).worker()({"takes": take})


def test_rows(take):
    rows = windows(take)
    assert [row["start"] for row in rows] == [0, 6, 12]
    assert {row["exo_cam"] for row in rows} == {"cam01"}  # cam02 looks the other way
    columns = {f.name for f in TABLES["clips"]} - set(MADE)
    assert all(set(row) == columns for row in rows)
    pa.Table.from_pylist([{**row, "fingerprint": "f", "run_id": "r"} for row in rows], schema=TABLES["clips"])
    first = rows[0]
    assert (first["clip_id"], first["stride"], first["fps"], first["why"]) == ("uid-0.cam01.000000", 3, 10.0, "chosen")
    assert first["overlap"] > 0.5
    assert np.array_equal(unpack(first["T_world_ego"]), unpack(take["T_world_ego"])[:25:3])
    assert [row["why"] for row in rows[:2]] == ["chosen", "chosen"]


def test_poses_that_are_not_there(take):
    rows = windows(take, "clips.hop=0.1")
    assert [row["why"] for row in rows if row["start"] >= 14] == ["no ego pose for 1 of 9 frames"]  # frames 38 and 39 have none
    assert all(row["motion"] is None for row in rows if "no ego pose" in row["why"])  # and were not decoded


def test_nothing_is_decoded_for_cameras_that_see_nothing(take):
    change_exo = json.loads(take["exo"])
    del change_exo["cam01"]
    result = windows({**take, "exo": json.dumps(change_exo), "root": "/nowhere"})
    assert isinstance(result, Rejected)
    assert result.reason == "no_window"
    assert "overlap 0.0" in result.detail


def test_several_cameras_of_one_window_share_its_split(take):
    rows = windows(take, "clips.exo_cameras=2", "clips.min_overlap=0.0", "clips.test_fraction=0.5")
    by_start = {}
    for row in rows:
        by_start.setdefault(row["start"], set()).add(row["split"])
    assert len(rows) == 2 * len(by_start)
    assert all(len(splits) == 1 for splits in by_start.values())


def test_a_clip_of_several_views_has_them_in_order_around_the_wearer(tmp_path):
    """cam01 sees the wearer; so does cam03, a little beside it; cam02 looks the other way and is left out."""
    put(tmp_path / "takes.json", [write_take(tmp_path, "site_bike_1", "u", cams=("cam01", "cam02", "cam03"))])
    take = taken(tmp_path)
    exo = json.loads(take["exo"])
    first_pose = torch.from_numpy(unpack(take["T_world_ego"]))[0]
    turns = Camera.from_dict(json.loads(take["ego_camera"])).turns
    left = torch.inverse(T_shown_sensor(turns) @ torch.inverse(first_pose))[:3, 0] * -0.4  # of the wearer, in the world
    exo["cam03"]["T_world_exo"] = [[*row[:3], row[3] + float(by)] for row, by in zip(exo["cam01"]["T_world_exo"], left, strict=False)]
    exo["cam03"]["T_world_exo"].append([0.0, 0.0, 0.0, 1.0])
    take = {**take, "exo": json.dumps(exo)}
    (row, *_) = windows(take, "clips.views=3")
    one = windows(take, "clips.exo_cameras=3")
    assert row["why"].startswith("chosen; cam02: overlap 0.0")
    order = [view["exo_cam"] for view in views.of(row)]
    angles = [quality.azimuth(torch.from_numpy(unpack(v["T_world_exo"])), first_pose, turns) for v in views.of(row)]
    assert (sorted(order), angles) == (["cam01", "cam03"], sorted(angles))
    assert row["clip_id"] == f"u.{order[0]}.000000"
    for view in views.of(row):  # each is what it is alone, but for what names the clip
        alone = next(r for r in one if (r["exo_cam"], r["start"]) == (view["exo_cam"], 0))
        assert {k: v for k, v in alone.items() if k in VIEW} == {k: v for k, v in view.items() if k in VIEW} | {"why": "chosen"}
        assert np.array_equal(views.read_exo(view), views.read_exo(alone))
    stored = pa.Table.from_pylist([{**row, "fingerprint": "f", "run_id": "r"}], schema=TABLES["clips"]).to_pylist()[0]
    assert [view["exo_cam"] for view in views.of(stored)] == order
    assert len({row["split"] for row in windows(take, "clips.views=3") if row["start"] == 0}) == 1
    with pytest.raises(ValueError, match="one of them has to be 1"):
        windows(take, "clips.views=2", "clips.exo_cameras=2")


def test_a_clip_of_one_frame_is_a_clip(take):
    rows = windows(take, "clips.frames=1", "clips.min_overlap=0.0")
    assert all((row["frames"], row["chosen"]) == (1, True) for row in rows if row["pose_coverage"] == 1)
    assert views.read_exo(rows[0]).shape[0] == 1


def test_windows_that_overlap_never_lie_on_both_sides(take):
    for seed in range(6):
        rows = windows(take, "clips.hop=0.1", "clips.test_fraction=0.4", f"clips.split_seed={seed}")
        spans = {side: [r["start"] for r in rows if r["chosen"] and r["split"] == side] for side in ("train", "test")}
        assert all(abs(a - b) > 24 for a in spans["train"] for b in spans["test"])
        for row in rows:
            assert row["chosen"] or row["why"] != "chosen"


def test_a_lens_that_is_covered_as_the_take_begins(tmp_path):
    put(tmp_path / "takes.json", [write_take(tmp_path, "site_bike_1", "u", cams=("cam01",), covered=8)])
    rows = windows(taken(tmp_path), "clips.hop=0.1")
    assert "something covers the lens after frame -1 until frame" in rows[0]["why"]
    assert [row["start"] >= 8 for row in rows if row["chosen"]] == [True] * sum(row["chosen"] for row in rows)
    assert any(row["chosen"] for row in rows)
    unskipped = windows(taken(tmp_path), "clips.hop=0.1", "clips.skip_covered=false")
    assert unskipped[0]["why"] == "chosen"


def test_one_pass_judges_as_reading_window_by_window_does(take):
    rows = windows(take, "clips.hop=0.1")
    for row in (row for row in rows if row["motion"] is not None):
        crop = row["exo_crop"]
        size = (round(clips.LOOK * crop[2] / crop[3]), clips.LOOK)
        frames = torch.from_numpy(video.read(f"{row['root']}/{row['exo_video']}", views.frame_numbers(row), size, crop))
        dark, blown = quality.exposure(frames)
        assert row["motion"] == float(quality.motion(frames).mean())
        assert row["blur"] == float(quality.sharpness(frames).median())
        assert row["exposure"] == float((dark + blown).max())


@pytest.mark.parametrize(
    ("setting", "why"),
    [("clips.min_motion=0.9", "motion"), ("clips.min_sharpness=90.0", "sharpness"), ("clips.max_bad_exposure=-1.0", "dark or blown")],
)
def test_bounds(take, setting, why):
    result = windows(take, setting)
    assert isinstance(result, Rejected)
    assert result.detail.startswith(why) or f"; {why}" in result.detail


def test_too_short_and_limits(take):
    result = windows(take, "clips.frames=49")
    assert isinstance(result, Rejected)
    assert result.reason == "too_short"
    rows = windows(take, "clips.max_per_take=1")
    assert sum(row["chosen"] for row in rows) == 1


def test_undecodable(take, tmp_path):
    shutil.copytree(take["root"], tmp_path / "copy")
    broken = tmp_path / "copy" / json.loads(take["exo"])["cam01"]["video"]
    broken.write_bytes(b"gone")
    result = windows({**take, "root": str(tmp_path / "copy")})
    assert isinstance(result, Rejected)
    assert result.reason == "video_undecodable"


def test_descriptions_of_the_window(take):
    rows = windows(take, "clips.hop=0.1")
    assert rows[0]["description"] == "C picks up a wrench."
    assert clips._described([{"text": "a", "timestamp": 0.5}, {"text": "b", "timestamp": 9}], 2, 3) == "a"
    assert clips._described([], 2, 3) == ""


def test_splits():
    recipe = Clips(test_fraction=0.1, unseen_fraction=0.2)
    assert clips.split_of("val", "t", 0, recipe) == clips.split_of("test", "t", 0, recipe) == "unseen"
    official = [clips.split_of("train", f"t{i}", 0, recipe) for i in range(2000)]
    assert set(official) == {"train", "test"}
    assert 0.07 < official.count("test") / 2000 < 0.13
    hashed = [clips.split_of("", f"t{i}", s, recipe) for i in range(500) for s in (0, 30)]
    assert 0.15 < hashed.count("unseen") / 1000 < 0.25
    assert all((a == "unseen") == (b == "unseen") for a, b in zip(hashed[::2], hashed[1::2], strict=True))  # a take is held out as a whole


class _Table:
    """A lake of one table."""

    def __init__(self, count):
        splits = np.array(["train", "test", "unseen"])[np.arange(count) % 3]
        self.rows = pa.table({"clip_id": [f"t.cam01.{i}" for i in range(count)], "split": splits})

    def read(self, table, columns, where):
        return self.rows


def test_quotas_are_stable_and_scale():
    recipe = Clips(train=3600, test=400, unseen=100)
    found = clips.selected(_Table(60_000), recipe)
    assert len(found) == len(set(found)) == 4100
    assert clips.selected(_Table(60_000), recipe) == found
    assert len(set(clips.selected(_Table(66_000), recipe)) & set(found)) > 3500  # more takes: mostly the same clips
    assert len(clips.selected(_Table(60_000), Clips(), ["test", "unseen"])) == 40_000


# -- the reading path ----------------------------------------------------------------------------------------------------


def test_views_have_the_sizes_and_frames_of_the_clip(take):
    row = windows(take)[1]
    exo, ego = views.read_exo(row), views.read_ego(row)
    assert exo.shape == (9, 64, 112, 3)
    assert ego.shape == (9, 64, 64, 3)
    path = f"{take['root']}/{row['ego_video']}"
    assert np.array_equal(ego, video.read(path, range(6, 31, 3)))


@pytest.mark.parametrize("undistort", ["false", "true"])
def test_pixels_and_camera_go_through_one_transform(take, undistort):
    """A point of the world lies, in the clip's picture, where the source video shows it."""
    row = windows(take, f"clips.undistort={undistort}")[0]
    camera, source = views.exo_camera(row), Camera.from_dict(json.loads(take["exo"])["cam01"]["camera"])
    point = torch.tensor([[0.4, 0.3, 2.0], [-0.8, 0.5, 2.5]], dtype=torch.float64)
    here, seen = camera.project(point)
    there, _ = source.project(point)
    assert seen.all()
    x, y = (torch.from_numpy(v) for v in views.source_pixels(row, camera))
    column, line = here[:, 0].round().long(), here[:, 1].round().long()
    scale = (x[0, 1] - x[0, 0]).abs().clamp_min(1) if undistort == "false" else 2.0
    assert ((torch.stack((x[line, column], y[line, column]), -1) - there).abs() <= 0.6 * scale).all()


def test_an_undistorted_view_is_what_the_lens_saw(take, tmp_path):
    root = shutil.copytree(take["root"], tmp_path / "copy")
    flat = np.full((FRAMES, EXO[1], EXO[0], 3), 90, np.uint8)
    flat[:, 30:42, 58:70] = 220
    (root / json.loads(take["exo"])["cam01"]["video"]).write_bytes(video.encode(flat, 30.0))
    row = windows({**take, "root": str(root)}, "clips.undistort=true", "clips.skip_covered=false")[0]
    assert views.exo_camera(row).model == "pinhole"
    frame = views.read_exo(row)[0]
    assert frame[32, 56].mean() > 200  # the middle stays in the middle
    assert frame[4, 8].mean() < 110


def test_quotas_are_no_part_of_a_clip():
    a, b = (clips.stage(Profile.load("local", [s])) for s in ("clips.train=3", "clips.test=9"))
    assert a.fingerprint(["x"]) == b.fingerprint(["x"])
    assert a.fingerprint(["x"]) != clips.stage(Profile.load("local", ["clips.hop=3.0"])).fingerprint(["x"])


def test_a_changed_video_file_changes_the_clip(take):
    """Later stages decode videos: what they make has to follow the files, though no number of the clip may change."""
    first, files = windows(take), json.loads(take["files"])
    for name in (first[0]["exo_video"], first[0]["ego_video"]):
        other = {**take, "files": json.dumps({**files, name: {**files[name], "sha256": "0" * 64}})}
        assert all(a["videos"] != b["videos"] for a, b in zip(first, windows(other), strict=True))
    unseen = {**take, "files": json.dumps({**files, json.loads(take["exo"])["cam02"]["video"]: {"sha256": "0" * 64}})}
    assert [row["videos"] for row in windows(unseen)] == [row["videos"] for row in first]
