"""What a data set says of cameras: lenses and poses out of annotations and calibration files, each checked before anybody uses it.

Every fault is a `Bad` that names the file, camera or frame.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egomill.kernels import poses
from egomill.kernels.cameras import ARIA_VISIBLE, Camera, aria_rgb, aria_sensor_to_stored
from egomill.kernels.exo_lens import exo_lens
from egomill.tasks.media import pictures, video
from egomill.tasks.media.untrusted import (
    MEGABYTE,
    Bad,
    inside,
    load_json,
    npy_header,
    npz,
    numbers,
    opened,
    parse_json,
)

RELEASE_WIDTH = 796  # px of the release's small exo videos of 448 rows; EgoX cut 784 out of the middle
LINE = 4 * MEGABYTE  # of a line of calibration, which is some kilobytes
PINHOLE = 0.2, 5.0  # focal lengths, times the picture's width
REACH = 0.1, 100.0  # metres between the wearer and an exo camera, in the middle of a take; a pitch is some 70 long
BENDS = 0.2, 5.0  # how far out a lens draws a ray, over an equidistant one's; a pinhole at 80 degrees 4
STAYS = 1e-3  # metres, or of a rotation's numbers, between poses of a camera that does not move


def annotation_of(root: Path, row: dict, allow: tuple[str, ...]) -> dict[str, dict]:
    """The camera_pose annotation's entries by camera. Bad where it is missing, unreadable, or another take's."""
    if not row["pose"]:
        raise Bad("no_camera_pose", f"no annotation of {row['take_uid']}")
    value = load_json(inside(root, row["pose"], allow), "no_camera_pose")
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        raise Bad("no_camera_pose", f"{row['pose']}: no metadata")
    told = tuple(value["metadata"].get(k) for k in ("take_uid", "take_name"))
    if told != (row["take_uid"], row["take_name"]):
        raise Bad("no_camera_pose", f"{row['pose']} says that it is of take {told[1]} ({told[0]})")
    return {name: entry for name, entry in value.items() if name != "metadata" and isinstance(entry, dict)}


def annotated_exo(annotation: Path, cam: str) -> tuple[Camera, np.ndarray]:
    """An exo camera of a camera_pose annotation by itself: its lens at 3840x2160, and T_world_exo [4, 4]. Bad where it is not there."""
    value = load_json(annotation, "no_camera_pose")
    entries = {name: entry for name, entry in value.items() if isinstance(entry, dict)} if isinstance(value, dict) else {}
    exo = [name for name, entry in entries.items() if "distortion_coeffs" in entry]
    if cam not in exo:
        raise Bad("no_camera_pose", f"{annotation.name}: no exo camera {cam!r} in it; there is {', '.join(exo) or 'none'}")
    return lens_of(entries[cam], cam, entries[cam]["distortion_coeffs"]), fixed_pose(entries[cam].get("camera_extrinsics"), cam)


def by_frame(dictionary: Any, name: str) -> dict[int, Any]:
    if not isinstance(dictionary, dict) or not dictionary:
        raise Bad("no_camera_pose", f"{name} has no poses by frame")
    if not all(key.isascii() and key.isdigit() and len(key) < 9 for key in dictionary):
        raise Bad("no_camera_pose", f"{name}: frames are not all numbers")
    by_frame = {int(key): value for key, value in dictionary.items()}
    if len(by_frame) < len(dictionary):
        raise Bad("no_camera_pose", f"{name}: a frame has several poses")
    return by_frame


def or_none(value: Any, frame: int) -> np.ndarray | None:
    """A 3x4 extrinsic, or None where the annotation holds null or numbers that are not finite."""
    if value is None:
        return None
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Bad("pose_gaps", f"ego, frame {frame}: not numbers") from None
    if array.shape != (3, 4):
        raise Bad("pose_gaps", f"ego, frame {frame}: shape {array.shape} instead of (3, 4)")
    return array if np.isfinite(array).all() else None


def fixed_pose(value: Any, name: str) -> np.ndarray:
    """T_world_exo [4, 4] from a fixed camera's world-to-camera 3x4; a dictionary of them by frame passes where all are one."""
    if isinstance(value, dict):
        told = [numbers(v, (3, 4), f"{name} extrinsics", "calibration_invalid") for v in by_frame(value, name).values()]
        if np.ptp(told, axis=0).max() > STAYS:
            raise Bad("exo_camera_moves", f"{name}: {len(told)} poses, apart by up to {np.ptp(told, axis=0).max():.3g}")
        value = told[0]
    T_exo_world = poses.from_rt(torch.from_numpy(numbers(value, (3, 4), f"{name} extrinsics", "calibration_invalid")))
    if not poses.is_rigid(T_exo_world):
        raise Bad("rotation_invalid", name)
    return poses.inverse(T_exo_world).numpy()


def lens_of(entry: dict, name: str, coefficients: Any) -> Camera:
    """The exo lens at 3840x2160 from intrinsics and Kannala-Brandt coefficients."""
    K = numbers(entry.get("camera_intrinsics"), (3, 3), f"{name} intrinsics", "calibration_invalid")
    k = numbers(coefficients, (4,), f"{name} distortion", "calibration_invalid")
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if not (400 < fx < 8000 and 400 < fy < 8000 and 0 < cx < 3840 and 0 < cy < 2160 and abs(K[0, 1]) < 1):
        raise Bad("calibration_invalid", f"{name}: focal length {fx:.0f}, {fy:.0f}, centre {cx:.0f}, {cy:.0f} of a 3840x2160 picture")
    try:
        camera = exo_lens(K.tolist(), k.tolist())
    except ValueError as error:
        raise Bad("calibration_invalid", f"{name}: {error}") from error
    if camera.field_of_view < math.radians(30):
        raise Bad("calibration_invalid", f"{name}: the lens turns back at {math.degrees(camera.field_of_view):.0f} degrees")
    return camera


def pinhole(fx: float, fy: float, cx: float, cy: float, width: float, height: float, name: str) -> Camera:
    """A pinhole camera, px. Bad(calibration_invalid) where it cannot be one."""
    sides = width == round(width) and height == round(height) and 16 <= width <= 1 << 14 and 16 <= height <= 1 << 14
    if not sides or not all(PINHOLE[0] < f / width < PINHOLE[1] for f in (fx, fy)) or not (0 < cx < width and 0 < cy < height):
        told = f"focal length {fx:.6g}, {fy:.6g}, centre {cx:.6g}, {cy:.6g} of a {width:.6g}x{height:.6g} picture"
        raise Bad("calibration_invalid", f"{name}: {told}")
    return Camera("pinhole", (float(fx), float(fy), float(cx), float(cy)), round(width), round(height))


def egox_exo(lens: Camera, info: video.VideoInfo) -> Camera:
    """EgoX's exo picture is the middle of the release's 796 px (measured: edges of depth and picture agree with a cut, not a squeeze)."""
    full = round(info.height * RELEASE_WIDTH / 448)
    if info.width > full:
        raise Bad("calibration_invalid", f"exo video of {info.width}x{info.height} is wider than the camera")
    return lens.rescale(full, info.height).crop((full - info.width) // 2, 0, info.width, info.height)


def ego_lens(root: Path, calibration: str | None, info: video.VideoInfo, allow: tuple[str, ...] = ()) -> tuple[Camera, str]:
    """The Aria RGB lens behind the stored picture, and where it is known from."""
    if info.width != info.height:
        raise Bad("video_geometry", f"the ego video is {info.width}x{info.height}; Aria RGB is square")
    if calibration is None:
        return aria_rgb(info.width), "typical lens"
    try:
        with opened(inside(root, calibration, allow)) as file:
            cameras = parse_json(file.readline(LINE))["CameraCalibrations"]
        projection = next(c["Projection"] for c in cameras if c["Label"] == "camera-rgb")
        if projection["Name"] != "FisheyeRadTanThinPrism":
            raise ValueError(f"the lens is a {str(projection['Name'])[:50]}, not a FisheyeRadTanThinPrism")
        f, cx, cy, *rest = numbers(projection["Params"], (15,), f"{calibration}: camera-rgb", "calibration_invalid").tolist()
        lens = Camera("fisheye624", (f, f, cx, cy, *rest), 2880, 2880, max_theta=ARIA_VISIBLE)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise Bad("calibration_invalid", f"{calibration}: {type(error).__name__} {error}") from None
    if not (600 < f < 3000 and 960 < cx < 1920 and 960 < cy < 1920) or lens.field_of_view < math.radians(30):
        raise Bad("calibration_invalid", f"{calibration}: f {f:.0f}, centre {cx:.0f}, {cy:.0f} of 2880x2880")
    return aria_sensor_to_stored(check_lens(lens, calibration), info.width), "calibration file"


def check_lens(lens: Camera, name: str) -> Camera:
    """The lens, where it bends rays as a lens does: at 0.95 of its field of view, a picture that is neither crushed nor blown up."""
    theta = 0.95 * lens.field_of_view
    away = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64) * math.sin(theta)
    points = torch.cat((away, torch.full((4, 1), math.cos(theta), dtype=torch.float64)), dim=1)
    at = (lens.project(points)[0] - torch.tensor(lens.params[2:4])) / torch.tensor(lens.params[:2])
    stretch = at.norm(dim=1) / theta
    if not ((stretch > BENDS[0]) & (stretch < BENDS[1])).all():
        raise Bad(
            "calibration_invalid", f"{name}: rays at {math.degrees(theta):.0f} degrees are drawn {stretch.max():.3g} times as far out"
        )
    return lens


def check_reach(positions: np.ndarray, exo: dict[str, dict]) -> None:
    """That the head, at `positions` [n, 3], is where exo cameras would be put to film it: poses in millimetres are not."""
    for cam, view in exo.items():
        away = float(np.median(np.linalg.norm(positions - np.array(view["T_world_exo"])[:3, 3], axis=1)))
        if not REACH[0] <= away <= REACH[1]:
            raise Bad("pose_units", f"{cam} is {away:.3g} m from the wearer's head, where {REACH[0]} to {REACH[1]} is sensible")


def check_range(path: Path, info: video.VideoInfo, frames: int, slack: int) -> None:
    """A sidecar's headers: static [h, w], dynamic [frames, h, w], of the video's shape."""
    try:
        with npz(path, "static_depth", "dynamic_depth") as arrays:
            heads = arrays.heads
        static, moving = heads["static_depth"], heads.get("dynamic_depth")
    except (OSError, ValueError, KeyError) as error:
        raise Bad("depth_sidecar_invalid", f"{path.name}: {type(error).__name__} {error}") from None
    shapes = [static.shape] + ([moving.shape[1:]] if moving else [])
    fits = all(len(s) == 2 and 0 < math.prod(s) <= video.MAX_PIXELS for s in shapes)
    fits = fits and all(abs(s[1] * info.height / (s[0] * info.width) - 1) < 0.01 for s in shapes)
    fits = fits and (not moving or frames <= moving.shape[0] <= info.frames + slack)
    if not fits or any(head.dtype.kind != "f" for head in heads.values()):
        told = ", ".join(f"{name} {head.dtype} {head.shape}" for name, head in sorted(heads.items()))
        raise Bad("depth_sidecar_invalid", f"{path.name}: {told} beside {info}")


def check_frames(folder: Path, frames: int) -> None:
    """EgoX depth: one float picture a frame, all of one shape."""
    shapes = set()
    for frame in range(frames):
        path = folder / f"{frame:05d}.npy"
        try:
            head = npy_header(path)
        except (OSError, ValueError) as error:
            raise Bad("depth_sidecar_invalid", f"{path.name}: {str(error)[:200]}") from None
        shapes.add(head.shape)
        if len(head.shape) != 2 or head.dtype.kind != "f" or len(shapes) > 1 or not 0 < math.prod(head.shape) <= video.MAX_PIXELS:
            raise Bad("depth_sidecar_invalid", f"{path.name}: {head.dtype} {head.shape}")


def check_size(camera: Camera, info: video.VideoInfo, name: str) -> None:
    """That a calibration is of pictures of that size."""
    if (camera.width, camera.height) != (info.width, info.height):
        sizes = f"{info.width}x{info.height}, its calibration is of {camera.width}x{camera.height}"
        raise Bad("calibration_invalid", f"{name}: the pictures are {sizes}")


def check_millimetres(folder: Path, info: video.VideoInfo) -> None:
    """Depth pictures beside a video: as many, 16 bits, of its size."""
    try:
        files = pictures.numbered(folder)
        for file in files:
            width, height, bits, colour = pictures.header(file)
            if (width, height, bits, colour) != (info.width, info.height, 16, 0):
                raise Bad("depth_sidecar_invalid", f"{folder.parent.name}/depth/{file.name}: {width}x{height} of {bits} bits")
    except video.VideoError as error:
        raise Bad("depth_sidecar_invalid", str(error)) from None
    if len(files) < info.frames:
        raise Bad("depth_sidecar_invalid", f"{folder.parent.name}/depth: {len(files)} pictures beside {info.frames}")
