"""A sound take becomes cameras, poses and digests; a broken one becomes a rejection that names its fault."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.kernels.cameras import Camera
from egomill.kernels.exo_lens import exo_lens
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import MADE, TABLES
from egomill.schemas.tensors import unpack
from egomill.tasks.media import video
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import takes
from tests.tasks.tiny_release import DISTORTION, EXO, FPS, FRAMES, K_EXO, change, exo_pose, head, pictures, put, write_egox, write_release

NAMES = [f"site_bike_{i:02d}_1" for i in range(4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_release(root, takes=1)
    return root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "release")


def worker(*settings):
    return takes.stage(Profile.load("local", list(settings))).worker()


def taken(root, *settings):
    (item,) = discover([root])
    return worker(*settings)(item.row)


def test_a_sound_take(root):
    take = taken(root)
    assert isinstance(take, dict)
    assert set(take) == {f.name for f in TABLES["takes"]} - {*MADE} | {"content"}
    assert (take["frames"], take["fps"], take["split"], take["lens_source"]) == (FRAMES, FPS, "train", "calibration file")
    T = unpack(take["T_world_ego"])
    assert T.shape == (FRAMES, 4, 4)
    assert np.isnan(T[-2:]).all()  # the release has no pose for the last two frames
    assert np.allclose(T[:-2], head()[:-2], atol=1e-9)
    assert take["pose_coverage"] == pytest.approx((FRAMES - 2) / FRAMES)
    exo = json.loads(take["exo"])
    assert list(exo) == ["cam01", "cam02"]
    assert np.allclose(exo["cam01"]["T_world_exo"], exo_pose(away=False))
    expected = exo_lens(K_EXO, DISTORTION).rescale(*EXO)
    assert Camera.from_dict(exo["cam01"]["camera"]) == expected
    ego = Camera.from_dict(json.loads(take["ego_camera"]))
    assert (ego.model, ego.width, ego.height, ego.turns) == ("fisheye624", 64, 64, 1)
    assert len(json.loads(take["files"])) == 5
    assert all(len(file["sha256"]) == 64 for file in json.loads(take["files"]).values())


def pose_file(root: Path) -> Path:
    return next((root / "annotations" / "ego_pose").glob("*/camera_pose/*.json"))


def videos(root: Path) -> Path:
    return next((root / "takes").glob("*")) / "frame_aligned_videos" / "downscaled" / "448"


def break_annotation(edit):
    return lambda root: change(pose_file(root), edit)


def break_poses(edit):
    return break_annotation(lambda a: edit(a["aria01"]["camera_extrinsics"]))


def break_entry(edit):
    return break_annotation(lambda a: edit(a["cam01"]))


def break_example(edit):
    return lambda root: change(root / "meta.json", lambda meta: edit(meta["test_datasets"][0]))


def nulls(poses):
    poses.update({str(i): None for i in range(10, 20)})


def missing(poses):
    for i in range(10, 20):
        del poses[str(i)]


def not_finite(poses):
    for i in range(10, 20):
        poses[str(i)][0][3] = math.nan


def reflect(poses):
    poses["5"][0] = [-v for v in poses["5"][0]]


def leap(poses):
    for i in range(20, FRAMES - 2):
        poses[str(i)][0][3] += 3.0


def shorter(root):
    (videos(root) / "cam02.mp4").write_bytes(video.encode(pictures(*EXO, 0, frames=30), FPS))


def faster(root):
    (videos(root) / "cam02.mp4").write_bytes(video.encode(pictures(*EXO, 0), 25.0))


def garbage(root):
    (videos(root) / "cam02.mp4").write_bytes(os.urandom(4000))


def cut(root):
    path = videos(root) / "aria01_214-1.mp4"
    path.write_bytes(video.for_browser(video.decode(path.read_bytes()), FPS)[:-3000])


def sidecar(**arrays):
    def write(root):
        folder = root / "sidecar" / NAMES[0]
        folder.mkdir(parents=True)
        np.savez(folder / "cam01.npz", **arrays)

    return write


def pickled(root):
    folder = root / "sidecar" / NAMES[0]
    folder.mkdir(parents=True)
    np.savez(folder / "cam01.npz", static_depth=np.array([{"a": 1}], dtype=object))


BROKEN = {
    "no exo video": ("no_exo_video", lambda r: [p.unlink() for p in videos(r).glob("cam*")], ""),
    "no ego video": ("no_ego_video", lambda r: (videos(r) / "aria01_214-1.mp4").unlink(), ""),
    "no annotation": ("no_camera_pose", lambda r: pose_file(r).unlink(), "uid-0"),
    "annotation cut short": ("no_camera_pose", lambda r: pose_file(r).write_text('{"metadata": {'), ""),
    "annotation of another take": (
        "no_camera_pose",
        lambda r: change(pose_file(r), lambda a: a["metadata"].update(take_name="x")),
        "of take x",
    ),
    "annotation without the head": ("no_camera_pose", lambda r: change(pose_file(r), lambda a: a.pop("aria01")), "aria01"),
    "poses by name": ("no_camera_pose", break_poses(lambda p: p.update(first=p.pop("0"))), "numbers"),
    "nulls": ("pose_gaps", break_poses(nulls), "28 of 40"),
    "gap": ("pose_gaps", break_poses(missing), "28 of 40"),
    "not finite": ("pose_gaps", break_poses(not_finite), "28 of 40"),
    "wrong shape": ("pose_gaps", break_poses(lambda p: p.update({"3": [[1, 2], [3, 4]]})), "frame 3"),
    "half the poses": ("poses_disagree", break_poses(lambda p: [p.pop(str(i)) for i in range(20, FRAMES - 2)]), "frame 19"),
    "more poses than frames": ("poses_disagree", break_poses(lambda p: p.update({"500": p["0"]})), "frame 500"),
    "reflection": ("rotation_invalid", break_poses(reflect), "frame 5"),
    "leap": ("pose_jumps", break_poses(leap), "19 and 20"),
    "exo rotation scaled": ("rotation_invalid", break_entry(lambda c: c["camera_extrinsics"][0].__setitem__(0, 2.0)), "cam01"),
    "no distortion": ("calibration_invalid", break_entry(lambda c: c.pop("distortion_coeffs")), "cam01"),
    "lens turns back": ("calibration_invalid", break_entry(lambda c: c.update(distortion_coeffs=[-9.0, 0, 0, 0])), "turns back"),
    "impossible focal length": ("calibration_invalid", break_entry(lambda c: c["camera_intrinsics"][0].__setitem__(0, -5.0)), "cam01"),
    "not numbers": ("calibration_invalid", break_entry(lambda c: c.update(camera_intrinsics="wide")), "cam01"),
    "lens file": ("calibration_invalid", lambda r: put(next(r.rglob("online_calibration.jsonl")), {"CameraCalibrations": []}), "jsonl"),
    "another length": ("frame_counts_disagree", shorter, '"cam02.mp4": 30'),
    "another rate": ("frame_counts_disagree", faster, "25.0"),
    "garbage": ("video_undecodable", garbage, "cam02.mp4"),
    "cut short": ("video_undecodable", cut, "aria01_214-1.mp4"),
    "depth of another shape": ("depth_sidecar_invalid", sidecar(static_depth=np.ones((10, 10), np.float32)), "cam01.npz"),
    "too little depth": (
        "depth_sidecar_invalid",
        sidecar(static_depth=np.ones((72, 128), np.float32), dynamic_depth=np.ones((9, 72, 128), np.float16)),
        "cam01.npz",
    ),
    "depth in integers": ("depth_sidecar_invalid", sidecar(static_depth=np.ones((72, 128), np.int64)), "int64"),
    "depth that would be unpickled": ("depth_sidecar_invalid", pickled, "Python objects"),
    "no depth in it": ("depth_sidecar_invalid", sidecar(other=np.ones(3)), "static_depth"),
}


OF_ONE_CAMERA = {  # the take goes without it, as there is another
    *("exo rotation scaled", "no distortion", "lens turns back", "impossible focal length", "not numbers", "another length"),
    *("another rate", "garbage", "depth of another shape", "too little depth", "depth in integers", "depth that would be unpickled"),
    "no depth in it",
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_fault_has_a_name(root, name):
    reason, damage, told = BROKEN[name]
    damage(root)
    result = taken(root)
    if name in OF_ONE_CAMERA:
        assert isinstance(result, dict), result
        (((_, (found, detail))),) = json.loads(result["left_out"]).items()
        assert len(json.loads(result["exo"])) == 1
    else:
        assert isinstance(result, Rejected)
        found, detail = result.reason, result.detail
    assert found == reason, result
    assert told in detail


def test_with_no_camera_left_the_take_is_rejected_for_all_their_reasons(root):
    garbage(root)
    break_entry(lambda c: c.pop("distortion_coeffs"))(root)
    found = taken(root)
    assert isinstance(found, Rejected)
    assert found.reason == "calibration_invalid"
    assert "cam01: cam01 distortion" in found.detail
    assert "cam02: video_undecodable: cam02.mp4" in found.detail


def test_a_camera_that_nobody_localised_is_told(root):
    shutil.copy(videos(root) / "cam01.mp4", videos(root) / "cam05.mp4")
    assert json.loads(taken(root)["left_out"])["cam05"][0] == "no_camera_pose"


def test_the_size_with_most_cameras_is_taken_and_smaller_ones_are_told(root):
    smaller = videos(root).parent / "360"
    smaller.mkdir()
    for name in ("cam01.mp4", "aria01_214-1.mp4"):
        shutil.copy(videos(root) / name, smaller)
    take = taken(root)
    assert (Path(take["ego_video"]).parent.name, list(json.loads(take["exo"]))) == ("448", ["cam01", "cam02"])
    ((folder, (_, why)),) = json.loads(take["left_out"]).items()
    assert (Path(folder).name, why.endswith("448 is taken: here lacks cam02")) == ("360", True)
    shutil.copy(videos(root) / "cam02.mp4", smaller)  # now it is whole
    take = taken(root)
    assert (Path(take["ego_video"]).parent.name, take["left_out"]) == ("360", "{}")
    (smaller / "cam02.mp4").write_bytes(b"broken off")  # what is spoilt at one size is taken from another
    take = taken(root)
    assert (Path(take["ego_video"]).parent.name, list(json.loads(take["exo"]))) == ("448", ["cam01", "cam02"])
    assert "not all of it can be used" in next(iter(json.loads(take["left_out"]).values()))[1]


def test_what_is_tolerated(root):
    """Short gaps are interpolated, two frames more or less do not matter, cameras without video or pose are left out."""
    change(pose_file(root), lambda a: [a["aria01"]["camera_extrinsics"].pop(str(i)) for i in (7, 8, 9)])
    (videos(root) / "cam02.mp4").unlink()
    shutil.copy(videos(root) / "cam01.mp4", videos(root) / "cam05.mp4")
    (videos(root) / "cam01.mp4").write_bytes(video.encode(pictures(*EXO, 0, frames=FRAMES + 2), FPS))
    take = taken(root)
    assert isinstance(take, dict)
    assert take["frames"] == FRAMES
    assert list(json.loads(take["exo"])) == ["cam01"]
    assert np.allclose(unpack(take["T_world_ego"])[8], head()[8], atol=1e-2)
    next(root.rglob("online_calibration.jsonl")).unlink()
    assert taken(root)["lens_source"] == "typical lens"


def test_settings_decide(root):
    break_poses(missing)(root)
    assert isinstance(taken(root, "ingest.max_pose_gap=10"), dict)
    assert isinstance(taken(root, "ingest.min_pose_coverage=0.5"), dict)


def test_content_follows_what_later_stages_use(root):
    before = taken(root)
    for file in root.rglob("*.mp4"):
        os.utime(file, ns=(5, 5))
    assert taken(root)["content"] == before["content"]
    break_poses(lambda p: p["3"][0].__setitem__(3, p["3"][0][3] + 1e-3))(root)
    moved = taken(root)
    assert moved["content"] != before["content"]
    change(root / "takes.json", lambda takes: takes[0].update(task_name="Another"))
    assert taken(root)["content"] != moved["content"]


def test_egox_layout(tmp_path):
    write_egox(tmp_path)
    take = taken(tmp_path)
    assert isinstance(take, dict)
    assert (take["frames"], take["fps"], take["layout"], take["lens_source"]) == (FRAMES, 20.0, "egox", "typical lens")
    assert take["pose_coverage"] == 1.0
    (view,) = json.loads(take["exo"]).values()
    camera = Camera.from_dict(view["camera"])
    whole = exo_lens(K_EXO, DISTORTION).rescale(128, 72)
    assert (camera.width, camera.height) == (124, 72)
    point = torch.tensor([0.3, 0.2, 2.0], dtype=torch.float64)  # 2 px further left: the picture is the middle of the wider one
    assert torch.allclose(camera.project(point)[0] + torch.tensor([2.0, 0.0], dtype=torch.float64), whole.project(point)[0])
    assert (view["depth"], view["depth_kind"]) == ("depth_maps/site_cooking_3_100_140", "pinhole-z")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda r: next(r.rglob("ego_GT.mp4")).unlink(), "no_ego_video"),
        (lambda r: next(r.rglob("exo.mp4")).unlink(), "no_exo_video"),
        (lambda r: next(r.rglob("00007.npy")).unlink(), "depth_sidecar_invalid"),
        (lambda r: next(r.rglob("00007.npy")).write_bytes(b"\x93NUMPY\x01\x00"), "depth_sidecar_invalid"),
        (break_example(lambda entry: entry.pop("ego_extrinsics")), "no_camera_pose"),
        (break_example(lambda entry: entry.pop("camera_intrinsics")), "calibration_invalid"),
        (
            lambda r: change(r / "meta.json", lambda m: m["test_datasets"][0]["ego_extrinsics"].__delitem__(slice(20, None))),
            "poses_disagree",
        ),
    ],
)
def test_egox_faults(tmp_path, damage, reason):
    write_egox(tmp_path)
    damage(tmp_path)
    result = taken(tmp_path)
    assert isinstance(result, Rejected)
    assert result.reason == reason, result


def test_ten_takes_six_of_them_broken(tmp_path):
    names = write_release(tmp_path, takes=10)
    ways = ("no exo video", "nulls", "reflection", "leap", "cut short", "lens file")
    for name, way in zip(names, ways, strict=False):
        alone = tmp_path.parent / f"alone-{name}"  # the damage functions know one take
        (alone / "takes").mkdir(parents=True)
        shutil.move(tmp_path / "takes" / name, alone / "takes" / name)
        pose = next(tmp_path.glob(f"annotations/ego_pose/*/camera_pose/uid-{names.index(name)}.json"))
        there = alone / pose.relative_to(tmp_path)
        there.parent.mkdir(parents=True)
        shutil.move(pose, there)
        BROKEN[way][1](alone)
        shutil.move(alone / "takes" / name, tmp_path / "takes" / name)
        shutil.move(there, pose)
    results = [worker()(item.row) for item in discover([tmp_path])]
    assert [r.reason for r in results if isinstance(r, Rejected)] == [BROKEN[way][0] for way in ways]
    assert sum(isinstance(r, dict) for r in results) == 4
