"""A single request from outside any data set: a fixed camera's video, its lens and a head's path in, what the head would see out.

It is made by the stages' own workers, one after the other, in this process: no Ray, no tables. Nothing enters a lake, so nothing has to be
forgotten from one. What a take has to be is asked of a request too, and since nobody curated it, more (tasks/pages/plausible.py).

Methods that find the head by the hands need no path (GenEgo): depth, and hands by a landmark network or a file, are enough, of one picture
too.

Frames: the path is T_exo_ego, the ego picture in the frame of the exo camera. Both frames are those of the pictures as they are shown: x
right, y down, z forward, metres. Several views of the same moment, each with its `exo_pose`, go to methods that take several. For the Aria
lens, whose sensor lies on its side, that is the upright picture and not the sensor, which
poses of Ego-Exo4D and of Aria's tools refer to. With `exo_pose`, T_world_exo, the path is T_world_ego of that world instead. Times are
seconds of the exo video, whose first frame is at 0: a frame's own, as the file tells them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egomill.kernels import quality
from egomill.kernels.cameras import Camera, T_shown_sensor, aria_rgb
from egomill.kernels.poses import from_rt, is_rigid
from egomill.models.method import changed, of
from egomill.schemas.config import Clips, Ingest, Profile
from egomill.schemas.fingerprint import code_of, digest, file_sha256
from egomill.schemas.outcome import REASONS, Rejected
from egomill.schemas.tables import LONG, as_stored
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake import runs
from egomill.tasks.lake.rows import finished, handed, one_thread
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import pictures, video, views
from egomill.tasks.media.annotations import annotated_exo, check_lens, check_reach
from egomill.tasks.media.trajectory import read_tum
from egomill.tasks.media.untrusted import Bad, load_json, numbers
from egomill.tasks.networks import bases, configs
from egomill.tasks.pages import plausible
from egomill.tasks.stages import depth, generations, of_method
from egomill.tasks.stages.clips import exo_view, stride_of
from egomill.tasks.training import adapters

WIDEST = 170.0  # degrees across that a picture without a lens model may show
FOCAL = 0.2, 5.0
SQUEEZED = 5e-3  # by which a video's shape may differ from its camera's: sides are whole pixels


@dataclass(frozen=True, kw_only=True)
class View:
    """A fixed camera's video, its lens and where it stands."""

    exo: Path  # a video
    fov: float | None = None  # degrees across, of a picture without distortion; or
    camera: Path | None = None  # JSON of Camera at the video's size
    exo_pose: Path | None = None  # JSON of T_world_exo, 4x4 or 3x4; of a single view: default the world itself


@dataclass(frozen=True, kw_only=True)
class Request(View):
    """What is asked for: a view, `more` of the same moment frame by frame, and the head's path."""

    trajectory: Path | None = None  # TUM: tasks/media/trajectory.py; None: of methods that need none
    hands: Path | None = None  # .npz of joints in the exo camera's frame (tasks/media/hand_files.py); None: as the profile finds them
    more: tuple[View, ...] = ()
    depth: Path | None = None  # an .npz ("range") or a folder of .npy ("pinhole-z"), as in media/sidecar.py; else the profile's network
    depth_focal: float | None = None  # of z-depth: the focal length that its network was told, over the lens' own; None: the lens' own
    ego_camera: Path | None = None  # JSON of Camera of a square picture of any size; else a typical Aria RGB lens
    start: float = 0.0  # seconds
    prompt: str = ""  # "": what the profile makes of a clip that nobody described; an empty text is what guidance leads away from

    @property
    def views(self) -> tuple[View, ...]:
        return (self, *self.more)


def generate(profile: Profile, adapter: str, folder: str, request: Request, out: Path) -> dict:
    """Write the ego video to `out`, an .mp4 that browsers play, and beside it as .json what made it, which is also returned, and as .png
    what it was made of: exo view with the head's axes, depth, prior and result.

    `adapter` is the name to record and `folder` where its files lie ("" for the base alone). The noise is of the profile's seed, the
    video's content and the start: the same request gives the same bytes, on a CPU. ValueError on a request that lacks something or
    contradicts itself, naming file, line or frame; on what cannot be a head's path before a fixed camera; and on whatever a stage rejects,
    naming stage and reason. What is odd and may yet be right stands in the record's "warnings".
    """
    profile = _fitted(profile, request)
    record, sheet = out.with_suffix(".json"), out.with_suffix(".png")
    inputs = _inputs(request)
    if out.suffix != ".mp4" or not out.parent.is_dir():
        raise ValueError(f"{out}: a file in a folder that is there, and .mp4, is asked for")
    if {path.resolve() for path in (out, record, sheet)} & {path.resolve() for path in inputs.values()}:
        raise ValueError(f"{out}, {record.name} or {sheet.name} beside it would replace what the request reads")
    configs.check(profile)
    stages = [*of_method(profile), generations.stage(profile, adapter, folder)]
    with one_thread():
        rows, told = judged(profile, request)
        if request.prompt:
            rows["captions"] = {"text": request.prompt, "source": "given"}
        for stage in stages:
            if stage.name in LONG:
                rows[stage.name] = [*rows.get(stage.name, ()), *_made(stage, rows, told["warnings"])]  # type: ignore[assignment]
            elif stage.name not in rows:
                rows[stage.name] = _made(stage, rows, told["warnings"])
    record.unlink(missing_ok=True)  # one that lies there is of the video beside it
    out.write_bytes(video.for_browser(video.decode(rows["generations"]["video"]), rows["clips"]["fps"]))
    sheet.write_bytes(plausible.picture(rows))
    clip, made = rows["clips"], rows["generations"]
    answer = {
        "video": {"path": str(out), "sha256": file_sha256(out), "fps": clip["fps"], "frames": clip["frames"]},
        "picture": {"path": str(sheet), "sha256": file_sha256(sheet)},
        **told,
        "adapter": adapter,
        "adapter_sha256": adapters.sha256(folder) if folder else "",
        "base": profile.model.base,
        "base_revision": bases.revision(profile.model),
        "seed": profile.generate.seed,
        "noise_seed": made["seed"],
        **json.loads(made["sampler"]),
        **({"prompt": rows["captions"]["text"], "prompt_source": rows["captions"]["source"]} if "captions" in rows else {}),
        "window": {name: clip[name] for name in ("clip_id", "start", "stride", "exo_crop")},
        "cameras": {**_camera_of(clip), "ego": views.ego_camera(clip).to_dict()},
        **({"more_views": [_camera_of(view) for view in views.of(clip)[1:]]} if clip["more_views"] else {}),
        **_depth_of(rows),
        **_coverage_of(rows),
        **({"hands": rows["hands"]["estimator"], "hand_frames": rows["hands"]["frames"]} if "hands" in rows else {}),
        "inputs": {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in inputs.items() if name != "depth"},
        "fov": request.fov,
        "depth_focal": request.depth_focal,
        "profile": profile.model_dump(mode="json"),
        "code": code_of(__name__),
        "environment": runs.environment(),
    }
    record.write_text(json.dumps(answer, indent=2))
    return answer


def judged(profile: Profile, request: Request) -> tuple[dict[str, dict], dict]:
    """The rows of `clips` and, where the method asks for it, of `depth`, and what they were found to be: {"path", "checks", "warnings"}.
    ValueError on what cannot be."""
    clip, path = _told(asked, profile.clips, request, profile.ingest)
    rows, found = {"clips": clip}, [_told(plausible.of_camera, view) for view in reversed(views.of(clip)) if clip["frames"] > 1]
    if path is not None:
        found.insert(0, plausible.of_path(clip))
    if "depth" in of(profile).stages:
        rows["depth"] = _made(depth.stage(profile), rows, _warnings(found))
        found.append(plausible.of_depth(clip, rows["depth"], files=request.depth is not None))
    checks = {name: value for measured, _ in found for name, value in measured.items()}
    return rows, {"path": path, "checks": checks, "warnings": _warnings(found)}


def _camera_of(view: dict) -> dict:
    return {"exo": views.exo_camera(view).to_dict(), "T_world_exo": unpack(view["T_world_exo"]).tolist(), "video": view["exo_video"]}


def _depth_of(rows: dict[str, dict]) -> dict:
    if "depth" not in rows:
        return {}
    made_by = json.loads(rows["depth"]["estimator"])
    return {"depth": {**made_by, "files": rows["clips"]["depth_path"]}, "depth_known": rows["depth"]["known"]}


def _coverage_of(rows: dict[str, dict]) -> dict:
    drawn = rows.get("priors") or rows.get("sparse")
    return {"coverage": drawn["coverage"]} if drawn else {}


def _warnings(found: list[tuple[dict, list[str]]]) -> list[str]:
    return [warning for _, warnings in found for warning in warnings]


def clip_of(recipe: Clips, request: Request) -> dict:
    """The row of `clips` that a request means: without an ego video, and with what only choosing among clips needs left out.

    ValueError, Bad or VideoError on what is wrong with its files.
    """
    return asked(recipe, request, Ingest())[0]


def asked(recipe: Clips, request: Request, settings: Ingest) -> tuple[dict, dict | None]:
    """`clip_of`, and where on the path the clip lies (`plausible.at_frames`), None without one."""
    info = pictures.inspect(request.exo)
    stride, start = stride_of(info.fps, recipe), round(request.start * info.fps) if math.isfinite(request.start) else -1
    frames = start + stride * np.arange(recipe.frames)
    if not 0 <= frames[0] <= frames[-1] < info.frames:
        asked = f"a clip of {recipe.frames} frames from {request.start:g} s is frames {frames[0]} to {frames[-1]}"
        raise ValueError(f"{request.exo.name}: {asked} of {info.frames}")
    ego = aria_rgb(recipe.ego_size) if request.ego_camera is None else _camera(request.ego_camera)
    if ego.width != ego.height:
        raise ValueError(f"{request.ego_camera}: the ego picture is square, not {ego.width}x{ego.height}")
    if len(request.views) > recipe.views:
        raise ValueError(f"{len(request.views)} exo videos, and the profile takes {recipe.views} (clips.views)")
    exos = {f"exo {i}" if i else "exo": _exo(view, request, info, int(frames[-1])) for i, view in enumerate(request.views)}
    exos["exo"] |= {
        "depth": str(request.depth.absolute()) if request.depth else None,
        "depth_kind": ("pinhole-z" if request.depth.is_dir() else "range") if request.depth else None,
        "depth_focal": _depth_focal(request),
    }
    seen = [exo_view(recipe, Path(exo["video"]).name, exo, {}) for exo in exos.values()]
    T_world_ego, along = None, None
    if request.trajectory is not None:
        path = read_tum(request.trajectory)
        T_world_shown, along = plausible.at_frames(request.trajectory, path, info.times, frames, request.exo.name, settings)
        named = {f"{Path(exo['video']).name}{' ' + name if len(exos) > 1 else ''}": exo for name, exo in exos.items()}
        check_reach(T_world_shown[:, :3, 3].numpy(), named)
        plausible.check_leaps(request.trajectory, path, float(info.times[frames[0]]), float(info.times[frames[-1]]), settings)
        T_world_ego = T_world_shown @ T_shown_sensor(ego.turns)
        first = T_world_ego[0]
        seen.sort(key=lambda view: quality.azimuth(view.T_world_exo, first, ego.turns))  # as in the clips of a lake
    shas = [file_sha256(view.exo) for view in request.views]
    row = {
        "clip_id": f"wild.{(shas[0] if len(shas) == 1 else digest(*shas))[:16]}.{start:06d}",
        "root": "/",
        "start": start,
        "stride": stride,
        "frames": recipe.frames,
        "fps": info.fps / stride,
        "ego_video": "",
        "ego_camera": json.dumps(ego.rescale(recipe.ego_size, recipe.ego_size).to_dict()),
        "T_world_ego": None if T_world_ego is None else pack(T_world_ego.numpy()),
        "task": "",
        "description": "",
        **seen[0].columns,
        "more_views": [view.columns for view in seen[1:]] or None,
    }
    if request.hands:
        where = {"files": {Path(exos["exo"]["video"]).name: str(request.hands.absolute())}}
        row["hands"] = json.dumps({"where": where, "sha256": file_sha256(request.hands)})
    if request.depth:
        row["depth_files"] = _depth_files(request.depth, frames)
    return as_stored("clips", [row])[0], along


def _exo(view: View, request: Request, first: video.VideoInfo, last: int) -> dict:
    """A view as a take has it. ValueError where it is not seen frame by frame with the `first`, or nobody says where it stands."""
    info = first if view is request else pictures.inspect(view.exo)
    if abs(info.fps / first.fps - 1) > SQUEEZED or info.frames <= last:
        told = f"{info.frames} frames at {info.fps:g} a second, {request.exo.name} {first.frames} at {first.fps:g}"
        raise ValueError(f"{view.exo.name} has {told}: views show the same moment frame by frame, to frame {last} at least")
    if view.exo_pose is None and request.more:
        raise ValueError(f"{view.exo.name}: of several exo views each needs its T_world_exo (--exo-pose), all in one world")
    return {
        "video": str(view.exo.absolute()),
        "camera": _exo_lens(view, info).to_dict(),
        "T_world_exo": np.eye(4).tolist() if view.exo_pose is None else _pose(view.exo_pose),
        "depth": None,
        "depth_kind": None,
        "depth_focal": 1.0,
    }


def camera_of(annotation: Path, cam: str, exo: Path | None = None) -> dict:
    """What a request takes as `camera` and `exo_pose` of an exo camera of Ego-Exo4D: {"camera", "T_world_exo"}, from its camera_pose
    annotation; the lens at the size of the video `exo`, or at the annotation's 3840x2160. ValueError where either is not as it should be.
    """
    lens, T_world_exo = _told(annotated_exo, annotation, cam)
    if exo is not None:
        info = _told(video.probe, exo)
        if abs(info.width * lens.height / (info.height * lens.width) - 1) > SQUEEZED:
            told = f"{exo.name} is {info.width}x{info.height}, and the annotation is of 16:9 pictures"
            raise ValueError(f"{told}: take the camera without --exo, and crop and rescale it as the video was")
        lens = lens.rescale(info.width, info.height)
    return {"camera": lens.to_dict(), "T_world_exo": T_world_exo.tolist()}


def _depth_focal(request: Request) -> float:
    if request.depth_focal is None:
        return 1.0
    if request.depth is None or not request.depth.is_dir():
        raise ValueError("--depth-focal goes with --depth and a folder of z-depth: ranges and networks named here need none")
    if not FOCAL[0] <= request.depth_focal <= FOCAL[1]:
        raise ValueError(f"--depth-focal is a ratio of focal lengths, {FOCAL[0]:g} to {FOCAL[1]:g}, not {request.depth_focal:g}")
    return request.depth_focal


def _exo_lens(request: View, info: video.VideoInfo) -> Camera:
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


def _fitted(profile: Profile, request: Request) -> Profile:
    """The profile, with files named in the request before a network named in the profile, and one frame where there is one picture."""
    method = of(profile)
    profile = method.requested(profile)
    if method.path and request.trajectory is None:
        raise ValueError(f"trajectory is missing: {method.name} does not find the head by itself (--trajectory)")
    if request.hands:
        profile = changed(profile, {"hands.source": "files"})
    if pictures.still(request.exo):
        profile = changed(profile, {"clips.frames": 1})
    if "depth" not in of(profile).stages:
        return profile
    if request.depth:
        return profile.model_copy(update={"depth": profile.depth.model_copy(update={"monocular": depth.SIDECAR, "monocular_revision": ""})})
    if profile.depth.monocular == depth.SIDECAR:
        raise ValueError("depth is missing: name files of it (--depth) or a network (--set depth.monocular=FOLDER)")
    return profile


def _inputs(request: Request) -> dict[str, Path]:
    """The request's files and folders by their role. ValueError where one is not there."""
    named = {name: getattr(request, name) for name in ("exo", "trajectory", "camera", "depth", "hands", "ego_camera", "exo_pose")}
    for number, view in enumerate(request.more, 2):
        named |= {f"{name} {number}": getattr(view, name) for name in ("exo", "camera", "exo_pose")}
    given = {name: path for name, path in named.items() if path is not None}
    for name, path in given.items():
        if not (path.is_file() or (name == "depth" and path.is_dir())):
            raise ValueError(f"{name.replace('_', ' ')}: no file {path}")
    return given


def _depth_files(place: Path, frames: np.ndarray) -> str:
    """Digest of the request's depth: of a folder, of those of these frames that are there."""
    files = [place / f"{n:05d}.npy" for n in frames] if place.is_dir() else [place]
    return digest({file.name: file_sha256(file) for file in files if file.is_file()})


def _made(stage: Stage, rows: dict[str, Any], warnings: Sequence[str] = ()) -> Any:
    """The stage's row, of a `LONG` table all of them, as its table would hold it. ValueError where it is rejected, with what was odd
    before: it may be the cause."""
    result = stage.worker()(handed(stage.reads, {table: rows[table] for table in stage.reads}))
    if isinstance(result, Rejected):
        odd = "".join(f"; {warning}" for warning in warnings)
        raise ValueError(f"{stage.name}: {result.reason}, {REASONS[result.reason]}: {result.detail}{odd}")
    made = finished(stage, rows["clips"]["clip_id"], result)
    return made if stage.name in LONG else made[0]


def _told(ask: Callable, *arguments: Any) -> Any:
    """What is wrong with a file, as the error of a caller."""
    try:
        return ask(*arguments)
    except video.VideoError as error:
        raise ValueError(f"{error.reason}: {error}") from None
    except Bad as bad:
        raise ValueError(str(bad)) from None
