"""Token directions as the code released with EgoX computes them for inference: for its published adapter, which knows no others.

They are wrong: on the Aria lens the ego rays are 12° off in the mean and 50° at most, 17° in the middle of the picture; the exo rays,
a pinhole's, 5° in the mean and 7° at most. `kernels/directions` is what everything else should use. Here as there:

    ego   the 512 px virtual camera's K divided by 8 (for a picture of 448 px), a distortion of Aria's SLAM camera in an order that
          OpenCV reads otherwise; rays at the latent grid's integers, turned with the picture, 2×2 averaged
    exo   every fourth frame's depth on pinhole rays of the annotations' K, the point map averaged over the 2×2 pixels in the middle
          of every 8×8, seen from the query frame's centre, 2×2 averaged

Two differences remain. The released code leaves the means of unit vectors unnormalised, here they are unit vectors (measured in
tests/kernels/test_directions_released.py: lengths from 0.999 for ego rays; most exo tokens above 0.99). Its depth is along the optical
axis, ours along the ray, and is projected onto the axis by our lens.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from egomill.kernels.cameras import ARIA_TURNS, Camera
from egomill.kernels.directions import inverse_distance_point, offsets
from egomill.kernels.exo_lens import SIZE, undistorted_focal
from egomill.kernels.patches import LATENT, TEMPORAL, grid
from egomill.kernels.poses import rotate, transform

_EGO_FOCAL, _EGO_CENTRE, _EGO_PICTURE = 150.0, 255.5, 448
_EGO_DISTORTION = (
    *(-0.0234, 0.0939, -0.0609, 0.00533, 0.00334, -0.000636),
    *(0.000509, -0.000475, -0.00113, -0.000257, 0.0000933, 0.0000942),
)


def latent_centres(T_world_ego: Tensor) -> Tensor:
    """Ego centre of every latent frame [f, 3], metres: that of every fourth frame. Poses [F, 4, 4]."""
    return T_world_ego[::TEMPORAL, :3, 3]


def ego_rays(size: int, T_world_ego: Tensor) -> tuple[Tensor, Tensor]:
    """World directions of the ego tokens: unit rays [f, h, w, 3] and valid [f, h, w] (all) for a square picture of `size` px, whatever
    its lens. Poses [F, 4, 4].
    """
    _, n, _ = grid(1, size, size, LATENT)
    scale = size / _EGO_PICTURE / LATENT
    K = np.array([[_EGO_FOCAL * scale, 0, _EGO_CENTRE * scale], [0, _EGO_FOCAL * scale, _EGO_CENTRE * scale], [0, 0, 1]])
    pixels = np.stack(np.meshgrid(np.arange(float(n)), np.arange(float(n))), axis=-1)
    flat = torch.from_numpy(cv2.undistortPoints(pixels.reshape(-1, 1, 2), K, np.array(_EGO_DISTORTION)).reshape(n, n, 2))
    rays = normalize(torch.nn.functional.pad(flat, (0, 1), value=1.0), dim=-1).rot90(-ARIA_TURNS)
    pooled = rays.reshape(n // 2, 2, n // 2, 2, 3).mean(dim=(1, 3)).to(T_world_ego)
    turned = rotate(T_world_ego[::TEMPORAL], pooled.reshape(1, -1, 3)).reshape(-1, n // 2, n // 2, 3)
    return normalize(turned, dim=-1), torch.ones(turned.shape[:3], dtype=torch.bool, device=turned.device)


def exo_points(depth: Tensor, camera: Camera, T_world_exo: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """One world point per exo token [f, h, w, 3], metres, and valid [f, h, w]; arguments as for kernels/directions.exo_points."""
    grid(*depth.shape)  # or ValueError
    points, known = _point_map(depth[::TEMPORAL], camera)
    points = transform(T_world_exo.to(depth), points)
    mean, number = _mean_2x2(offsets(points, centres.mean(dim=0)), known)
    return inverse_distance_point(mean, number > 0, centres.mean(dim=0))


def pinhole(camera: Camera) -> Camera:
    """The pinhole that the released code takes for an exo camera: the annotations' K, which is that of the undistorted picture, centred."""
    if camera.model == "pinhole":
        focal_x, focal_y = camera.params[:2]
    else:
        scale = camera.height / SIZE[1]
        focal_y = undistorted_focal(camera.params[1] / scale, camera.params[4:]) * scale
        focal_x = focal_y * camera.params[0] / camera.params[1]
    return replace(camera, model="pinhole", params=(focal_x, focal_y, camera.width / 2, camera.height / 2))


def _point_map(depth: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Exo-frame points [f, H/8, W/8, 3] and known [f, H/8, W/8] from ranges [f, H, W]."""
    true, inside = camera.rays(dtype=depth.dtype, device=depth.device)
    wrong, _ = pinhole(camera).rays(dtype=depth.dtype, device=depth.device)
    known = inside & depth.isfinite() & (depth > 0)
    along = torch.where(known, depth, 1) * true[..., 2]
    points = along[..., None] * (wrong / wrong[..., 2:])
    middle = slice(LATENT // 2 - 1, LATENT // 2 + 1)
    cells = (t.unflatten(2, (-1, LATENT)).unflatten(1, (-1, LATENT))[:, :, middle, :, middle] for t in (points, known))
    mean, number = _mean_2x2(*(cell.flatten(3, 4).flatten(1, 2) for cell in cells))
    return mean, number > 0


def _mean_2x2(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    values, known = (t.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)) for t in (values, known))
    number = known.sum(dim=(2, 4))
    return (values * known[..., None]).sum(dim=(2, 4)) / number.clamp_min(1)[..., None], number
