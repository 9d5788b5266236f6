"""Whether the parts of a request belong together: its path and its video by their clocks, its camera by its pictures, its depth by both.

What cannot be is a ValueError that names the part and what to do. What may be, and mostly is not, is a warning: there is no second source
that would settle it.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from egomill.kernels import plausible
from egomill.kernels.cameras import T_shown_sensor
from egomill.kernels.hands import pose_map
from egomill.kernels.poses import inverse, jumps
from egomill.kernels.trajectory import SLACK, poses_at
from egomill.schemas.config import Ingest
from egomill.schemas.tensors import unpack, unpack_depth
from egomill.tasks.media import stills, video, views
from egomill.tasks.media.checked import MAX_TURN
from egomill.tasks.media.trajectory import Trajectory

RATE = 30.0  # Hz: `ingest`'s bounds are of such a video's frames
OFF = 0.05  # by which the distance of poses may differ from that of frames, where there is one a frame
CLOCKS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9, "minutes": 1 / 60}
LOOK = 224  # rows of the pictures that are judged
GONE = 0.1  # of a picture's corners: what stays of them where the camera moved, is covered, or the scene was cut
ELSEWHERE = 0.2  # of them: what is found again where it moved
ON_ITS_SIDE, UPSIDE_DOWN = 55.0, 135.0  # degrees
INVERTED = 2.0  # `kernels.plausible.swing`
STIRS = 0.1  # `kernels.plausible.stir`
EDGES = 0.65  # `kernels.plausible.edges_agree`
RIGHT = 0.67, 1.5  # depth of the head over its distance
DISTANT = 0.05, 300.0  # metres, the median of the depth
AXIS = 0.15  # length of a drawn axis, over the head's distance


def at_frames(path: Path, found: Trajectory, times: np.ndarray, frames: np.ndarray, name: str, settings: Ingest) -> tuple[Tensor, dict]:
    """The poses [F, 4, 4] of a path, as it was `found` in its file, at `frames` of the video `name`, whose frames are shown at `times`
    (seconds); and where on the path these lie, and what the head does there. ValueError where its times are not the video's seconds.
    """
    seconds, T, lines = found
    wanted = torch.from_numpy(times[frames])
    at = poses_at(seconds, T, wanted)
    missed = frames[(~at.isfinite().all(dim=-1).all(dim=-1)).numpy()]
    reach = f"{path} goes from {float(seconds[0]):.3f} to {float(seconds[-1]):.3f} s"
    if len(missed):
        missing = f"does not reach frame {missed[0]} of {name}, at {times[missed[0]]:.3f} s"
        told = f"{reach} and {missing}; {len(missed)} of the clip's {len(frames)} frames have no pose"
        start = "Times are seconds of the video: where its first frame is at another time of the path's clock, subtract that"
        raise ValueError(f"{told}. {_clock(found, times) or start}")
    after = torch.searchsorted(seconds, wanted - SLACK).clamp(1, len(seconds) - 1)
    on = (seconds[after] - wanted).abs().minimum((seconds[after - 1] - wanted).abs()) <= SLACK
    gaps = torch.where(on, 0, seconds[after] - seconds[after - 1])
    rate, most = min(_rate(times), RATE), (settings.max_pose_gap + 1) / min(_rate(times), RATE) + SLACK
    wide = (gaps > most).nonzero().flatten().tolist()
    if wide and bool((T - T[0]).abs().max() > 1e-6):  # a head that rests throughout may be said in two lines
        n, gap = wide[0], float(gaps[wide[0]])
        apart = f"{path} lines {int(lines[after[n] - 1])} and {int(lines[after[n]])} are {gap:.4g} s apart, and frame {frames[n]} of {name}"
        allow = f"--set ingest.max_pose_gap={math.ceil(float(gaps.max()) * rate) - 1}"
        told = _clock(found, times) or f"Write more poses, or, if the head did move so evenly, allow it with {allow}"
        raise ValueError(f"pose_gaps: {apart} lies between, where {most:.2g} s are bridged. {told}")
    step = float(seconds.diff().median())
    if len(seconds) >= 10 and abs(len(seconds) - len(times)) <= settings.frame_slack and abs(step * _rate(times) - 1) > OFF:
        one = f"{path} has a pose for each of the {len(times)} frames of {name}, but one each {step:.4g} s, where frames are"
        raise ValueError(f"{one} {1 / _rate(times):.4g} s apart. {_clock(found, times) or 'Give frame n the time at which it is shown'}")
    first, last = int(after[0]) - 1, int(after[-1])
    return at, {
        "lines": [int(lines[first]), int(lines[last])],
        "seconds": [float(seconds[first]), float(seconds[last])],
        "poses": last - first + 1,
        "spacing": step,
        **_does(at, wanted),
    }


def _rate(times: np.ndarray) -> float:
    return (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else RATE


def _clock(path: Trajectory, times: np.ndarray) -> str:
    """What the path's times seem to be instead of the video's seconds, and what to do; "" where nothing fits."""
    span, lasts = float(path.seconds[-1] - path.seconds[0]), len(times) / _rate(times)
    units = {"frame numbers": _rate(times), **CLOCKS}
    name = min(units, key=lambda unit: abs(math.log(span / lasts / units[unit])))
    if abs(math.log(span / lasts / units[name])) > math.log(1.5):
        return ""
    by = f"divide them by {units[name]:g}" if units[name] > 1 else f"multiply them by {1 / units[name]:g}"
    start = " after subtracting the video's start" if float(path.seconds[0]) / units[name] > lasts else ""
    return f"Its times look like {name}, as the path would last {span:.4g} s and the video lasts {lasts:.4g}: {by}{start}"


def check_leaps(path: Path, found: Trajectory, first: float, last: float, settings: Ingest) -> None:
    """That the head neither leaps nor spins between two times of its path (seconds), as `ingest` asks of a take's. ValueError otherwise."""
    steps = torch.arange(first, last + 1e-9, 1 / RATE, dtype=torch.float64)
    T = poses_at(found.seconds, found.T, steps)
    leaps = jumps(T, settings.max_step, MAX_TURN).nonzero().flatten()
    if len(leaps):
        n = int(leaps[0])
        line = int(found.lines[min(int(torch.searchsorted(found.seconds, steps[n])), len(found.lines) - 1)])
        does = _does(T[n - 1 : n + 1], steps[n - 1 : n + 1])
        how = f"moves at {does['metres_per_second']:.3g} m/s and {does['degrees_per_second']:.0f} degrees/s"
        most = f"{settings.max_step * RATE:g} and {math.degrees(MAX_TURN) * RATE:.0f} are the most"
        todo = "Mend the tracking there, look at the units (metres, seconds), or allow more with --set ingest.max_step"
        raise ValueError(f"pose_jumps: {path} line {line}: the head {how} there, {most}; {len(leaps)} such steps in the clip. {todo}")


def _does(T: Tensor, seconds: Tensor) -> dict:
    """How far the head moves along T [F, 4, 4] at `seconds` [F], and how fast at most."""
    way = (T[1:, :3, 3] - T[:-1, :3, 3]).norm(dim=-1)
    turn = torch.arccos((((T[1:, :3, :3] * T[:-1, :3, :3]).sum(dim=(-1, -2)) - 1) / 2).clamp(-1, 1))
    step = seconds.diff()
    return {
        "metres": float(way.sum()),
        "metres_per_second": float((way / step).max()) if len(way) else 0.0,
        "degrees_per_second": float(torch.rad2deg(turn / step).max()) if len(way) else 0.0,
    }


def T_exo_shown(clip: dict) -> Tensor:
    """The path [F, 4, 4] of the ego picture as it is shown, in the exo camera's frame."""
    T_world_exo, T_world_ego = (torch.from_numpy(unpack(clip[name])) for name in ("T_world_exo", "T_world_ego"))
    return inverse(T_world_exo) @ T_world_ego @ inverse(T_shown_sensor(views.ego_camera(clip).turns))


def of_camera(clip: dict) -> tuple[dict, list[str]]:
    """Whether the exo camera stands still, by its pictures: what was measured, warnings. ValueError where it moves."""
    camera, numbers = views.exo_camera(clip), views.frame_numbers(clip)
    seen = plausible.standing(torch.from_numpy(views.read_exo(clip, (round(camera.width * LOOK / camera.height), LOOK))))
    if seen is None:
        return {"still": None}, ["the exo picture shows too little to tell whether the camera stands still"]
    gone = seen.still < GONE
    moves = (gone & (seen.moved > ELSEWHERE)).nonzero().flatten()
    name = Path(clip["exo_video"]).name
    if len(moves):
        at = int(moves[0])
        told = f"{seen.moved[at]:.0%} of what the picture shows is elsewhere in frame {numbers[at + 1]} and {seen.still[at]:.0%} in place"
        raise ValueError(f"exo_camera_moves: {name}: {told}; the camera has to stand still: choose another part of the video (--start)")
    lost = f"frame {numbers[int(gone.nonzero()[0]) + 1]} of {name} shows next to nothing of" if bool(gone.any()) else ""
    warned = [f"{lost} what its first or the one before shows: is the lens covered, the scene cut, or the camera moved?"] if lost else []
    return {"still": float(seen.still.min())}, warned


def of_path(clip: dict) -> tuple[dict, list[str]]:
    """Whether the head is upright, before the camera and in its picture: what was measured, warnings."""
    T = T_exo_shown(clip)
    seen, roll = plausible.head_seen(T, views.exo_camera(clip)), plausible.roll(T)
    swing = plausible.swing(torch.from_numpy(unpack(clip["T_world_ego"])))
    away = T[:, :3, 3].norm(dim=-1)
    warned = []
    if abs(roll) > ON_ITS_SIDE:
        how = "is upside down" if abs(roll) > UPSIDE_DOWN else "lies on its side"
        up = "the exo picture's, which is taken to be up as the camera stands"
        advice = "poses of Aria's sensor are a quarter turn off; a quaternion's w comes last"
        warned.append(f"the head {how}: its up is {abs(roll):.0f} degrees from {up}. Look at the axes in the picture; {advice}")
    if swing > INVERTED:
        what = f"the path moves {swing:.1f} times as far as its inverse, and a head that turns moves less than the room does about it"
        warned.append(f"{what}. If these poses take the world (or the exo camera) to the head, invert them")
    if 2 * int(seen.inside.sum()) < len(T):
        where = "is behind the exo camera" if bool((T[:, 2, 3] < 0).all()) else "is not in the exo picture"
        when = f"in {int((~seen.inside).sum())} of {len(T)} frames"
        advice = "look at the lens, at the clip and the frame that the path is of, and whether poses are inverse"
        warned.append(f"the head {where} {when}: {advice}")
    measured = {"roll": roll, "swing": None if math.isnan(swing) else swing, "head_in_picture": int(seen.inside.sum())}
    return {**measured, "from_camera": [float(away.min()), float(away.max())]}, warned


def of_depth(clip: dict, row: dict, files: bool) -> tuple[dict, list[str]]:
    """Whether depth fits the pictures and, where a path is known, the head: what was measured, warnings. ValueError where `files` of depth
    are another video's."""
    depth, static = torch.from_numpy(unpack_depth(row["depth"])), torch.from_numpy(unpack(row["static"]))
    frames = torch.from_numpy(views.read_exo(clip, (depth.shape[2], depth.shape[1])))
    agree = plausible.edges_agree(frames, depth)
    middle = float(depth[depth > 0].median())
    if files and agree < EDGES:
        told = f"edges of {clip['depth_path']} lie on those of the pictures hardly more than by chance ({agree:.2f}; chance is 0.5)"
        raise ValueError(f"depth_sidecar_invalid: {told}: it is another video's, or another part's, or turned")
    if not DISTANT[0] <= middle <= DISTANT[1]:
        told = f"half of the depth is beyond {middle:.4g} m, where {DISTANT[0]:g} to {DISTANT[1]:g} is sensible"
        raise ValueError(f"depth_scale: {told}: metres are asked for")
    measured = {"depth_edges": None if math.isnan(agree) else agree, "depth_median": middle}
    if clip["T_world_ego"] is None:
        return measured, []
    camera = views.exo_camera(clip).rescale(depth.shape[2], depth.shape[1])
    seen, scale = plausible.head_seen(T_exo_shown(clip), camera), row["head_scale"]
    shares = plausible.stir(seen, ~static)[seen.inside]
    warned = []
    moved = float((seen.at - seen.at[:1]).norm(dim=-1)[seen.inside].max() / seen.radius.median()) if len(shares) else 0.0
    if len(shares) and moved > 1 and float(shares.max()) < STIRS:
        warned.append("nothing moves in the exo picture where the head is said to be: look at the lens, the path's times and its clip")
    if scale is None and len(shares):
        warned.append(
            "the depth is not checked: it is unknown, or far too near, where the head is said to be; look at the units and the picture"
        )
    if scale is not None and not RIGHT[0] <= scale <= RIGHT[1]:
        cure = "scale it, name the focal length that its network was told (--depth-focal), or look at the lens and the path"
        warned.append(f"the depth of the head is {scale:.2f} times its distance: {cure}")
    stir = float(shares.max()) if len(shares) else None
    return {"head_scale": scale, "head_stirs": stir, **measured}, warned


def picture(rows: dict[str, dict], height: int = 300) -> bytes:
    """PNG: the exo view with the head and its axes drawn in, depth, prior, hands and their maps where the method has them, and the result,
    for the first, middle and last frame."""
    clip = rows["clips"]
    camera = views.exo_camera(clip)
    camera = camera.rescale(round(camera.width * height / camera.height), height)
    exo = views.read_exo(clip, (camera.width, height))
    if clip["T_world_ego"] is not None:
        T = T_exo_shown(clip)
    else:
        T = inverse(torch.from_numpy(unpack(rows["alignments"]["T_ego_exo"]))) @ inverse(T_shown_sensor(views.ego_camera(clip).turns))
    for number, frame, pose in zip(views.frame_numbers(clip), exo, T, strict=True):
        axes = pose[:3, :3].T * AXIS * pose[:3, 3].norm()
        ends = torch.cat((pose[:3, 3][None], pose[:3, 3] + axes))
        pixels, inside = camera.project(ends)
        points = [tuple(round(v) for v in point) for point in pixels.tolist()]
        for name, colour, end, seen in zip("xyz", ((230, 60, 60), (60, 200, 60), (80, 130, 255)), points[1:], inside[1:], strict=True):
            if inside[0] and seen:
                cv2.arrowedLine(frame, points[0], end, colour, 2, cv2.LINE_AA, tipLength=0.2)
                cv2.putText(frame, name, end, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
        if inside[0]:
            cv2.circle(frame, points[0], 4, (255, 255, 255), 2, cv2.LINE_AA)
        told = f"frame {number}" + ("" if inside[0] else ": the head is not in this picture")
        cv2.putText(frame, told, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    shown = {"exo, head": exo}
    if "depth" in rows:
        shown["depth"] = np.stack([stills.depth_picture(z) for z in unpack_depth(rows["depth"]["depth"])])
    if "priors" in rows:
        holes, valid, _ = views.read_prior(clip, rows["priors"])
        shown["prior"] = stills.show_holes(holes, valid)
    if "hands" in rows:
        joints = torch.from_numpy(unpack(rows["hands"]["joints_exo"]))
        shown["hands"] = np.stack([stills.over(frame, pose_map(one, camera)) for frame, one in zip(exo, joints, strict=True)])
    if "sparse" in rows:
        holes, valid, _ = views.read_prior(clip, rows["sparse"])
        shown["sparse map"], shown["pose map"] = stills.show_holes(holes, valid), video.decode(rows["sparse"]["pose"])
    shown["result"] = video.decode(rows["generations"]["video"])
    return stills.png(stills.contact_sheet(shown, [0, len(exo) // 2, len(exo) - 1], height))
