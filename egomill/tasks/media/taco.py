"""TACO, version 1 (Liu et al. 2024): tools and bowls between two hands, twelve fixed cameras and one on a helmet, as it is distributed.

    <root>/Allocentric_RGB_Videos/<triplet>/<sequence>/<serial>.mp4     Marker_Removed_Allocentric_RGB_Videos, where there, before it
          /Allocentric_Camera_Parameters/…/calibration.json             {serial: {imgSize, K, R, T}}, world to camera, m; pinholes
          /Egocentric_RGB_Videos/…/color.mp4                            1920x1080
          /Egocentric_Camera_Parameters/…/egocentric_intrinsic.txt      3x3, of 1920x1080
                                       …/egocentric_frame_extrinsic.npy [N, 4, 4], world to camera, m

A triplet is literally "(stir, spoon, bowl)"; a sequence is a take. There is no depth for the fixed cameras, and the official lists are not
beside the data: takes are held out as the recipe says. Hands are pickles of MANO's parameters: not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from egomill.kernels.cameras import Camera
from egomill.schemas.config import Ingest
from egomill.tasks.media import pictures, video
from egomill.tasks.media.annotations import fixed_pose, pinhole
from egomill.tasks.media.checked import agree, exo_entry, head, leaving_out, seen_by
from egomill.tasks.media.untrusted import Bad, below, inside, load_json, load_npy, numbers, read_numbers, regular

EXO = "Marker_Removed_Allocentric_RGB_Videos", "Allocentric_RGB_Videos"  # the first that has a sequence
EGO, OF_EXO, OF_EGO = "Egocentric_RGB_Videos", "Allocentric_Camera_Parameters", "Egocentric_Camera_Parameters"
SERIAL = re.compile(r"(\d{4,12})\.mp4")
EGO_SIZE = 1920, 1080  # px, that the head camera's matrix is of
MOST = 16 * 200_000  # numbers of a head's path: two hours
OFF = 0.01  # by which a video's shape may differ from its calibration's: sides are whole pixels


def there(root: Path) -> bool:
    """Whether a folder holds TACO's videos."""
    return any((root / name).is_dir() for name in (*EXO, EGO))


def sequences(root: Path, allow: tuple[str, ...] = ()) -> Iterator[dict]:
    """One row a sequence that has videos of either kind; a fault where a file of it may not be read."""
    found = {(s.parent.name, s.name) for kind in (*EXO, EGO) for s in (root / kind).glob("*/*") if s.is_dir()}
    for triplet, sequence in sorted(found):
        place = f"{triplet}/{sequence}"
        words = re.sub(r"[^A-Za-z0-9]+", "-", triplet).strip("-")
        row: dict[str, Any] = {"layout": "taco", "root": str(root), "folder": place, "take_name": f"{words}_{sequence}"}
        row |= {"take_uid": f"taco_{words}_{sequence}", "task": triplet.strip("() "), "split": "", "descriptions": [], "pose": ""}
        row |= {"files": [], "barred": {}, "entry": {}, "fault": None}
        try:
            row["entry"] = _entry(root, place, allow)
            row["files"] = sorted(row["entry"].values())
        except Bad as bad:
            row["fault"] = [bad.rejected.reason, bad.rejected.detail]
        yield row


def _entry(root: Path, place: str, allow: tuple[str, ...]) -> dict[str, str]:
    """A sequence's files that are there: "ego", "ego lens", "ego path", "calibration", and exo cameras' by serial."""
    kind = next((kind for kind in EXO if any(inside(root, f"{kind}/{place}", allow).glob("*.mp4"))), EXO[-1])
    paths = {match[1]: p for p in sorted((root / kind / place).glob("*.mp4")) if (match := SERIAL.fullmatch(p.name))}
    paths |= {"ego": root / EGO / place / "color.mp4", "calibration": root / OF_EXO / place / "calibration.json"}
    paths |= {"ego lens": root / OF_EGO / place / "egocentric_intrinsic.txt"}
    paths |= {"ego path": root / OF_EGO / place / "egocentric_frame_extrinsic.npy"}
    found = {name: below(root, path) for name, path in paths.items() if path.is_symlink() or path.exists()}
    for file in found.values():
        regular(root, file, allow)
    return found


def take(row: dict, settings: Ingest) -> dict:
    """A sequence as the rest sees it. Bad or VideoError where it cannot be used."""
    root, entry = Path(row["root"]), row["entry"]
    serials = [name for name in entry if name.isdecimal()]
    if "ego" not in entry:
        raise Bad("no_ego_video", f"{row['folder']}: no color.mp4")
    if not serials:
        raise Bad("no_exo_video", f"{row['folder']}: no video of a fixed camera")
    for name, reason in (("ego lens", "calibration_invalid"), ("calibration", "calibration_invalid"), ("ego path", "no_camera_pose")):
        if name not in entry:
            raise Bad(reason, f"{row['folder']}: its {name} is not there")
    ego = pictures.inspect(root / entry["ego"])
    matrix = read_numbers(root / entry["ego lens"], (9,), "calibration_invalid").reshape(3, 3)
    ego_camera = _at_size(_pinhole(matrix, EGO_SIZE, entry["ego lens"]), ego, entry["ego"])
    path = _path(root / entry["ego path"], ego.frames)
    told = load_json(root / entry["calibration"], "calibration_invalid")
    exo, left, infos = {}, {}, {"ego": ego}
    for serial in serials:
        with leaving_out(left, serial):
            info = pictures.inspect(root / entry[serial])
            agree(settings, {"ego": ego, serial: info})
            camera, T = _calibrated(told, serial)
            exo[serial] = exo_entry(entry[serial], _at_size(camera, info, serial), fixed_pose(T, serial), None, None)
            infos[serial] = info
    frames = min(info.frames for info in infos.values())
    T_world_ego = head(settings, {frame: pose for frame, pose in path.items() if frame < frames}, frames)
    exo = seen_by(settings, exo, left, T_world_ego)
    return {
        "fps": ego.fps,
        "frames": frames,
        "ego_video": entry["ego"],
        "ego_camera": ego_camera,
        "lens_source": "calibration file",
        "T_world_ego": T_world_ego,
        "exo": exo,
        "prior_video": "",
        "left_out": left,
        "files": [entry[name] for name in ("ego", "ego lens", "ego path", "calibration", *exo)],
    }


def _path(path: Path, frames: int) -> dict[int, Any]:
    """The head's poses by frame, world to camera, 3x4; one that is not finite is a gap. Bad(poses_disagree) where there are not as many as
    the video has frames: which is of which cannot be known then."""
    try:
        found = load_npy(path, MOST)
    except (OSError, ValueError) as error:
        raise Bad("no_camera_pose", f"{path.name}: {str(error)[:200]}") from None
    if found.ndim != 3 or found.shape[1:] != (4, 4) or found.dtype.kind != "f":
        raise Bad("no_camera_pose", f"{path.name}: {found.dtype} {found.shape}, not [N, 4, 4]")
    if len(found) != frames:
        raise Bad("poses_disagree", f"{path.name}: {len(found)} poses, {frames} frames")
    finite = [bool(np.isfinite(pose).all()) for pose in found]
    if not np.allclose(found[finite][:, 3], (0, 0, 0, 1), atol=1e-6):
        raise Bad("pose_gaps", f"{path.name}: the last row is not 0 0 0 1")
    return {
        frame: pose[:3].tolist() if whole else None for frame, (pose, whole) in enumerate(zip(found.astype(float), finite, strict=True))
    }


def _calibrated(told: Any, serial: str) -> tuple[Camera, list]:
    """A fixed camera's lens, and its pose world to camera 3x4."""
    said = told.get(serial) if isinstance(told, dict) else None
    if not isinstance(said, dict):
        raise Bad("no_camera_pose", f"calibration.json has no {serial}")
    size = numbers(said.get("imgSize"), (2,), f"{serial} imgSize", "calibration_invalid")
    K, R = (_square(said.get(name), f"{serial} {name}") for name in "KR")
    t = np.array(said.get("T"), dtype=object).reshape(-1).tolist()
    T = numbers(t, (3,), f"{serial} T", "calibration_invalid")
    return _pinhole(K, (float(size[0]), float(size[1])), serial), np.column_stack([R, T]).tolist()


def _square(value: Any, name: str) -> np.ndarray:
    """3x3, told as such or as nine numbers."""
    flat = isinstance(value, list) and len(value) == 9
    return numbers(value, (9,) if flat else (3, 3), name, "calibration_invalid").reshape(3, 3)


def _pinhole(K: np.ndarray, size: tuple[float, float], name: str) -> Camera:
    if abs(K[0, 1]) > 1 or not np.allclose(K[2], (0, 0, 1)):
        raise Bad("calibration_invalid", f"{name}: {K.tolist()} is no matrix of a pinhole")
    return pinhole(K[0, 0], K[1, 1], K[0, 2], K[1, 2], *size, name)


def _at_size(camera: Camera, info: video.VideoInfo, name: str) -> Camera:
    if abs(info.width * camera.height / (info.height * camera.width) - 1) > OFF:
        sizes = f"{info.width}x{info.height}, its calibration is of {camera.width}x{camera.height}"
        raise Bad("calibration_invalid", f"{name}: the video is {sizes}")
    return camera.rescale(info.width, info.height)
