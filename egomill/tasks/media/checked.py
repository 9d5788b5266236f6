"""What every layout of a data set asks of a take: videos that agree, a head's path without gaps and leaps, exo cameras that see it.

A fault of one exo camera keeps that one out (`leaving_out`); with none left the take is rejected by the reason of most.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egomill.kernels import poses
from egomill.kernels.cameras import Camera
from egomill.schemas.config import Ingest
from egomill.tasks.media import video
from egomill.tasks.media.annotations import check_lens, check_reach, or_none
from egomill.tasks.media.untrusted import Bad

MAX_TURN = 1.0  # rad between two frames; a head turns by 0.3 at most at 30 fps


def agree(settings: Ingest, infos: dict[str, video.VideoInfo]) -> None:
    """Bad where two videos' lengths differ by more than the slack, or their rates by more than 1 %."""
    lengths = {Path(name).name: info.frames for name, info in infos.items()}
    rates = {Path(name).name: info.fps for name, info in infos.items()}
    if max(lengths.values()) - min(lengths.values()) > settings.frame_slack:
        raise Bad("frame_counts_disagree", json.dumps(lengths))
    if max(rates.values()) > 1.01 * min(rates.values()):
        raise Bad("frame_counts_disagree", "rates " + json.dumps(rates))


def head(settings: Ingest, extrinsics: dict[int, Any], frames: int) -> np.ndarray:
    """T_world_ego [frames, 4, 4] from world-to-camera matrices by frame; short gaps interpolated, NaN where unknown."""
    if extrinsics and max(extrinsics) >= frames + settings.frame_slack:
        raise Bad("poses_disagree", f"a pose for frame {max(extrinsics)}, the videos have {frames}")
    T = torch.full((frames, 4, 4), torch.nan, dtype=torch.float64)
    for frame, value in extrinsics.items():
        matrix = or_none(value, frame)
        if matrix is None or frame >= frames:
            continue
        T_ego_world = poses.from_rt(torch.from_numpy(matrix))
        if not poses.is_rigid(T_ego_world):
            raise Bad("rotation_invalid", f"ego, frame {frame}")
        T[frame] = poses.inverse(T_ego_world)
    T = poses.fill_gaps(T, settings.max_pose_gap)
    known = torch.isfinite(T).all(dim=-1).all(dim=-1)
    if known.sum() < settings.min_pose_coverage * (frames - settings.frame_slack):  # the release ends two poses early
        last = int(known.nonzero().max()) + 1 if known.any() else 0
        inner = known[:last].double().mean() if last else 0.0
        reason = "poses_disagree" if inner >= settings.min_pose_coverage else "pose_gaps"
        raise Bad(reason, f"ego poses for {int(known.sum())} of {frames} frames, the last for frame {last - 1}")
    return T.numpy()


def check_steps(settings: Ingest, T_world_ego: np.ndarray) -> None:
    """Bad where the head leaps between two frames."""
    leaps = poses.jumps(torch.from_numpy(T_world_ego), settings.max_step, MAX_TURN).nonzero().flatten()
    if len(leaps):
        raise Bad("pose_jumps", f"ego, between frames {int(leaps[0]) - 1} and {int(leaps[0])}; {len(leaps)} in all")


@contextmanager
def leaving_out(left: dict[str, list[str]], cam: str):
    """What is wrong with one exo camera keeps it out, and no more."""
    try:
        yield
    except Bad as bad:
        left[cam] = [bad.rejected.reason, bad.rejected.detail]
    except video.VideoError as error:
        left[cam] = [error.reason, str(error)]


def seen_by(settings: Ingest, exo: dict[str, dict], left: dict[str, list[str]], T_world_ego: np.ndarray) -> dict[str, dict]:
    """The exo cameras within reach of the head; others are left out. Bad where none is left, by the reason of most, or the head leaps."""
    for cam, view in exo.items():
        with leaving_out(left, cam):
            check_reach(known(T_world_ego), {cam: view})
    exo = {cam: view for cam, view in exo.items() if cam not in left}
    if not exo:
        raise _none_left(left)
    check_steps(settings, T_world_ego)
    return exo


def _none_left(left: dict[str, list[str]]) -> Bad:
    """What a take is rejected with whose exo cameras are all left out: the reason of most."""
    reason = Counter(reason for reason, _ in left.values()).most_common(1)[0][0]
    return Bad(reason, "; ".join(f"{cam}: {'' if why == reason else why + ': '}{detail}" for cam, (why, detail) in left.items()))


def known(T_world_ego: np.ndarray) -> np.ndarray:
    """Where the head is [n, 3], in the frames of which that is known."""
    return T_world_ego[np.isfinite(T_world_ego).all(axis=(1, 2)), :3, 3]


def exo_entry(path: str, camera: Camera, T_world_exo: np.ndarray, depth: str | None, kind: str | None, told: float = 1.0) -> dict:
    """What a take says of an exo camera: its video, lens, pose, and depth on disk of a kind that media/sidecar.py knows."""
    check_lens(camera, path)
    depth_is = {"depth": depth, "depth_kind": kind, "depth_focal": told}
    return {"video": path, "camera": camera.to_dict(), "T_world_exo": T_world_exo.tolist(), **depth_is}
