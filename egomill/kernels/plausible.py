"""Whether a fixed camera's video, a head's path and depth belong together: plain numbers, for the checks on inputs of one's own.

Each number is made so that right inputs and the usual wrong ones lie far apart; the figures that say so stand beside it. Paths are
T_exo_ego [F, 4, 4] of the ego picture as it is shown (x right, y down, z forward), in the frame of the exo camera, metres.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from egomill.kernels.cameras import Camera
from egomill.kernels.poses import inverse
from egomill.kernels.quality import grey

AWAY = 0.01  # of the picture's height, by which a corner that stands still may be displaced: noise is a hundredth of that
BACK = 0.5  # px by which a corner that was followed forth and back may miss itself
FEWEST = 30  # corners that tell
HEAD = 0.25  # metres around the lens within which a head, hair and shoulders are seen
JUMP = 0.1  # of the depth, from one pixel to the next but one: an edge


class Standing(NamedTuple):
    """Per frame but the first [F-1], of the corners in the picture before: the share still in place, and that seen elsewhere. The rest is
    lost."""

    still: Tensor
    moved: Tensor


def standing(video: Tensor, rows: int = 224) -> Standing | None:
    """Whether the camera of a video uint8 [F, H, W, 3] stands still: its corners are followed, forth and back. None where they are too few.

    From the first frame to each, which shows a slow pan, and from each to its next, which shows a fast one; the smaller share counts. On 23
    windows of real fixed cameras `still` was 0.63 at least and `moved` 0.15 at most; on head cameras, pans and zooms 0.02 at most and 0.2
    at least. Brightness is evened out first. A crowd that fills the picture would be taken for motion.
    """
    pictures = [cv2.equalizeHist((picture * 255).to(torch.uint8).numpy()) for picture in grey(video, rows)]
    shares = [_followed(a, b) for a, b in [*((pictures[0], p) for p in pictures[1:]), *pairwise(pictures)]]
    if None in shares:
        return None
    first, following = torch.tensor(shares, dtype=torch.float64).reshape(2, -1, 2)
    fewer = following[:, :1] < first[:, :1]
    return Standing(*torch.where(fewer, following, first).T)


def _followed(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Shares of a's corners that are in place in b, and that are elsewhere."""
    corners = cv2.goodFeaturesToTrack(a, 400, 0.01, 8)
    if corners is None or len(corners) < FEWEST:
        return None
    there, found, _ = cv2.calcOpticalFlowPyrLK(a, b, corners, None, maxLevel=4)  # type: ignore[call-overload]
    back, again, _ = cv2.calcOpticalFlowPyrLK(b, a, there, None, maxLevel=4)  # type: ignore[call-overload]
    miss, way = (np.linalg.norm((other - corners)[:, 0], axis=1) for other in (back, there))
    sure = (found[:, 0] > 0) & (again[:, 0] > 0) & (miss < BACK)
    near = way < AWAY * len(a)
    return float((sure & near).mean()), float((sure & ~near).mean())


def roll(T_exo_ego: Tensor) -> float:
    """Degrees, the median of the path: by how much the ego picture is rolled against the exo picture (0 upright, ±90 on its side).

    A standing exo camera's -y is up, but for its tilt; that tilt, and a head that looks steeply down, cost some tens of degrees. Right
    poses of three real clips: 22 at most, of eight simulated takes 48; poses of the sensor on those real clips: 69 at least.
    """
    right, up = T_exo_ego[:, 1, 0], T_exo_ego[:, 1, 1]  # exo's up is -y: its products with x, and with -y
    middle = torch.stack([-right.median(), up.median()])  # not of angles, which end at 180
    return float(torch.rad2deg(torch.atan2(middle[0], middle[1])))


def swing(T: Tensor) -> float:
    """Way of the path T_a_b [N, 4, 4] over that of its inverse. A head that turns goes less far than the room does about it: right poses
    0.15 to 0.59 on real clips, and to 1.56 on simulated takes, where somebody walks without turning; inverse ones 1.7 to 6. NaN where
    neither goes anywhere.
    """
    way, other = ((pose[1:, :3, 3] - pose[:-1, :3, 3]).norm(dim=-1).sum() for pose in (T, inverse(T)))
    return float(way / other) if max(way, other) > 0.05 else float("nan")


class Seen(NamedTuple):
    """The head in the exo picture: centres [F, 2] in px, radius [F] in px, whether it is inside [F]."""

    at: Tensor
    radius: Tensor
    inside: Tensor


def head_seen(T_exo_ego: Tensor, camera: Camera) -> Seen:
    """Where the exo `camera` sees the head."""
    centre = T_exo_ego[:, :3, 3]
    at, inside = camera.project(centre)
    beside, _ = camera.project(centre + torch.tensor([HEAD, 0, 0], dtype=centre.dtype))
    return Seen(at, (beside - at).norm(dim=-1).clamp(2.0, camera.height / 2), inside)


def stir(seen: Seen, dynamic: Tensor) -> Tensor:
    """Share [F] of dynamic [F, H, W] where the head is seen; NaN where it is not. A wearer whose head moves by more than its own size is
    dynamic there: 0.47 to 1 on real clips, 0 to 0.2 by a wrong lens or by another clip's poses."""
    rows, columns = torch.meshgrid(torch.arange(dynamic.shape[1]), torch.arange(dynamic.shape[2]), indexing="ij")
    share = torch.full((len(dynamic),), torch.nan)
    for n in seen.inside.nonzero().flatten().tolist():
        within = (columns - seen.at[n, 0]) ** 2 + (rows - seen.at[n, 1]) ** 2 < seen.radius[n] ** 2
        share[n] = dynamic[n][within].float().mean()
    return share


def edges_agree(video: Tensor, depth: Tensor) -> float:
    """How well edges of depth [F, H, W] (0 unknown) lie on edges of the pictures uint8 [F, H, W, 3]: the mean rank, among a picture's
    pixels, of the contrast at the depth's jumps. 0.5 is chance. NaN where depth has next to no jumps.

    Own depth of three real clips 0.73 to 0.80, of simulated takes 0.81 and more; other clips' 0.48 to 0.58, a turned one 0.61.
    """
    found = []
    for picture, z in zip(grey(video), depth, strict=True):
        contrast = _gradient(cv2.GaussianBlur(picture.numpy(), (0, 0), 1.0))
        known = (z > 0).numpy()
        jump = _gradient(np.log(np.where(known, z.numpy(), 1))) > JUMP
        jump &= cv2.erode(known.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if jump.mean() > 0.005:
            rank = contrast.ravel().argsort().argsort().reshape(contrast.shape) / contrast.size
            found.append(rank[jump].mean())
    return float(np.mean(found)) if found else float("nan")


def _gradient(picture: np.ndarray) -> np.ndarray:
    """Size of the central difference [H, W], a change over two pixels."""
    kernel = np.array([[-1, 0, 1]], np.float32)
    return np.hypot(cv2.filter2D(picture, cv2.CV_32F, kernel), cv2.filter2D(picture, cv2.CV_32F, kernel.T))
