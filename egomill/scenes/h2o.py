"""Simulated takes in H2O's layout (tasks/media/h2o.py says how it lies on disk), hands annotated.

Four fixed pinhole cameras with depth and the head's, all RGB-D cameras of one kind. Take i is of subject 1, 2, 4, 3, 1, …, and so of the
official split of that subject.
"""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from egomill.kernels.cameras import Camera
from egomill.scenes.render import lattice, picture, render
from egomill.scenes.world import EXO, R_SHOWN_SENSOR, Scene, make_scene

SIZE = 480, 270  # px; H2O's are of 1280x720
FOCAL = 636.66 / 1280  # of the width: H2O's own head camera's
SUBJECTS = "subject1", "subject2", "subject4", "subject3"
FPS = 30
FARTHEST = 65.5  # m, what 16 bits of millimetres hold


def write_take(out: Path, seed: int, index: int, seconds: float = 3.0, fps: int = FPS) -> dict:
    """Write one take unless it is there already; returns {"take": {take_name, root_dir, frames}, "index"}.

    ValueError at other rates than 30, and where the folder holds takes of another seed or length.
    """
    if fps != FPS:
        raise ValueError(f"H2O's pictures come {FPS} times a second, not {fps}")
    about = {"seed": seed, "seconds": seconds}
    for there in (out / SUBJECTS[index % len(SUBJECTS)]).glob(f"*/{index}"):
        made = json.loads((there / "simulated.json").read_text())
        if made != about:
            raise ValueError(f"{there} is of {made}: name another folder")
        return _entry(out, there, index, seconds)
    rng = np.random.default_rng([seed, index, 6])
    frames = round(seconds * fps)
    scene = make_scene(int(rng.integers(2**31)), seconds + 1.0, (0.0, seconds))
    kind = {"kitchen": "k1", "office": "o1"}.get(scene.kind, "h1")
    folder = out / SUBJECTS[index % len(SUBJECTS)] / kind / str(index)
    part = out / ".partial" / str(index)
    shutil.rmtree(part, ignore_errors=True)
    moments = [scene.moment(frame / fps) for frame in range(frames)]
    for number, name in enumerate(EXO):
        poses = [scene.T_world_exo[name]] * frames
        _film(scene, moments, _camera(rng), poses, part / f"cam{number}", own=False)
    upright = np.eye(4)
    upright[:3, :3] = R_SHOWN_SENSOR.T
    _film(scene, moments, _camera(rng), [moment.T_world_ego @ upright for moment in moments], part / f"cam{len(EXO)}", own=True)
    (part / "simulated.json").write_text(json.dumps(about))
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.rename(part, folder)
    return _entry(out, folder, index, seconds)


def _entry(out: Path, folder: Path, index: int, seconds: float) -> dict:
    place = folder.relative_to(out)
    return {"index": index, "take": {"take_name": "_".join(place.parts), "root_dir": str(place), "frames": round(seconds * FPS)}}


def _camera(rng: np.random.Generator) -> Camera:
    """A camera of its own, as those of one kind are."""
    width, height = SIZE
    f = round(float(width * FOCAL * rng.uniform(0.99, 1.01)), 4)
    cx, cy = (round(float(side / 2 - 0.5 + rng.uniform(-3, 3)), 4) for side in SIZE)
    return Camera("pinhole", (f, f, cx, cy), width, height)


def _film(scene: Scene, moments: list, camera: Camera, T_world_cam: list[np.ndarray], folder: Path, own: bool) -> None:
    """All files of one camera; `own`: the head's, which does not see the head and has no depth beside it here."""
    parts = ("rgb", "cam_pose", "hand_pose", *(() if own else ("depth",)))
    for part in parts:
        (folder / part).mkdir(parents=True)
    values = (*camera.params, camera.width, camera.height)
    (folder / "cam_intrinsics.txt").write_text(" ".join(f"{v:.6f}" for v in values) + "\n")
    grid = lattice(camera, False)
    base = None if own else render(scene, grid, T_world_cam[0], None)
    still = None if base is None else picture(scene, grid, base)[0]
    ahead = grid.rays[2]
    for number, (moment, T) in enumerate(zip(moments, T_world_cam, strict=True)):
        frame = render(scene, grid, T, moment, base, ego=own)
        colour, along, _ = picture(scene, grid, frame, still=still)
        _png(folder / "rgb" / f"{number:06d}.png", cv2.cvtColor(colour, cv2.COLOR_RGB2BGR))
        if not own:
            metres = np.where(np.isfinite(along) & (along * ahead < FARTHEST), along * ahead, 0)
            _png(folder / "depth" / f"{number:06d}.png", np.round(1000 * metres).astype(np.uint16))
        (folder / "cam_pose" / f"{number:06d}.txt").write_text(" ".join(f"{v:.9f}" for v in T.flatten()) + "\n")
        T_cam_world = np.linalg.inv(T)
        joints = moment.joints @ T_cam_world[:3, :3].T + T_cam_world[:3, 3]
        told = (" ".join(["1", *(f"{v:.6f}" for v in hand.flatten())]) for hand in joints)
        (folder / "hand_pose" / f"{number:06d}.txt").write_text(" ".join(told) + "\n")


def _png(path: Path, pixels: np.ndarray) -> None:
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert ok
    path.write_bytes(data.tobytes())
