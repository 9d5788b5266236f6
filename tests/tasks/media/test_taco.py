"""TACO's layout, on files written by its description, and what is wrong with them by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from egomill.kernels.cameras import Camera
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import unpack
from egomill.tasks.media import video
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import clips, takes
from tests.tasks.tiny_release import pictures

PROFILE = Profile.load("local", ["clips.hop=0.2", "clips.frames=5", "clips.fps=30", "clips.min_overlap=0", "clips.min_motion=0"])
PLACE, FRAMES = "(stir, spoon, bowl)/20230927_017", 12
SERIALS = "22070938", "22139905", "22139907"
EXO, MARKERS_GONE, EGO = (
    f"{kind}/{PLACE}" for kind in ("Allocentric_RGB_Videos", "Marker_Removed_Allocentric_RGB_Videos", "Egocentric_RGB_Videos")
)
OF_EXO, OF_EGO = (f"{kind}_Camera_Parameters/{PLACE}" for kind in ("Allocentric", "Egocentric"))
LENS, POSES, CALIBRATION = f"{OF_EGO}/egocentric_intrinsic.txt", f"{OF_EGO}/egocentric_frame_extrinsic.npy", f"{OF_EXO}/calibration.json"


def path_of(frames: int = FRAMES) -> np.ndarray:
    """World to camera: a head at (0, 0, -0.1 i / N) that looks along +z."""
    found = np.repeat(np.eye(4)[None], frames, axis=0)
    found[:, 2, 3] = 0.1 * np.arange(frames) / frames
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("taco")
    for folder in (EXO, EGO, OF_EXO, OF_EGO):
        (root / folder).mkdir(parents=True)
    told = {}
    for number, serial in enumerate(SERIALS):
        (root / EXO / f"{serial}.mp4").write_bytes(video.encode(pictures(128, 96, number, FRAMES), 30))
        R, K = np.eye(3), [[2000, 0, 2048], [0, 2000, 1536], [0, 0, 1]]
        told[serial] = {
            "imgSize": [4096, 3072],
            "K": K if number else np.array(K).flatten().tolist(),
            "R": R.tolist(),
            "T": [0.1 * number, 0, 1],
        }
    (root / EGO / "color.mp4").write_bytes(video.encode(pictures(128, 72, 9, FRAMES), 30))
    (root / CALIBRATION).write_text(json.dumps(told))
    (root / LENS).write_text("1000 0 960\n0 1000 540\n0 0 1\n")
    np.save(root / POSES, path_of())
    return root


@pytest.fixture
def copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "data"))


def taken(root: Path) -> list[dict | Rejected]:
    return [takes.stage(PROFILE).worker()(item.row) for item in discover([root])]


def test_a_sequence_is_a_take(written):
    (take,) = taken(written)
    assert isinstance(take, dict), take
    assert (take["take_uid"], take["layout"], take["task"]) == ("taco_stir-spoon-bowl_20230927_017", "taco", "stir, spoon, bowl")
    assert (take["frames"], take["fps"], take["pose_coverage"]) == (FRAMES, 30.0, 1.0)
    exo = json.loads(take["exo"])
    assert list(exo) == list(SERIALS)
    camera = Camera.from_dict(exo[SERIALS[0]]["camera"])
    assert (camera.width, camera.height, camera.params[0]) == (128, 96, 2000 / 32)
    np.testing.assert_allclose(np.array(exo[SERIALS[1]]["T_world_exo"])[:3, 3], (-0.1, 0, -1))
    assert Camera.from_dict(json.loads(take["ego_camera"])).params[:2] == pytest.approx((1000 / 15, 1000 / 15))
    np.testing.assert_allclose(unpack(take["T_world_ego"])[:, 2, 3], -0.1 * np.arange(FRAMES) / FRAMES)
    rows = clips.stage(PROFILE).worker()({"takes": take})
    assert isinstance(rows, list)


def test_pictures_without_markers_are_taken_where_they_are_there(copy):
    shutil.copytree(copy / EXO, copy / MARKERS_GONE)
    (take,) = taken(copy)
    assert isinstance(take, dict), take
    assert all(view["video"].startswith("Marker_Removed") for view in json.loads(take["exo"]).values())


def drop(name: str):
    return lambda root: (root / name).unlink()


def write(name: str, text: str):
    return lambda root: (root / name).write_text(text)


def poses(change):
    return lambda root: np.save(root / POSES, change(path_of()))


def calibration(change, serials=SERIALS):
    def go(root: Path) -> None:
        told = json.loads((root / CALIBRATION).read_text())
        for serial in serials:
            change(told, serial)
        (root / CALIBRATION).write_text(json.dumps(told))

    return go


def link(name: str):
    def go(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to("/etc/hostname")

    return go


def film(name: str, *pixels, **more):
    return lambda root: (root / name).write_bytes(video.encode(pictures(*pixels), 30, **more))


def pickled(root: Path) -> None:
    np.save(root / POSES, np.array([{"no": "array"}], dtype=object), allow_pickle=True)


def gone(value, row, column):
    value = value.copy()
    value[row, column] = np.nan
    return value


BROKEN = {
    "no head video": (drop(f"{EGO}/color.mp4"), "no_ego_video"),
    "no fixed camera's video": (lambda root: [p.unlink() for p in (root / EXO).iterdir()], "no_exo_video"),
    "no head lens": (drop(LENS), "calibration_invalid"),
    "a head lens of four": (write(LENS, "1000 1000 960 540"), "calibration_invalid"),
    "a head lens in words": (write(LENS, "f " * 9), "calibration_invalid"),
    "a head lens that is no pinhole": (write(LENS, "1000 0 960 0 1000 540 0 0 2"), "calibration_invalid"),
    "a focal length of nothing": (write(LENS, "1 0 960 0 1 540 0 0 1"), "calibration_invalid"),
    "a head video of another shape": (film(f"{EGO}/color.mp4", 96, 96, 9, FRAMES), "calibration_invalid"),
    "no path": (drop(POSES), "no_camera_pose"),
    "a path of three by four": (poses(lambda T: T[:, :3]), "no_camera_pose"),
    "a path of whole numbers": (poses(lambda T: T.astype(int)), "no_camera_pose"),
    "a pickle for a path": (pickled, "no_camera_pose"),
    "text for a path": (write(POSES, "1 0 0 0"), "no_camera_pose"),
    "a frame more than poses": (film(f"{EGO}/color.mp4", 128, 72, 9, FRAMES + 1), "poses_disagree"),
    "a pose more than frames": (poses(lambda T: np.concatenate([T, T[-1:]])), "poses_disagree"),
    "poses by columns": (poses(lambda T: T.transpose(0, 2, 1)), "pose_gaps"),
    "poses that are not known": (poses(lambda T: gone(T, slice(2, 9), 0)), "pose_gaps"),
    "no rotation": (poses(lambda T: T * np.array([2, 1, 1, 1])[None, None]), "rotation_invalid"),
    "a mirrored head": (poses(lambda T: T * np.array([-1, 1, 1, 1])[None, None]), "rotation_invalid"),
    "a head that leaps": (poses(lambda T: T + (np.arange(FRAMES) > 5)[:, None, None] * np.eye(4)[[2]].T @ np.eye(4)[[3]]), "pose_jumps"),
    "no calibration": (drop(CALIBRATION), "calibration_invalid"),
    "a calibration that is no JSON": (write(CALIBRATION, "{"), "calibration_invalid"),
    "a calibration that is a list": (write(CALIBRATION, "[]"), "no_camera_pose"),
    "millimetres": (calibration(lambda told, s: told[s].update(T=[1e6, 0, 1e6])), "pose_units"),
    "a link for a video": (link(f"{EGO}/color.mp4"), "path_outside_root"),
    "a link for poses": (link(POSES), "path_outside_root"),
    "a link for a fixed camera's video": (link(f"{EXO}/{SERIALS[0]}.mp4"), "path_outside_root"),
    "a head video cut short": (lambda root: _cut(root / EGO / "color.mp4"), "video_undecodable"),
}
ONE = SERIALS[1:2]
OF_ONE = {
    "not in the calibration": (calibration(lambda told, s: told.pop(s), ONE), "no_camera_pose"),
    "no size": (calibration(lambda told, s: told[s].pop("imgSize"), ONE), "calibration_invalid"),
    "no matrix": (calibration(lambda told, s: told[s].pop("K"), ONE), "calibration_invalid"),
    "a matrix of eight": (calibration(lambda told, s: told[s].update(K=[1] * 8), ONE), "calibration_invalid"),
    "a skewed matrix": (
        calibration(lambda told, s: told[s].update(K=[[2000, 40, 2048], [0, 2000, 1536], [0, 0, 1]]), ONE),
        "calibration_invalid",
    ),
    "a place in words": (calibration(lambda told, s: told[s].update(T=["a", "b", "c"]), ONE), "calibration_invalid"),
    "a place of two": (calibration(lambda told, s: told[s].update(T=[0, 1]), ONE), "calibration_invalid"),
    "no rotation": (calibration(lambda told, s: told[s].update(R=[[2, 0, 0], [0, 1, 0], [0, 0, 1]]), ONE), "rotation_invalid"),
    "mirrored": (calibration(lambda told, s: told[s].update(R=[[-1, 0, 0], [0, 1, 0], [0, 0, 1]]), ONE), "rotation_invalid"),
    "far away": (calibration(lambda told, s: told[s].update(T=[0, 0, 5000]), ONE), "pose_units"),
    "another shape": (film(f"{EXO}/{ONE[0]}.mp4", 128, 72, 1, FRAMES), "calibration_invalid"),
    "shorter": (film(f"{EXO}/{ONE[0]}.mp4", 128, 96, 1, FRAMES - 5), "frame_counts_disagree"),
    "no video": (write(f"{EXO}/{ONE[0]}.mp4", "no video"), "video_undecodable"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_wrong_with_a_sequence_rejects_it_by_name(copy, fault):
    spoil, reason = BROKEN[fault]
    spoil(copy)
    (found,) = taken(copy)
    assert isinstance(found, Rejected), fault
    assert found.reason == reason, (fault, found)
    assert found.detail


@pytest.mark.parametrize("fault", OF_ONE)
def test_what_is_wrong_with_one_fixed_camera_leaves_it_out(copy, fault):
    spoil, reason = OF_ONE[fault]
    spoil(copy)
    (found,) = taken(copy)
    assert isinstance(found, dict), (fault, found)
    assert {cam: why for cam, (why, _) in json.loads(found["left_out"]).items()} == {ONE[0]: reason}
