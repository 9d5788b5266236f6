"""H2O (Kwon et al. 2021): two hands at a table, four fixed RGB-D cameras and one on the head, as it is distributed.

    <root>/subject{1..4}/{h1,h2,k1,k2,o1,o2}/<n>/cam{0..4}/     cam4 is the head's; ego-only downloads are in subject1_ego/…
        cam_intrinsics.txt      fx fy cx cy width height, px
        rgb/000000.png          pictures, 30 a second, numbered alike in all cameras
        depth/000000.png        16 bits, mm, z-depth, registered to the pictures; 0 unknown
        cam_pose/000000.txt     16 numbers, row by row: T_world_cam, m; one file a frame, for cameras that stand still too
        hand_pose/000000.txt    [flag, 63 numbers] left, then right: 21 joints, m, in that camera's frame; not read yet

A sequence is a take. Splits are the official ones: validation is subject 3's k2, o1 and o2, test is subject 4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egomill.kernels.cameras import Camera
from egomill.kernels.poses import inverse
from egomill.schemas.config import Ingest
from egomill.tasks.media import pictures
from egomill.tasks.media.annotations import check_millimetres, check_size, fixed_pose, pinhole
from egomill.tasks.media.checked import agree, exo_entry, head, leaving_out, seen_by
from egomill.tasks.media.pictures import NUMBERED
from egomill.tasks.media.untrusted import Bad, below, inside, read_numbers, regular

SUBJECT = re.compile(r"(subject\d{1,3})(_ego)?")
SCENE, SEQUENCE, CAMERA = re.compile(r"[hko]\d"), re.compile(r"\d{1,4}"), re.compile(r"cam[0-4]")
TAKE = re.compile(r"(subject\d{1,3})_([hko]\d)_(\d{1,4})")
EGO, FPS = "cam4", 30.0
CUT = 30  # frames of a clip of Exo2Ego's
VALIDATION = "subject3", ("k2", "o1", "o2")
TEST = "subject4"


def there(root: Path) -> bool:
    """Whether a folder holds H2O's subjects."""
    return any(SUBJECT.fullmatch(p.name) and p.is_dir() for p in root.iterdir())


def sequences(root: Path, allow: tuple[str, ...] = ()) -> Iterator[dict]:
    """One row a sequence: its cameras' files and folders, in whichever of a subject's two folders; a fault where one may not be read."""
    places: dict[tuple[str, str, str], dict[str, Path]] = {}
    for subject in _folders(root, SUBJECT):
        for scene in _folders(subject, SCENE):
            for number in _folders(scene, SEQUENCE):
                match = SUBJECT.fullmatch(subject.name)
                assert match is not None
                found = places.setdefault((match[1], scene.name, number.name), {})
                for cam in _folders(number, CAMERA):
                    found.setdefault(cam.name, cam)
    for (subject, scene, number), cams in sorted(places.items()):
        name = f"{subject}_{scene}_{number}"
        row: dict[str, Any] = {"layout": "h2o", "root": str(root), "folder": f"{subject}/{scene}/{number}", "take_name": name}
        row |= {"take_uid": f"h2o_{name}", "task": "", "split": official(subject, scene), "descriptions": [], "pose": "", "barred": {}}
        row |= {"files": [], "entry": {cam: below(root, place) for cam, place in sorted(cams.items())}, "fault": None}
        try:
            for place in cams.values():
                row["files"] += _files(root, place, allow)
        except Bad as bad:
            row |= {"fault": [bad.rejected.reason, bad.rejected.detail], "files": []}
        yield row


def official(subject: str, scene: str) -> str:
    """The official split of a sequence."""
    return "test" if subject == TEST else "val" if subject == VALIDATION[0] and scene in VALIDATION[1] else "train"


def unseen(by: str, name: str, first: int, last: int, frames: int) -> str:
    """The split of a window of frames first..last of a take, as Exo2Ego cuts H2O into trainings and tests by unseen actions, objects,
    scenes and subjects; "" for what it leaves out, and for a window that lies in both parts. Its clips are of 30 frames.

        actions    subject 1: the first 80 % of each sequence train, the rest test: the same recordings, so this tells little of new actions
        objects    sequences 0 to 5 train, 7 tests
        scenes     o1 and o2 test, the others train
        subjects   of subject 1 the first 80 % of each sequence train, of subject 2 the first 20 % test
    """
    match = TAKE.fullmatch(name)
    if match is None:
        return ""
    subject, scene, number = match[1], match[2], int(match[3])
    if by == "objects":
        return {7: "unseen", 6: ""}.get(number, "train")
    if by == "scenes":
        return "unseen" if scene in ("o1", "o2") else "train"
    count = frames // CUT
    part = int(0.8 * count)
    if subject == "subject1" and last // CUT < part:
        return "train"
    if by == "actions":
        return "unseen" if subject == "subject1" and first // CUT >= part else ""
    return "unseen" if subject == "subject2" and last // CUT < count - part else ""


def _folders(place: Path, named: re.Pattern) -> list[Path]:
    return sorted(p for p in place.iterdir() if named.fullmatch(p.name) and p.is_dir())


def _files(root: Path, cam: Path, allow: tuple[str, ...]) -> list[str]:
    """What ingest reads of a camera: its intrinsics, and its folders. Bad where a link in them leads out of the data set."""
    found = []
    for part in ("cam_intrinsics.txt", "rgb", "cam_pose", *(() if cam.name == EGO else ("depth",))):
        path = cam / part
        if not os.path.lexists(path):
            continue
        inside(root, below(root, path), allow)
        found.append(below(root, path))
        if path.is_dir():
            for entry in os.scandir(path):
                if entry.is_symlink():
                    regular(root, below(root, Path(entry.path)), allow)
    return found


def take(row: dict, settings: Ingest) -> dict:
    """A sequence as the rest sees it. Bad or VideoError where it cannot be used."""
    root, cams, allow = Path(row["root"]), row["entry"], settings.allow
    if EGO not in cams or not (inside(root, cams[EGO], allow) / "rgb").is_dir():
        raise Bad("no_ego_video", f"{row['folder']}: no {EGO}/rgb")
    paths = {cam: inside(root, place, allow) for cam, place in cams.items()}
    infos = {EGO: pictures.inspect(paths[EGO] / "rgb")}
    ego_camera = intrinsics(paths[EGO] / "cam_intrinsics.txt")
    check_size(ego_camera, infos[EGO], cams[EGO])
    exo, left = {}, {}
    for cam in sorted(paths.keys() - {EGO}):
        with leaving_out(left, cam):
            if not (paths[cam] / "rgb").is_dir():
                raise Bad("no_exo_video", f"{cams[cam]}: no rgb")
            info = pictures.inspect(paths[cam] / "rgb")
            agree(settings, {EGO: infos[EGO], cam: info})
            camera = intrinsics(paths[cam] / "cam_intrinsics.txt")
            check_size(camera, info, cams[cam])
            T_world_exo = fixed_pose({str(f): T for f, T in extrinsics(paths[cam] / "cam_pose").items()}, cam)
            depth = f"{cams[cam]}/depth" if (paths[cam] / "depth").is_dir() else None
            if depth:
                check_millimetres(root / depth, info)
            exo[cam], infos[cam] = exo_entry(f"{cams[cam]}/rgb", camera, T_world_exo, depth, "z-mm" if depth else None), info
    frames = min(info.frames for info in infos.values())
    T_world_ego = head(settings, extrinsics(paths[EGO] / "cam_pose"), frames)
    if not exo and not left:
        raise Bad("no_exo_video", row["folder"])
    exo = seen_by(settings, exo, left, T_world_ego)
    used = (f"{cams[EGO]}/", *(f"{cams[cam]}/" for cam in exo))
    return {
        "fps": FPS,
        "frames": frames,
        "ego_video": f"{cams[EGO]}/rgb",
        "ego_camera": ego_camera,
        "lens_source": "calibration file",
        "T_world_ego": T_world_ego,
        "exo": exo,
        "prior_video": "",
        "left_out": left,
        "files": [file for file in row["files"] if file.startswith(used)],
    }


# -- files of numbers ----------------------------------------------------------------------------------------------------


def intrinsics(path: Path) -> Camera:
    """cam_intrinsics.txt. Bad(calibration_invalid) where it cannot be one."""
    return pinhole(*read_numbers(path, (6,), "calibration_invalid"), f"{path.parent.name}/{path.name}")  # type: ignore[misc]


def extrinsics(folder: Path) -> dict[int, Any]:
    """cam_pose by frame, world to camera, 3x4, as the rest has poses. Bad(no_camera_pose) where there is none, Bad(pose_gaps) where a file
    holds other than 16 numbers whose last row is 0 0 0 1. A frame without a file is a gap."""
    name = "/".join(folder.parts[-2:])
    files = sorted(p for p in folder.iterdir() if NUMBERED.fullmatch(p.stem + ".png") and p.suffix == ".txt") if folder.is_dir() else []
    if not files:
        raise Bad("no_camera_pose", f"{name}: no pose by frame")
    found: dict[int, Any] = {}
    for path in files:
        T_world_cam = read_numbers(path, (16,), "pose_gaps").reshape(4, 4)
        if not np.allclose(T_world_cam[3], (0, 0, 0, 1), atol=1e-6):
            raise Bad("pose_gaps", f"{name}/{path.name}: the last row is {T_world_cam[3].tolist()}")
        if int(path.stem) in found:
            raise Bad("poses_disagree", f"{name}: frame {int(path.stem)} has two poses")
        found[int(path.stem)] = inverse(torch.from_numpy(T_world_cam))[:3].tolist()
    return found
