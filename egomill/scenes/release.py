"""The words of the Ego-Exo4D release: its JSON records, made from scenes.

Only the fields that readers of the release use are filled; what a simulation cannot know (sites, participants, consent) is left out.
"""

import json
import os
from pathlib import Path

import numpy as np

from egomill.kernels.cameras import Camera
from egomill.kernels.exo_lens import undistorted_focal
from egomill.scenes.captions import descriptions
from egomill.scenes.world import Scene

EGO, RGB_STREAM, FOLDER = "aria01", "214-1", "frame_aligned_videos/downscaled/448"
SPLITS = ("train", "val", "test")
TRAILING = 2  # the release has two fewer head poses than video frames
_TASKS = {"kitchen": "Setting the kitchen table", "living room": "Tidying up", "workshop": "Sorting parts", "office": "Clearing a desk"}
_SLAM = (  # two ordinary 640x480 fisheye lenses beside the RGB camera: label, parameters, place on the glasses
    (
        "camera-slam-left",
        (241.5, 318.0, 241.0, -0.025, 0.097, -0.064, 0.0085, 0.0024, -0.0006, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
    ),
    (
        "camera-slam-right",
        (241.3, 320.5, 239.5, -0.026, 0.101, -0.069, 0.0121, 0.0011, -0.0005, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (0.005, -0.105, -0.09),
    ),
)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value))
    os.replace(part, path)


def split_of(index: int) -> str:
    """Every third take is for testing; the others train."""
    return "test" if index % 3 == 2 else "train"


def camera_pose(name: str, uid: str, exo_cameras: dict[str, Camera], T_world_exo: dict, T_world_ego: np.ndarray) -> dict:
    """annotations/ego_pose/<split>/camera_pose/<uid>.json. exo_cameras at 3840x2160; T_world_ego [N, 4, 4] of all video frames.

    Extrinsics are world-to-camera, 3x4. The head's intrinsics are the release's virtual 512-px pinhole, not its lens;
    an exo camera's are those of its undistorted pictures (kernels/exo_lens.py).
    """
    record: dict = {"metadata": {"take_name": name, "take_uid": uid}}
    for cam, camera in exo_cameras.items():
        f, _, cx, cy, *k = camera.params
        undistorted = undistorted_focal(f, tuple(k))
        record[cam] = {
            "camera_intrinsics": [[undistorted, 0.0, cx], [0.0, undistorted, cy], [0.0, 0.0, 1.0]],
            "camera_extrinsics": np.linalg.inv(T_world_exo[cam])[:3].tolist(),
            "distortion_coeffs": list(k),
        }
    poses = np.linalg.inv(T_world_ego)[: len(T_world_ego) - TRAILING, :3]
    record[EGO] = {
        "camera_intrinsics": [[150.0, 0.0, 255.5], [0.0, 150.0, 255.5], [0.0, 0.0, 1.0]],
        "camera_extrinsics": {str(frame): pose.tolist() for frame, pose in enumerate(poses)},
    }
    return record


def online_calibration(sensor: Camera, frames: int, fps: float, serial: str) -> str:
    """trajectory/online_calibration.jsonl: the head camera's lens at 2880x2880 and its neighbours, one line a frame."""
    f, _, *rest = sensor.params
    lenses = [*_SLAM, ("camera-rgb", (f, *rest), (-0.0044, -0.0122, -0.0044))]
    cameras = [
        {
            "Calibrated": True,
            "Projection": {"Params": list(params), "Description": "see FisheyeRadTanThinPrism.h", "Name": "FisheyeRadTanThinPrism"},
            "T_Device_Camera": {"Translation": list(place), "UnitQuaternion": [1.0, [0.0, 0.0, 0.0]]},
            "SerialNumber": f"{serial}-{label}",
            "Label": label,
        }
        for label, params, place in lenses
    ]
    lines = []
    for frame in range(frames):
        stamp = 1_000_000_000 + round(frame * 1e6 / fps)
        record = {"utc_timestamp_ns": -1, "tracking_timestamp_us": stamp, "ImuCalibrations": [], "CameraCalibrations": cameras}
        lines.append(json.dumps(record))
    return "\n".join(lines) + "\n"


def take_record(scene: Scene, name: str, uid: str, cams: tuple[str, ...], frames: int, fps: float) -> dict:
    """One entry of takes.json."""
    streams = {cam: {"0": _stream(cam, "0", f"{cam}.mp4", False, frames / fps)} for cam in cams}
    streams[EGO] = {"rgb": _stream(EGO, RGB_STREAM, f"{EGO}_{RGB_STREAM}.mp4", True, frames / fps)}
    return {
        "take_uid": uid,
        "take_name": name,
        "root_dir": f"takes/{name}",
        "task_name": _TASKS[scene.kind],
        "parent_task_name": "Handling objects",
        "duration_sec": frames / fps,
        "is_dropped": False,
        "best_exo": None,
        "timesync_start_idx": 0,
        "timesync_end_idx": frames,
        "capture": {
            "capture_name": name.rsplit("_", 1)[0],
            "cameras": [{"cam_id": EGO, "is_ego": True, "device_type": "aria"}]
            + [{"cam_id": cam, "is_ego": False, "device_type": "gopro"} for cam in cams],
        },
        "frame_aligned_videos": streams,
    }


def _stream(cam: str, stream: str, file: str, ego: bool, seconds: float) -> dict:
    return {"cam_id": cam, "stream_id": stream, "relative_path": f"{FOLDER}/{file}", "is_ego": ego, "duration": seconds}


def take_descriptions(scene: Scene, uid: str, seconds: float) -> list[dict]:
    """The take's entry in atomic_descriptions_<split>.json."""
    return [{"annotation_uid": f"{uid}-0", "annotator_id": "simulation", "rejected": False, "descriptions": descriptions(scene, seconds)}]


def write_indices(out: Path, entries: list[dict]) -> list[dict]:
    """Write takes.json, splits.json and the descriptions for these entries and those already listed there; returns the take records.

    An entry: {"index", "split", "take", "descriptions"}.
    """
    listing = out / "takes.json"
    before = json.loads(listing.read_text()) if listing.exists() else []
    splits_file = out / "annotations" / "splits.json"
    splits = json.loads(splits_file.read_text())["take_uid_to_split"] if splits_file.exists() else {}
    texts: dict[str, dict] = {split: {} for split in SPLITS}
    for split in SPLITS:
        path = out / "annotations" / f"atomic_descriptions_{split}.json"
        texts[split] = json.loads(path.read_text())["annotations"] if path.exists() else {}
    known = {record["take_uid"]: record for record in before}
    for entry in entries:
        uid = entry["take"]["take_uid"]
        known[uid], splits[uid] = entry["take"], entry["split"]
        texts[entry["split"]][uid] = entry["descriptions"]
    records = sorted(known.values(), key=lambda record: record["take_name"].split("_")[-2])
    uids = [record["take_uid"] for record in records]
    for split in SPLITS:
        mine = {uid: texts[split][uid] for uid in uids if uid in texts[split]}
        write_json(out / "annotations" / f"atomic_descriptions_{split}.json", {"take_cam_captions": {}, "annotations": mine})
    sides = {split: [uid for uid in uids if splits[uid] == split] for split in SPLITS}
    write_json(splits_file, {"split_to_take_uids": sides, "take_uid_to_split": {uid: splits[uid] for uid in uids}})
    write_json(listing, records)
    return records
