"""H2O's layout: a sequence of a simulated data set, files by the layout's description, and what is wrong with them by name."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from egomill.kernels.cameras import Camera
from egomill.kernels.poses import inverse, transform
from egomill.scenes.take import simulate
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import unpack
from egomill.tasks.media import h2o, sidecar, views
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import clips, takes

PROFILE = Profile.load("local", ["clips.hop=0.2", "clips.frames=5", "clips.fps=30", "clips.min_overlap=0", "clips.min_motion=0"])
SEQUENCE = Path("subject1/k1/0")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Two short sequences."""
    root = tmp_path_factory.mktemp("h2o")
    simulate(root, 2, seed=3, seconds=0.5, layout="h2o")
    return root


@pytest.fixture
def copy(simulated, tmp_path):
    """The first one, at a place that every test knows."""
    shutil.copytree(next((simulated / "subject1").glob("*/0")), tmp_path / "data" / SEQUENCE)
    return tmp_path / "data"


def taken(root: Path, **more) -> list[dict | Rejected]:
    return [takes.stage(PROFILE).worker()(item.row) for item in discover([root], **more)]


def test_a_simulated_sequence_is_a_take(simulated):
    first, second = taken(simulated)
    assert isinstance(first, dict), first
    assert isinstance(second, dict), second
    assert (first["take_uid"][:13], first["layout"], first["split"]) == ("h2o_subject1_", "h2o", "train")
    assert second["take_name"].startswith("subject2_")
    assert (first["frames"], first["fps"], first["pose_coverage"]) == (15, 30.0, 1.0)
    exo = json.loads(first["exo"])
    assert list(exo) == ["cam0", "cam1", "cam2", "cam3"]
    assert {view["depth_kind"] for view in exo.values()} == {"z-mm"}
    assert simulate(simulated, 2, seed=3, seconds=0.5, layout="h2o")  # those that are there stay
    with pytest.raises(ValueError, match="another folder"):
        simulate(simulated, 2, seed=4, seconds=0.5, layout="h2o")


def test_pictures_depth_hands_and_poses_are_of_one_world(simulated):
    """Depth of an exo camera, brought into the head's picture, has the colours that are there; hands lie where depth has them."""
    take = taken(simulated)[0]
    assert isinstance(take, dict)
    rows = clips.stage(PROFILE).worker()({"takes": take})
    row = next(r for r in rows if r["chosen"])
    camera, ego = views.exo_camera(row), views.ego_camera(row)
    found = sidecar.read(row, camera)
    assert isinstance(found, sidecar.Sidecar)
    exo, own = views.read_exo(row), views.read_ego(row)
    T_world_exo, T_world_ego = (torch.from_numpy(unpack(row[name]).copy()).float() for name in ("T_world_exo", "T_world_ego"))
    rays, _ = camera.rays()
    depth = torch.from_numpy(found.depth[0])
    points = transform(T_world_exo, (rays * depth[..., None])[depth > 0])
    pixels, seen = ego.project(transform(inverse(T_world_ego[0]), points))
    colours = torch.from_numpy(exo[0])[depth > 0][seen].float()
    x, y = pixels[seen].round().long().clamp(0, ego.width - 1).unbind(-1)
    off = (torch.from_numpy(own[0])[y, x].float() - colours).abs().mean(dim=1)
    assert seen.sum() > 500
    assert off.median() < 25
    folder = next((simulated / "subject1").glob("*/0"))
    for cam in ("cam0", "cam4"):
        told = np.loadtxt(folder / cam / "hand_pose" / "000000.txt").reshape(2, 64)
        assert told[:, 0].tolist() == [1, 1]
        T = np.loadtxt(folder / cam / "cam_pose" / "000000.txt").reshape(4, 4)
        joints = told[:, 1:].reshape(-1, 3) @ T[:3, :3].T + T[:3, 3]
        if cam == "cam0":
            first = joints
    np.testing.assert_allclose(joints, first, atol=1e-5)  # one world from two cameras


def test_numbers_as_the_layout_describes_them(tmp_path):
    (tmp_path / "cam_pose").mkdir()
    (tmp_path / "cam_intrinsics.txt").write_text("636.66 636.25 635.28 366.87 1280 720")
    (tmp_path / "cam_pose" / "000000.txt").write_text("1 0 0 0.5 0 1 0 0 0 0 1 1.2 0 0 0 1")
    assert h2o.intrinsics(tmp_path / "cam_intrinsics.txt") == Camera("pinhole", (636.66, 636.25, 635.28, 366.87), 1280, 720)
    T_cam_world = np.array(h2o.extrinsics(tmp_path / "cam_pose")[0])
    np.testing.assert_allclose(-T_cam_world[:, :3].T @ T_cam_world[:, 3], (0.5, 0, 1.2))
    squashed = h2o.intrinsics(tmp_path / "cam_intrinsics.txt").rescale(512, 512)
    assert squashed.params == pytest.approx((254.66, 452.45, 253.81, 260.74), abs=0.01)
    assert [h2o.official(s, k) for s, k in [("subject1", "o2"), ("subject3", "k1"), ("subject3", "o1"), ("subject4", "h1")]] == [
        "train", "train", "val", "test",
    ]  # fmt: skip


def test_ego_only_downloads_are_joined_to_their_subject(copy):
    (copy / "subject1_ego" / "k1" / "0").mkdir(parents=True)
    (copy / SEQUENCE / "cam4").rename(copy / "subject1_ego" / "k1" / "0" / "cam4")
    (take,) = taken(copy)
    assert isinstance(take, dict), take
    assert take["ego_video"] == "subject1_ego/k1/0/cam4/rgb"
    assert take["take_uid"] == "h2o_subject1_k1_0"


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def drop(name: str):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def picture(name: str, pixels: np.ndarray):
    return lambda folder: cv2.imwrite(str(folder / name), pixels)


def each(name: str, change):
    def go(folder: Path) -> None:
        for path in sorted((folder / name).iterdir()):
            values = np.loadtxt(path).reshape(-1)
            path.write_text(" ".join(map(str, change(values, int(path.stem)))))

    return go


def scaled(values, _):
    return values * np.where(np.arange(16) % 4 == 3, [1000] * 16, 1) * (np.arange(16) < 12) + (np.arange(16) == 15)


def link(name: str):
    def go(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/etc/hostname")

    return go


def all_exo(fault):
    def go(folder: Path) -> None:
        for number in range(4):
            fault(folder / f"cam{number}") if callable(fault) else None

    return go


BROKEN = {  # of the head's camera, or of all exo cameras: the take is rejected
    "no head camera": (drop("cam4"), "no_ego_video"),
    "no head pictures": (drop("cam4/rgb"), "no_ego_video"),
    "no head poses": (drop("cam4/cam_pose"), "no_camera_pose"),
    "no head intrinsics": (drop("cam4/cam_intrinsics.txt"), "calibration_invalid"),
    "intrinsics of four": (write("cam4/cam_intrinsics.txt", "600 600 300 200"), "calibration_invalid"),
    "intrinsics in words": (write("cam4/cam_intrinsics.txt", "fx fy cx cy 480 270"), "calibration_invalid"),
    "intrinsics not finite": (write("cam4/cam_intrinsics.txt", "nan 240 240 135 480 270"), "calibration_invalid"),
    "intrinsics of other pictures": (write("cam4/cam_intrinsics.txt", "636 636 635 366 1280 720"), "calibration_invalid"),
    "a focal length in mm": (write("cam4/cam_intrinsics.txt", "3.5 3.5 240 135 480 270"), "calibration_invalid"),
    "a centre outside": (write("cam4/cam_intrinsics.txt", "240 240 840 135 480 270"), "calibration_invalid"),
    "half a pixel": (write("cam4/cam_intrinsics.txt", "240 240 240 135 480.5 270"), "calibration_invalid"),
    "endless numbers": (write("cam4/cam_intrinsics.txt", "1 " * 9000), "calibration_invalid"),
    "bytes for numbers": (lambda f: (f / "cam4/cam_intrinsics.txt").write_bytes(b"\xff\xfe" * 20), "calibration_invalid"),
    "a picture is missing": (drop("cam4/rgb/000003.png"), "video_timing"),
    "a picture is text": (write("cam4/rgb/000003.png", "no picture"), "video_undecodable"),
    "a picture is empty": (write("cam4/rgb/000000.png", ""), "video_undecodable"),
    "a picture of another size": (picture("cam4/rgb/000003.png", np.zeros((90, 160, 3), np.uint8)), "video_geometry"),
    "a picture cut short": (lambda f: _cut(f / "cam4/rgb/000003.png"), "video_undecodable"),
    "pictures that stand still": (lambda f: [shutil.copy(_pictures(f / "cam4")[0], p) for p in _pictures(f / "cam4")[1:]], "video_frozen"),
    "a pose of twelve": (write("cam4/cam_pose/000002.txt", "1 " * 12), "pose_gaps"),
    "a pose in words": (write("cam4/cam_pose/000002.txt", "x " * 16), "pose_gaps"),
    "a pose that is not finite": (write("cam4/cam_pose/000002.txt", "inf " * 16), "pose_gaps"),
    "a pose by columns": (each("cam4/cam_pose", lambda v, _: v.reshape(4, 4).T.flatten()), "pose_gaps"),
    "a pose that is no rotation": (each("cam4/cam_pose", lambda v, _: v * np.where(np.arange(16) % 4 == 0, 2, 1)), "rotation_invalid"),
    "a mirrored pose": (each("cam4/cam_pose", lambda v, _: v * np.where(np.arange(16) % 4 == 0, -1, 1)), "rotation_invalid"),
    "a head that leaps": (each("cam4/cam_pose", lambda v, n: v + (np.arange(16) == 3) * (3 if n > 2 else 0)), "pose_jumps"),
    "a pose too many": (write("cam4/cam_pose/000099.txt", "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"), "poses_disagree"),
    "two poses of a frame": (write("cam4/cam_pose/2.txt", "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"), "poses_disagree"),
    "poses in millimetres": (lambda f: [each(f"cam{n}/cam_pose", scaled)(f) for n in range(4)], "pose_units"),
    "a link for a picture": (link("cam4/rgb/000001.png"), "path_outside_root"),
    "a link for intrinsics": (link("cam4/cam_intrinsics.txt"), "path_outside_root"),
    "no exo camera": (lambda f: [drop(f"cam{n}")(f) for n in range(4)], "no_exo_video"),
}

OF_ONE = {  # of one exo camera: it is left out
    "no pictures": (drop("rgb"), "no_exo_video"),
    "no pose": (drop("cam_pose"), "no_camera_pose"),
    "a camera that moves": (each("cam_pose", lambda v, n: v + (np.arange(16) == 3) * 0.01 * n), "exo_camera_moves"),
    "no rotation": (each("cam_pose", lambda v, _: v * np.where(np.arange(16) % 4 == 1, 1.1, 1)), "rotation_invalid"),
    "too far away": (each("cam_pose", lambda v, _: v + (np.arange(16) == 7) * 1000), "pose_units"),
    "no intrinsics": (drop("cam_intrinsics.txt"), "calibration_invalid"),
    "frames are missing at the end": (lambda f: [p.unlink() for p in _pictures(f)[9:]], "frame_counts_disagree"),
    "depth of eight bits": (picture("depth/000001.png", np.zeros((270, 480), np.uint8)), "depth_sidecar_invalid"),
    "depth in colour": (picture("depth/000001.png", np.zeros((270, 480, 3), np.uint16)), "depth_sidecar_invalid"),
    "depth of another size": (picture("depth/000001.png", np.zeros((90, 160), np.uint16)), "depth_sidecar_invalid"),
    "depth for some frames": (drop("depth/000004.png"), "depth_sidecar_invalid"),
    "depth that is text": (write("depth/000002.png", "0.8"), "depth_sidecar_invalid"),
    "no depth picture at all": (lambda f: [p.unlink() for p in (f / "depth").iterdir()], "depth_sidecar_invalid"),
}


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / "rgb").iterdir())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_wrong_with_a_sequence_rejects_it_by_name(copy, fault):
    spoil, reason = BROKEN[fault]
    spoil(copy / SEQUENCE)
    (found,) = taken(copy)
    assert isinstance(found, Rejected), fault
    assert found.reason == reason, (fault, found)
    assert found.detail


@pytest.mark.parametrize("fault", OF_ONE)
def test_what_is_wrong_with_one_exo_camera_leaves_it_out(copy, fault):
    spoil, reason = OF_ONE[fault]
    spoil(copy / SEQUENCE / "cam2")
    (found,) = taken(copy)
    assert isinstance(found, dict), (fault, found)
    assert {cam: why for cam, (why, _) in json.loads(found["left_out"]).items()} == {"cam2": reason}
    assert list(json.loads(found["exo"])) == ["cam0", "cam1", "cam3"]


def test_a_picture_changed_in_place_is_another_take(copy):
    (before,) = discover([copy])
    path = copy / SEQUENCE / "cam1" / "rgb" / "000002.png"
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    (after,) = discover([copy])
    assert before.digest != after.digest
    assert not any("hand_pose" in file for file in after.row["files"])


def test_depth_cut_short_is_told_when_it_is_read(copy):
    (take,) = taken(copy)
    row = clips.stage(PROFILE).worker()({"takes": take})[0]
    path = copy / row["depth_path"] / "000002.png"
    path.write_bytes(path.read_bytes()[:200])
    found = sidecar.read(row, views.exo_camera(row))
    assert isinstance(found, Rejected)
    assert (found.reason, "000002" in found.detail) == ("video_undecodable", True)


@pytest.mark.parametrize(
    ("by", "name", "first", "last", "split"),
    [
        ("actions", "subject1_h1_0", 0, 29, "train"),
        ("actions", "subject1_h1_0", 210, 239, "train"),  # the last of 8 of 10 clips
        ("actions", "subject1_h1_0", 230, 245, ""),  # lies in both parts
        ("actions", "subject1_h1_0", 240, 269, "unseen"),
        ("actions", "subject2_h1_0", 240, 269, ""),
        ("objects", "subject3_k1_5", 0, 29, "train"),
        ("objects", "subject3_k1_6", 0, 29, ""),
        ("objects", "subject3_k1_7", 0, 29, "unseen"),
        ("scenes", "subject1_o2_0", 0, 29, "unseen"),
        ("scenes", "subject1_h2_0", 0, 29, "train"),
        ("subjects", "subject1_h1_0", 0, 29, "train"),
        ("subjects", "subject1_h1_0", 240, 269, ""),
        ("subjects", "subject2_h1_0", 0, 59, "unseen"),
        ("subjects", "subject2_h1_0", 60, 89, ""),
        ("subjects", "subject3_h1_0", 0, 29, ""),
        ("objects", "a take of another data set", 0, 29, ""),
    ],
)
def test_exo2egos_splits(by, name, first, last, split):
    assert h2o.unseen(by, name, first, last, 300) == split


def test_clips_of_neither_part_are_candidates_that_say_so(simulated):
    _, second = taken(simulated)
    assert isinstance(second, dict)
    profile = PROFILE.model_copy(update={"clips": PROFILE.clips.model_copy(update={"splits": "actions"})})
    rows = clips.stage(profile).worker()({"takes": second})
    assert isinstance(rows, Rejected)
    assert rows.reason == "no_window"
    assert "no part of the split by actions" in rows.detail
    assert clips.stage(profile).recipe != clips.stage(PROFILE).recipe
