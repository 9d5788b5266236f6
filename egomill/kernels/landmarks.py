"""Static points of the room with known places, triangulated from pictures of a camera whose path is known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from egomill.kernels.cameras import Camera
from egomill.kernels.poses import rotate

CORNERS = 1000  # looked for in a picture
AGAIN = 8  # frames after which new ones are looked for
APART = 5  # px between corners
BACK = 0.5  # px by which a corner may miss itself when it is followed back


def follow(frames: ndarray, disc: ndarray) -> ndarray:
    """Tracks [N, F, 2] (stored pixels x, y; NaN where not seen) of corners through frames uint8 RGB [F, H, W, 3], within `disc` [H, W].

    A corner is followed from frame to frame (Lucas-Kanade) as long as it is found again from where it went.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    tracks = np.empty((0, len(frames), 2), np.float32)
    for now, picture in enumerate(grey):
        if now:
            live = np.flatnonzero(np.isfinite(tracks[:, now - 1, 0]))
            if len(live):
                here = tracks[live, now - 1][:, None]
                there, found, _ = cv2.calcOpticalFlowPyrLK(grey[now - 1], picture, here, here.copy(), winSize=(15, 15))
                again, back, _ = cv2.calcOpticalFlowPyrLK(picture, grey[now - 1], there, there.copy(), winSize=(15, 15))
                kept = (found[:, 0] > 0) & (back[:, 0] > 0) & (np.abs(again - here).max(axis=(1, 2)) < BACK)
                tracks[live[kept], now] = there[kept, 0]
        if now % AGAIN == 0:
            free = disc.astype(np.uint8)
            for x, y in tracks[np.isfinite(tracks[:, now, 0]), now]:
                cv2.circle(free, (round(float(x)), round(float(y))), APART, 0, -1)
            corners = cv2.goodFeaturesToTrack(picture, CORNERS, 0.01, APART, mask=free)
            if corners is not None:
                new = np.full((len(corners), len(grey), 2), np.nan, np.float32)
                new[:, now] = corners[:, 0]
                tracks = np.concatenate([tracks, new])
    return tracks


def triangulate(
    tracks: Tensor, camera: Camera, T_world_cam: Tensor, least: int = 4, parallax: float = 1.0, residual: float = 0.3
) -> Tensor:
    """World points [M, 3] float64 of those tracks [N, F, 2] (NaN where not seen) that are points at rest: seen in `least` frames, from
    directions that differ by `parallax` degrees, and every ray within `residual` degrees of the point, which lies before the camera.

    T_world_cam [F, 4, 4]. What moves (hands, people) has no point that its rays meet in.
    """
    rays, inside = camera.unproject(tracks.double().nan_to_num(0.0))
    T = T_world_cam.double()
    seen = inside & tracks.isfinite().all(dim=-1)
    ray, centre = rotate(T, rays.transpose(0, 1)).transpose(0, 1), T[:, :3, 3]
    across = (torch.eye(3, dtype=torch.float64) - ray[..., :, None] * ray[..., None, :]) * seen[..., None, None]
    normal, right = across.sum(1), (across @ centre[..., None]).sum(1)
    some = (seen.sum(1) >= least) & (torch.linalg.eigvalsh(normal)[:, 0] > 1e-9)  # parallel rays meet nowhere
    points = torch.linalg.solve(normal[some], right[some])[..., 0]
    to = torch.nn.functional.normalize(points[:, None] - centre, dim=-1)
    seen, ray = seen[some], ray[some]
    off = ((to * ray).sum(-1) < math.cos(math.radians(residual))) & seen
    cosines = torch.where(seen[:, :, None] & seen[:, None, :], to @ to.transpose(1, 2), 1.0)
    return points[~off.any(1) & (cosines.flatten(1).amin(1) < math.cos(math.radians(parallax)))]
