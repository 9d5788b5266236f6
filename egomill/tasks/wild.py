"""A single request from outside any data set: a fixed camera's video, its lens and a head's path in, what the head would see out.

It is made by the stages' own workers, one after the other, in this process: no Ray, no tables. Nothing enters a lake, so nothing has to be
forgotten from one.

Frames: the path is T_exo_ego, the ego picture in the frame of the exo camera. Both frames are those of the pictures as they are shown: x
right, y down, z forward, metres. For the Aria lens, whose sensor lies on its side, that is the upright picture and not the sensor, which
poses of Ego-Exo4D and of Aria's tools refer to. With `exo_pose`, T_world_exo, the path is T_world_ego of that world instead. Times are
seconds of the exo video: frame n is at n / rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.poses import from_rt, is_rigid
from egomill.kernels.trajectory import T_shown_sensor, poses_at
from egomill.schemas.config import Clips, Profile
from egomill.schemas.fingerprint import code_of, digest, file_sha256
from egomill.schemas.outcome import REASONS, Rejected
from egomill.schemas.tables import as_stored
from egomill.schemas.tensors import pack, unpack
from egomill.tasks import adapters, bases, captions, depth, directions, latents, priors, runs, video, views
from egomill.tasks import generate as generations
from egomill.tasks.clips import exo_view, stride_of
from egomill.tasks.ingest import check_lens, check_reach
from egomill.tasks.stage import Stage, finished, one_thread
from egomill.tasks.trajectory import read_tum
from egomill.tasks.untrusted import Bad, load_json, numbers

WIDEST = 170.0  # degrees across that a picture without a lens model may show


@dataclass(frozen=True)
class Request:
    exo: Path  # a video
    trajectory: Path  # TUM: tasks/trajectory.py
    fov: float | None = None  # degrees across, of a picture without distortion; or
    camera: Path | None = None  # JSON of Camera at the video's size
    depth: Path | None = None  # an .npz ("range") or a folder of .npy ("pinhole-z"), as in tasks/sidecar.py; else the profile's network
    ego_camera: Path | None = None  # JSON of Camera of a square picture of any size; else a typical Aria RGB lens
    exo_pose: Path | None = None  # JSON of T_world_exo, 4x4 or 3x4
    start: float = 0.0  # seconds
    prompt: str = ""  # "": what the profile makes of a clip that nobody described; an empty text is what guidance leads away from


def generate(profile: Profile, adapter: str, folder: str, request: Request, out: Path) -> dict:
    """Write the ego video to `out`, an .mp4 that browsers play, and beside it as .json what made it, which is also returned.

    `adapter` is the name to record and `folder` where its files lie ("" for the base alone). The noise is of the profile's seed, the
    video's content and the start: the same request gives the same bytes, on a CPU. ValueError on a request that lacks something or
    contradicts itself, naming file, line or frame; and on whatever a stage rejects, naming stage and reason.
    """
    profile = _with_depth(profile, request)
    record = out.with_suffix(".json")
    inputs = _inputs(request)
    if out.suffix != ".mp4" or not out.parent.is_dir():
        raise ValueError(f"{out}: a file in a folder that is there, and .mp4, is asked for")
    if {out.resolve(), record.resolve()} & {path.resolve() for path in inputs.values()}:
        raise ValueError(f"{out} and {record.name} beside it would replace what the request reads")
    stages = [depth.stage(profile), priors.stage(profile), directions.stage(profile), latents.stage(profile)]
    stages.append(generations.stage(profile, adapter, folder))
    with one_thread():
        rows = {"clips": _told(clip_of, profile.clips, request)}
        rows["captions"] = {"text": request.prompt, "source": "given"} if request.prompt else _made(captions.stage(profile), rows)
        for stage in stages:
            rows[stage.name] = _made(stage, rows)
    record.unlink(missing_ok=True)  # one that lies there is of the video beside it
    out.write_bytes(video.for_browser(video.decode(rows["generations"]["video"]), rows["clips"]["fps"]))
    clip, prior, made = rows["clips"], rows["priors"], rows["generations"]
    answer = {
        "video": {"path": str(out), "sha256": file_sha256(out), "fps": clip["fps"], "frames": clip["frames"]},
        "adapter": adapter,
        "adapter_sha256": adapters.sha256(folder) if folder else "",
        "base": profile.model.base,
        "base_revision": bases.revision(profile.model),
        "seed": profile.generate.seed,
        "noise_seed": made["seed"],
        **json.loads(made["sampler"]),
        "prompt": rows["captions"]["text"],
        "prompt_source": rows["captions"]["source"],
        "window": {name: clip[name] for name in ("clip_id", "start", "stride", "exo_crop")},
        "cameras": {
            "exo": views.exo_camera(clip).to_dict(),
            "ego": views.ego_camera(clip).to_dict(),
            "T_world_exo": unpack(clip["T_world_exo"]).tolist(),
        },
        "depth": {**json.loads(rows["depth"]["estimator"]), "files": clip["depth_path"]},
        "depth_known": rows["depth"]["known"],
        "coverage": prior["coverage"],
        "inputs": {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in inputs.items() if name != "depth"},
        "fov": request.fov,
        "profile": profile.model_dump(mode="json"),
        "code": code_of(__name__),
        "environment": runs.environment(),
    }
    record.write_text(json.dumps(answer, indent=2))
    return answer


def clip_of(recipe: Clips, request: Request) -> dict:
    """The row of `clips` that a request means: without an ego video, and with what only choosing among clips needs left out.

    ValueError, Bad or VideoError on what is wrong with its files.
    """
    info = video.inspect(request.exo)
    stride, start = stride_of(info.fps, recipe), round(request.start * info.fps) if math.isfinite(request.start) else -1
    frames = start + stride * np.arange(recipe.frames)
    if not 0 <= frames[0] <= frames[-1] < info.frames:
        asked = f"a clip of {recipe.frames} frames from {request.start:g} s is frames {frames[0]} to {frames[-1]}"
        raise ValueError(f"{request.exo.name}: {asked} of {info.frames}")
    ego = aria_rgb(recipe.ego_size) if request.ego_camera is None else _camera(request.ego_camera)
    if ego.width != ego.height:
        raise ValueError(f"{request.ego_camera}: the ego picture is square, not {ego.width}x{ego.height}")
    exo = {
        "video": str(request.exo.absolute()),
        "camera": _exo_lens(request, info).to_dict(),
        "T_world_exo": np.eye(4).tolist() if request.exo_pose is None else _pose(request.exo_pose),
        "depth": str(request.depth.absolute()) if request.depth else None,
        "depth_kind": ("pinhole-z" if request.depth.is_dir() else "range") if request.depth else None,
        "depth_focal": 1.0,  # of the network that made z-depth: it knew the lens
    }
    T_world_ego = _head(request, frames, info.fps) @ T_shown_sensor(ego.turns)
    check_reach(T_world_ego[:, :3, 3].numpy(), {request.exo.name: exo})
    row = {
        "clip_id": f"wild.{file_sha256(request.exo)[:16]}.{start:06d}",
        "root": "/",
        "start": start,
        "stride": stride,
        "frames": recipe.frames,
        "fps": info.fps / stride,
        "ego_video": "",
        "ego_camera": json.dumps(ego.rescale(recipe.ego_size, recipe.ego_size).to_dict()),
        "T_world_ego": pack(T_world_ego.numpy()),
        "task": "",
        "description": "",
        **exo_view(recipe, request.exo.name, exo, {})["columns"],
    }
    if request.depth:
        row["depth_files"] = _depth_files(request.depth, frames)
    return as_stored("clips", [row])[0]


def _head(request: Request, frames: np.ndarray, fps: float) -> torch.Tensor:
    """The path [F, 4, 4] at the clip's frames, in the frame of the picture as it is shown."""
    seconds, path = read_tum(request.trajectory)
    T = poses_at(seconds, path, torch.from_numpy(frames / fps))
    missed = frames[(~T.isfinite().all(dim=-1).all(dim=-1)).numpy()]
    if len(missed):
        reach = f"{request.trajectory} goes from {float(seconds[0]):.3f} to {float(seconds[-1]):.3f} s and"
        missing = f"does not reach frame {missed[0]} of {request.exo.name}, at {missed[0] / fps:.3f} s"
        raise ValueError(f"{reach} {missing}; {len(missed)} of the clip's {len(frames)} frames have no pose")
    return T


def _exo_lens(request: Request, info: video.VideoInfo) -> Camera:
    if (request.fov is None) == (request.camera is None):
        raise ValueError("the exo lens: either its horizontal field of view (--fov) or its camera (--camera) is asked for")
    if request.camera is not None:
        lens = _camera(request.camera)
        if (lens.width, lens.height) != (info.width, info.height):
            raise ValueError(f"{request.camera} is of {lens.width}x{lens.height}, {request.exo.name} of {info.width}x{info.height}")
        return lens
    assert request.fov is not None
    if not 0 < request.fov < WIDEST:
        raise ValueError(f"a field of view between 0 and {WIDEST:g} degrees is asked for, not {request.fov:g}")
    focal = info.width / 2 / math.tan(math.radians(request.fov) / 2)
    return Camera("pinhole", (focal, focal, (info.width - 1) / 2, (info.height - 1) / 2), info.width, info.height)


def _camera(path: Path) -> Camera:
    try:
        camera = Camera.from_dict(load_json(path, "calibration_invalid"))
        check_lens(replace(camera, turns=0), str(path))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no camera: {type(error).__name__} {error}") from None
    return camera


def _pose(path: Path) -> list:
    """T_world_exo [4, 4] out of 4x4 or 3x4 numbers."""
    value = load_json(path, "calibration_invalid")
    rows = value[:3] if isinstance(value, list) and value[3:] == [[0, 0, 0, 1]] else value
    T = from_rt(torch.from_numpy(numbers(rows, (3, 4), path.name, "calibration_invalid")))
    if not is_rigid(T):
        raise ValueError(f"{path}: the rotation is not orthonormal, or is a reflection")
    return T.tolist()


def _with_depth(profile: Profile, request: Request) -> Profile:
    """The profile, with files named in the request before a network named in the profile."""
    if request.depth:
        return profile.model_copy(update={"depth": profile.depth.model_copy(update={"monocular": depth.SIDECAR, "monocular_revision": ""})})
    if profile.depth.monocular == depth.SIDECAR:
        raise ValueError("depth is missing: name files of it (--depth) or a network (--set depth.monocular=FOLDER)")
    return profile


def _inputs(request: Request) -> dict[str, Path]:
    """The request's files and folders by their role. ValueError where one is not there."""
    named = {name: getattr(request, name) for name in ("exo", "trajectory", "camera", "depth", "ego_camera", "exo_pose")}
    given = {name: path for name, path in named.items() if path is not None}
    for name, path in given.items():
        if not (path.is_file() or (name == "depth" and path.is_dir())):
            raise ValueError(f"{name.replace('_', ' ')}: no file {path}")
    return given


def _depth_files(place: Path, frames: np.ndarray) -> str:
    """Digest of the request's depth: of a folder, of those of these frames that are there."""
    files = [place / f"{n:05d}.npy" for n in frames] if place.is_dir() else [place]
    return digest({file.name: file_sha256(file) for file in files if file.is_file()})


def _made(stage: Stage, rows: dict[str, dict]) -> dict:
    """The stage's row, as its table would hand it on. ValueError where it is rejected."""
    result = stage.worker()({table: rows[table] for table in stage.reads})
    if isinstance(result, Rejected):
        raise ValueError(f"{stage.name}: {result.reason}, {REASONS[result.reason]}: {result.detail}")
    return finished(stage, rows["clips"]["clip_id"], result)[0]


def _told(ask: Callable, *arguments: Any) -> Any:
    """What is wrong with a file, as the error of a caller."""
    try:
        return ask(*arguments)
    except video.VideoError as error:
        raise ValueError(f"{error.reason}: {error}") from None
    except Bad as bad:
        raise ValueError(str(bad)) from None
