"""A tiny data set in the Ego-Exo4D layout, and one in the EgoX layout, written in a second: small videos, exact annotations.

The head stands at the origin, sways, and looks along +z. cam01 stands 2.5 m behind it and looks the same way; cam02 looks away.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from egomill.kernels.cameras import ARIA_RGB_TYPICAL
from egomill.tasks.media import video

FRAMES, FPS = 40, 30.0
EXO, EGO = (128, 72), 64  # px
K_EXO = [[1248.0, 0, 1920.0], [0, 1248.0, 1080.0], [0, 0, 1]]
DISTORTION = [0.036902, 0.057131, -0.057154, 0.018458]
AWAY = np.diag([-1.0, 1.0, -1.0])


def pictures(width: int, height: int, seed: int, frames: int = FRAMES, covered: int = 0) -> np.ndarray:
    """A textured wall with a square that moves; something covers most of the first `covered` frames."""
    rng = np.random.default_rng(seed)
    wall = np.kron(rng.integers(40, 200, (height // 4, width // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    out = np.repeat(wall[None], frames, axis=0)
    for i in range(frames):
        x = 4 + (2 * i) % (width - 20)
        out[i, height // 2 : height // 2 + 12, x : x + 12] = (230, 60, 40)
    out[:covered, 4:, : width * 3 // 4] = 250
    return out


def extrinsics(T_world_cam: np.ndarray) -> list:
    """World to camera, 3x4, as the release writes it."""
    return np.linalg.inv(T_world_cam)[:3].tolist()


def head(frames: int = FRAMES) -> list[np.ndarray]:
    poses = []
    for i in range(frames):
        T, a = np.eye(4), 0.1 * np.sin(i / 5)
        T[0, 0] = T[2, 2] = np.cos(a)
        T[0, 2], T[2, 0] = np.sin(a), -np.sin(a)
        T[:3, 3] = 0.01 * i, 0, 0
        poses.append(T)
    return poses


def exo_pose(away: bool) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = 0.2, -0.5, -2.5
    T[:3, :3] = AWAY if away else np.eye(3)
    return T


def write_take(
    root: Path, name: str, uid: str, split: str = "train", cams=("cam01", "cam02"), aria: str = "aria01", seed: int = 0, covered: int = 0
) -> dict:
    """One take; returns its record for takes.json."""
    videos = root / "takes" / name / "frame_aligned_videos" / "downscaled" / "448"
    videos.mkdir(parents=True)
    record: dict = {"metadata": {"take_name": name, "take_uid": uid}}
    for i, cam in enumerate(cams):
        (videos / f"{cam}.mp4").write_bytes(video.encode(pictures(*EXO, seed + i, covered=covered), FPS))
        record[cam] = {"camera_intrinsics": K_EXO, "camera_extrinsics": extrinsics(exo_pose(away=i > 0)), "distortion_coeffs": DISTORTION}
    (videos / f"{aria}_214-1.mp4").write_bytes(video.encode(pictures(EGO, EGO, seed + 9), FPS))
    (videos / f"{aria}_1201-1.mp4").write_bytes(b"a stream that nobody reads")
    poses = {str(i): extrinsics(T) for i, T in enumerate(head()[:-2])}
    record[aria] = {"camera_intrinsics": [[150, 0, 255.5], [0, 150, 255.5], [0, 0, 1]], "camera_extrinsics": poses}
    put(root / "annotations" / "ego_pose" / split / "camera_pose" / f"{uid}.json", record)
    f, _, *rest = ARIA_RGB_TYPICAL.params
    lens = {"CameraCalibrations": [{"Label": "camera-rgb", "Projection": {"Name": "FisheyeRadTanThinPrism", "Params": [f, *rest]}}]}
    put(root / "takes" / name / "trajectory" / "online_calibration.jsonl", lens)
    return {"take_uid": uid, "take_name": name, "root_dir": f"takes/{name}", "task_name": "Fixing a bike"}


def write_release(root: Path, takes: int = 1) -> list[str]:
    """`takes` takes with uids uid-0, uid-1, ..., listed in every index. Returns the take names."""
    records = [write_take(root, f"site_bike_{i:02d}_1", f"uid-{i}", "train" if i % 3 < 2 else "test", seed=10 * i) for i in range(takes)]
    put(root / "takes.json", records)
    splits = {f"uid-{i}": "train" if i % 3 < 2 else "test" for i in range(takes)}
    put(root / "annotations" / "splits.json", {"take_uid_to_split": splits})
    told = [
        {"text": "C picks up a wrench.", "timestamp": 0.2, "subject": "C"},
        {"text": "C turns a bolt.", "timestamp": 1.1, "subject": "C"},
    ]
    passes = [{"rejected": True, "descriptions": told * 3}, {"rejected": False, "descriptions": told}]
    put(root / "annotations" / "atomic_descriptions_train.json", {"annotations": {"uid-0": passes}})
    return [record["take_name"] for record in records]


def write_egox(root: Path, name: str = "site_cooking_3_100_140") -> None:
    """One EgoX example: 42 stored frames of which 40 count, depth beside."""
    videos, depth = root / "videos" / name, root / "depth_maps" / name
    videos.mkdir(parents=True)
    depth.mkdir(parents=True)
    (videos / "exo.mp4").write_bytes(video.encode(pictures(124, 72, 1, FRAMES + 2), 20.0))
    (videos / "ego_GT.mp4").write_bytes(video.encode(pictures(EGO, EGO, 2, FRAMES + 2), 20.0))
    for i in range(FRAMES):
        np.save(depth / f"{i:05d}.npy", np.full((72, 128), 2.0, np.float32))
    entry = {
        "exo_path": f"./videos/{name}/exo.mp4",
        "ego_gt_path": f"./videos/{name}/ego_GT.mp4",
        "prompt": "[Exo view] **Scene Overview:** A kitchen. [Ego view] **Scene Overview:** A secret.",
        "camera_intrinsics": K_EXO,
        "camera_extrinsics": extrinsics(exo_pose(away=False)),
        "ego_intrinsics": [[150, 0, 255.5], [0, 150, 255.5], [0, 0, 1]],
        "ego_extrinsics": [extrinsics(T) for T in head()],
    }
    put(root / "meta.json", {"test_datasets": [entry]})


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change(path: Path, edit) -> None:
    """Apply `edit` to the value of a JSON file, in place."""
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
