"""Where each token looks: the unit directions that geometry-guided attention compares (EgoX 3.3, App. F.1).

For ego query frame i the paper compares the direction from the ego centre c_i to an ego pixel's point (its ray, whatever its depth)
with the direction from c_i to an exo pixel's point. A token stands for 4 x 16 x 16 pixels; its direction is the mean of its pixels'
unit vectors, renormalised. Validity says which tokens have any. `temporal` and `token` are the base's, where they are others.

The exo directions differ for every query frame: f tables of f x h x w vectors. The compact form keeps one point a token instead. From
the clip's mean centre m it lies in the exact mean direction, at the harmonic mean distance: the derivative of a unit vector p/|p| by a
shift of the centre goes with 1/|p|, so that the mean of the tokens' directions and the direction of this point agree to first order
when the centre moves. Measured error: see tests/kernels/test_directions.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from egomill.kernels.cameras import Camera
from egomill.kernels.patches import TEMPORAL, TOKEN, grid, pool, spans
from egomill.kernels.poses import rotate, transform


def latent_centres(T_world_ego: Tensor, temporal: int = TEMPORAL) -> Tensor:
    """Ego centre of every latent frame [f, 3] in metres: the mean over the frames that it covers. Poses [F, 4, 4]."""
    centres = T_world_ego[:, :3, 3]
    return torch.stack([centres[span.start : span.stop].mean(dim=0) for span in spans(len(centres), temporal)])


def ego_rays(camera: Camera, T_world_ego: Tensor, token: int = TOKEN, temporal: int = TEMPORAL) -> tuple[Tensor, Tensor]:
    """World directions of the ego tokens: unit rays [f, h, w, 3] and valid [f, h, w] (some pixel of the cell is inside the lens). Poses
    [F, 4, 4].

    The mean over a cell's frames of the turned mean ray is the mean of all its rays, because turning is linear.
    """
    rays, inside = camera.rays(dtype=T_world_ego.dtype, device=T_world_ego.device)
    mean, weight = pool(rays[None], inside[None].to(rays.dtype), token, temporal)
    turned = rotate(T_world_ego, mean[0].reshape(1, -1, 3))
    cells = torch.stack([turned[span.start : span.stop].mean(dim=0) for span in spans(len(T_world_ego), temporal)])
    cells = cells.reshape(len(cells), *mean.shape[1:])
    valid = (weight > 0).expand(cells.shape[:3])
    return torch.where(valid[..., None], normalize(cells, dim=-1), 0), valid


def _over_cells(
    depth: Tensor, camera: Camera, T_world_exo: Tensor, measure: Callable[[Tensor], Tensor], token: int = TOKEN, temporal: int = TEMPORAL
) -> tuple[Tensor, Tensor]:
    """Mean over each token's known pixels of measure(world points [H, W, 3]) -> [H, W, C]; [f, h, w, C] and the number of pixels [f, h,
    w]. A frame at a time."""
    frames, height, width = depth.shape
    if (height, width) != (camera.height, camera.width):
        raise ValueError(f"depth {height}x{width} is not the exo camera's {camera.height}x{camera.width}")
    grid(frames, height, width, token, temporal)
    rays, inside = camera.rays(dtype=depth.dtype, device=depth.device)
    sums, counts = [], []
    for span in spans(frames, temporal):
        total: Tensor | float = 0.0
        count: Tensor | float = 0.0
        for frame in span:
            known = inside & depth[frame].isfinite() & (depth[frame] > 0)
            points = transform(T_world_exo.to(depth), rays * torch.where(known, depth[frame], 1)[..., None])
            mean, weight = pool(measure(points)[None], known[None].to(depth.dtype), token, temporal)
            total, count = total + mean[0] * weight[0, ..., None], count + weight[0]
        sums.append(total)
        counts.append(count)
    number = torch.stack(counts)
    return torch.stack(sums) / number.clamp_min(1)[..., None], number


def exo_directions_exact(depth: Tensor, camera: Camera, T_world_exo: Tensor, centres: Tensor) -> Tensor:
    """The reference: unit directions [q, f, h, w, 3] from each centre [q, 3] to the exo tokens; zero where a token has no depth.

    Depth [F, H, W] in metres along the ray (0 or NaN unknown), pose [4, 4]. ValueError where the depth is not of the camera's size. q
    passes over all pixels.
    """
    tables = []
    for centre in centres:
        mean, _ = _over_cells(depth, camera, T_world_exo, lambda points, c=centre: normalize(points - c, dim=-1))
        tables.append(normalize(mean, dim=-1))
    return torch.stack(tables)


def exo_points(
    depth: Tensor, camera: Camera, T_world_exo: Tensor, centres: Tensor, token: int = TOKEN, temporal: int = TEMPORAL
) -> tuple[Tensor, Tensor]:
    """The compact form: one world point per exo token [f, h, w, 3], metres, and valid [f, h, w]; arguments as for exo_directions_exact.

    Where a token has no depth the point is zero. A pixel whose depth puts it within 5 cm of the centre counts as 5 cm away.
    """
    middle = centres.mean(dim=0)
    mean, number = _over_cells(depth, camera, T_world_exo, lambda points: offsets(points, middle), token, temporal)
    return inverse_distance_point(mean, number > 0, middle)


def offsets(points: Tensor, centre: Tensor) -> Tensor:
    """[..., 4]: unit vectors from a centre to points [..., 3] and inverse distances; a point nearer than 5 cm counts as 5 cm away."""
    offset = points - centre
    distance = offset.norm(dim=-1, keepdim=True).clamp_min(0.05)
    return torch.cat([offset / distance, 1 / distance], dim=-1)


def inverse_distance_point(mean: Tensor, valid: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """(points [..., 3], valid): in the mean direction, at the harmonic mean distance, of means [..., 4] of `offsets`; else zero."""
    points = centre + normalize(mean[..., :3], dim=-1) / mean[..., 3:].clamp_min(1e-6)
    return torch.where(valid[..., None], points, 0), valid


def exo_directions(points: Tensor, centres: Tensor) -> Tensor:
    """Directions [q, f, h, w, 3] from each centre [q, 3] to the compact points [f, h, w, 3]. Mask with the points' validity."""
    return normalize(points[None] - centres[:, None, None, None, :], dim=-1)
