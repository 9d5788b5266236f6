"""The true exo lens of Ego-Exo4D from the matrix that its pose annotations give.

`camera_pose/*.json` (and EgoX's meta.json, taken from it) holds for every exo camera a K and four Kannala-Brandt coefficients. The
coefficients are those of the lens; the K is not: it belongs to the *undistorted* picture in which the annotators drew, and was made by
cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(K_lens, D, (3840, 2160), balance=0.8). The videos are distorted, so K_lens is
needed, and is found here by undoing that function: 1248 px in the file are 1769 px of lens, a horizontal field of view of 115 degrees
and not 157.

Evidence, on the real take cmu_bike08_2: of the SIFT matches between its exo cameras' pictures, 12 % satisfy the epipolar constraint
within 0.25 degrees with this lens and 1 % (chance) with the file's K; the wearer's head, triangulated from four views, falls on the ego
pose within about 10 cm, otherwise 40 cm off. See also Ego4d issue 331. `gopro_calibs.csv`, where a take brings it, holds the lens
itself and needs none of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch

from egomill.kernels.cameras import Camera

BALANCE = 0.8
SIZE = (3840, 2160)


@cache
def undistorted_focal(focal: float, distortion: tuple[float, ...], size: tuple[int, int] = SIZE, balance: float = BALANCE) -> float:
    """Focal length of the undistorted picture that OpenCV proposes for a centred Kannala-Brandt lens of `focal` px; inf where the
    picture has rays at 90 degrees.

    OpenCV undistorts the middles of the four sides, and mixes the focal length at which the wider pair touches its sides (balance 1)
    with that of the other (0).
    """
    width, height = size
    camera = Camera("kannala_brandt", (focal, focal, width / 2, height / 2, *distortion), width, height, max_theta=math.radians(89.9))
    middles = torch.tensor([[0.0, height / 2], [width / 2, 0.0]], dtype=torch.float64)
    rays, valid = camera.unproject(middles)
    if not valid.all():
        return math.inf
    across = float(-rays[0, 0] / rays[0, 2]), float(-rays[1, 1] / rays[1, 2])
    candidates = width / 2 / across[0], height / 2 / across[1]
    return balance * min(candidates) + (1 - balance) * max(candidates)


@cache
def lens_focal(undistorted: float, distortion: tuple[float, ...], size: tuple[int, int] = SIZE, balance: float = BALANCE) -> float:
    """The lens' focal length in px of which `undistorted` is the undistorted one, by bisection to 1e-6 px.

    Raises ValueError where no focal length between a sixth and four times the picture's width answers.
    """
    low, high = size[0] / 6, size[0] * 4.0

    def excess(focal: float) -> float:
        value = undistorted_focal(focal, distortion, size, balance)
        return -math.inf if math.isinf(value) else value - undistorted

    if not excess(low) < 0 < excess(high):
        raise ValueError(f"no lens of {size[0]}x{size[1]} has an undistorted focal length of {undistorted} px with {tuple(distortion)}")
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return (low + high) / 2


def exo_lens(matrix: Sequence[Sequence[float]], distortion: tuple[float, ...], size: tuple[int, int] = SIZE) -> Camera:
    """The camera of the distorted exo picture from the annotations' K (3x3, of the undistorted picture) and coefficients; rescale it to
    the video's size.

    Raises ValueError where the K is not centred (it was not made that way, then) or fits no lens.
    """
    width, height = size
    if abs(matrix[0][2] - width / 2) > 2 or abs(matrix[1][2] - height / 2) > 2:
        raise ValueError(f"K of an undistorted {width}x{height} picture is centred, not at ({matrix[0][2]}, {matrix[1][2]})")
    fx, fy, k = float(matrix[0][0]), float(matrix[1][1]), tuple(map(float, distortion))
    focal = lens_focal(fx, k, size)
    return Camera("kannala_brandt", (focal, focal * fy / fx, matrix[0][2], matrix[1][2], *k), width, height)
