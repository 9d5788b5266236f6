"""Plücker maps: where every latent pixel of the ego view looks from, and to, in each exo camera's frame (Exo2EgoSyn's PoseInj).

A ray through o in the unit direction d is the pair (o × d, d), moment first. The moment is that of every point of the ray, m = p × d: the
pair says which line of the room a pixel sees, and nothing of how far. For exo view v and ego frame t

    T_exo_ego = T_world_exo⁻¹ T_world_ego = [R | o],        P(r) = (o × R r / s, R r)

r is the mean unit ray of a latent pixel's pixels through the calibrated lens, in the sensor's frame, to which the poses refer: nothing is
turned a second time. The paper says "Plücker embeddings of the relative exo-to-ego camera poses"; one set for each view, the exo cameras'
frames as anchors, metres for s, and the packing in time are our reading.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from egomill.kernels.cameras import Camera
from egomill.kernels.patches import LATENT, TEMPORAL, latent_frames, pool
from egomill.kernels.poses import inverse, rotate

CHANNELS = 6


def plucker(T_a_b: Tensor, rays: Tensor) -> Tensor:
    """Unit rays [N, 3] from the origin of frame b, as lines of frame a: [..., N, 6], moment (metres) and direction. Poses [..., 4, 4]."""
    direction = rotate(T_a_b, rays)
    moment = torch.linalg.cross(T_a_b[..., None, :3, 3].expand_as(direction), direction)
    return torch.cat([moment, direction], dim=-1)


def cell_rays(camera: Camera, cell: int = LATENT) -> tuple[Tensor, Tensor]:
    """Unit rays [h, w, 3] of the cells of a stored picture, float64, in the sensor's frame, and inside [h, w]: some pixel of the cell lies
    within the lens; others have zero rays. ValueError where the picture is no multiple of the cell."""
    rays, inside = camera.rays(dtype=torch.float64)
    mean, weight = pool(rays[None], inside[None].double(), cell)
    return normalize(mean[0], dim=-1), weight[0] > 0


def maps(
    camera: Camera, T_world_ego: Tensor, T_world_exo: Tensor, cell: int = LATENT, temporal: int = TEMPORAL, scale: float = 1.0
) -> Tensor:
    """The maps of all views [6·t·V + 1, f, h, w] float32, for ego poses [F, 4, 4] and exo poses [V, 4, 4] of one world.

    Channel (v·t + j)·6 + c is component c of the j-th frame that a latent frame covers, seen from view v, in the order of the exo poses. A
    causal codec's latent frame 0 covers frame 0 alone, which stands there t times. The last channel is 1 where a cell lies within the lens;
    outside all are 0. `scale`: metres that count as one in a moment.

    Errors: ValueError without a view, or where frames or picture do not divide into cells.
    """
    f = latent_frames(len(T_world_ego), temporal)
    if not len(T_world_exo):
        raise ValueError("rays relative to no exo view: a clip has one at least")
    rays, inside = cell_rays(camera, cell)
    h, w = inside.shape
    T_exo_ego = inverse(T_world_exo.double())[:, None] @ T_world_ego.double()
    lines = plucker(T_exo_ego, rays.reshape(-1, 3))  # [V, F, h·w, 6]
    lines[..., :3] /= scale
    lines = torch.cat([lines[:, :1].expand(-1, temporal - 1, -1, -1), lines], dim=1)
    packed = lines.reshape(len(lines), f, temporal, h, w, CHANNELS).permute(0, 2, 5, 1, 3, 4).flatten(0, 2)
    return torch.cat([packed, inside.expand(1, f, h, w)]).float()
