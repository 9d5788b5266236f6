"""How good is a clip, before any network runs: sharpness, motion, exposure, a covered lens, and how much the views see of each other.

All are plain numbers on uint8 videos [F, H, W, 3] or on cameras; curation compares them with the recipe's bounds and keeps them as
columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from egomill.kernels.cameras import Camera, T_shown_sensor
from egomill.kernels.poses import inverse, transform

LUMA = (0.299, 0.587, 0.114)


def grey(video: Tensor, height: int | None = None) -> Tensor:
    """Luma [F, h, w] in 0..1, area-reduced to about `height` rows where that is less."""
    luma = (video.float() * torch.tensor(LUMA, device=video.device)).sum(-1) / 255
    if height is None or height >= luma.shape[1]:
        return luma
    size = (height, max(1, round(luma.shape[2] * height / luma.shape[1])))
    return functional.interpolate(luma[:, None], size=size, mode="area")[:, 0]


def sharpness(video: Tensor, height: int = 224) -> Tensor:
    """Per frame [F]: variance of the Laplacian over the variance of the picture, at a common height of 224 rows. 0 for a flat picture;
    below about 0.01: blurred.

    Dividing by the contrast and fixing the size makes figures of dark and bright, large and small videos comparable.
    """
    picture = grey(video, height)[:, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=picture.device)[None, None]
    edges = functional.conv2d(picture, kernel).flatten(1).var(dim=1)
    contrast = picture.flatten(1).var(dim=1)
    return torch.where(contrast > 1e-6, edges / contrast.clamp_min(1e-6), 0)


def motion(video: Tensor, height: int = 112) -> Tensor:
    """Per step [F-1]: mean absolute change of grey (0..1) between neighbouring frames, at 112 rows, so that noise averages out. A still
    picture: below 0.003."""
    return grey(video, height).diff(dim=0).abs().mean(dim=(1, 2))


def exposure(video: Tensor, region: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Per frame [F]: share of dark (luma < 16) and of blown (luma > 240) pixels, within `region` [H, W] (a fisheye's black corners are
    not underexposed)."""
    luma = grey(video) * 255
    inside = torch.ones(luma.shape[1:], dtype=torch.bool, device=luma.device) if region is None else region
    chosen = luma[:, inside]
    return (chosen < 16).float().mean(dim=1), (chosen > 240).float().mean(dim=1)


def covered(video: Tensor, period: int, threshold: float = 0.12) -> Tensor:
    """Whether something covers a fixed camera's lens, per frame [F]: the take-separator phone, somebody who passes close by.

    A frame's disturbance is the share of its area that departs by over 12 % grey, brightness evened out, from the median picture of its
    own `period` frames and from those of the period before and after: who has moved is part of one of them, who holds something before the
    lens of none. The lens is covered where the disturbance exceeds `threshold`, and around it until it has come down to the usual (twice
    the median of these periods, and half a per cent). What stays for over half a period is not seen by this.
    """
    periods = grey(video, 28).tensor_split(max(1, round(len(video) / period)))
    flat = [part - part.flatten(1).median(dim=1).values[:, None, None] for part in periods]
    usual_pictures = [part.median(dim=0).values for part in flat]
    shares = []
    for k, part in enumerate(flat):
        change = torch.stack([(part - picture).abs() for picture in usual_pictures[max(0, k - 1) : k + 2]]).amin(dim=0)
        shares.append((change > 0.12).float().mean(dim=(1, 2)))
    usual = torch.cat([torch.cat(shares[max(0, k - 1) : k + 2]).median().expand(len(part)) for k, part in enumerate(flat)])
    share = torch.cat(shares)
    settled = share <= 2 * usual + 0.005
    run = settled.cumsum(dim=0)  # one number for frames between two that are settled
    return ~settled & torch.isin(run, run[share > threshold])


def overlap(
    exo_camera: Camera,
    T_world_exo: Tensor,
    ego_camera: Camera,
    T_world_ego: Tensor,
    near: float = 0.4,
    far: float = 4.0,
    rays: int = 24,
    steps: int = 8,
    body: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """How much two views can see of each other's space, from geometry alone: (ego_in_exo [F], facing [F]).

    ego_in_exo: share of sample points of the ego frustum (about rays x rays directions of the lens' disc, distances `near`..`far`
    metres spaced evenly in log) that fall into the exo picture. facing: the mean cosine between the two views' directions to those seen
    points, where 1 is the same side of things and -1 the opposite one. Poses: exo [4, 4], ego [F, 4, 4]. What stands in between is not
    known here, except the wearer, who is taken for an upright column (world z is up) of radius `body` metres under the head: a camera
    behind somebody's back sees the room but not the hands. It is an upper bound on the prior's coverage.
    """
    small = ego_camera.rescale(rays, rays)
    directions, inside = small.rays(dtype=T_world_ego.dtype, device=T_world_ego.device)
    distance = torch.logspace(math.log10(near), math.log10(far), steps).to(T_world_ego)
    samples = (directions[inside][:, None] * distance[:, None]).reshape(-1, 3)
    world = transform(T_world_ego, samples)
    _, seen = exo_camera.project(transform(inverse(T_world_exo.to(world)), world))
    seen = seen & ~_behind(T_world_exo[:3, 3].to(world), world, T_world_ego[:, None, :3, 3], body)
    from_ego = functional.normalize(world - T_world_ego[:, None, :3, 3], dim=-1)
    from_exo = functional.normalize(world - T_world_exo[:3, 3].to(world), dim=-1)
    cosine = torch.where(seen, (from_ego * from_exo).sum(-1), 0)
    return seen.to(world.dtype).mean(dim=1), cosine.sum(dim=1) / seen.sum(dim=1).clamp_min(1)


def azimuth(T_world_exo: Tensor, T_world_ego: Tensor, turns: int) -> float:
    """The angle in rad, from behind by the left over ahead (0) to the right, under which who wears the ego camera has an exo camera.

    Poses [4, 4], T_world_ego of the sensor; `turns` are its camera's (T_shown_sensor). In the plane across the upright picture's columns.
    """
    T_shown_exo = T_shown_sensor(turns) @ inverse(T_world_ego.double()) @ T_world_exo.double()
    x, _, z = T_shown_exo[:3, 3].tolist()
    return math.atan2(x, z)


def _behind(eye: Tensor, points: Tensor, head: Tensor, radius: float) -> Tensor:
    """[...] whether the line from `eye` [3] to points [..., 3] passes through the upright column under `head` [..., 3] before it ends."""
    way = points - eye
    along = ((head - eye)[..., :2] * way[..., :2]).sum(-1) / way[..., :2].square().sum(-1).clamp_min(1e-9)
    nearest = eye + along.clamp(0, 1)[..., None] * way
    through = ((nearest - head)[..., :2].norm(dim=-1) < radius) & (nearest[..., 2] < head[..., 2] + 0.15)
    return through & ((points - head)[..., :2].norm(dim=-1) > radius) & (along > 0) & (along < 1)


def workspace_share(exo_camera: Camera, T_world_exo: Tensor, T_world_ego: Tensor, radius: float = 1.0) -> Tensor:
    """Share [F] of the exo picture's area that the wearer's workspace takes: the picture of a ball of `radius` metres, half a metre
    before the head.

    Tells a camera that looks at the wearer from three metres from one that looks from fifteen, which `overlap` does not.
    """
    forward = T_world_ego[:, :3, 3] + 0.5 * T_world_ego[:, :3, 2]
    local = transform(inverse(T_world_exo.to(forward)), forward)
    pixels, seen = exo_camera.project(local)
    distance = local.norm(dim=-1)
    side = functional.normalize(torch.linalg.cross(local, torch.tensor([0.0, 1, 0]).to(local).expand_as(local)), dim=-1)
    rim, _ = exo_camera.project(local + side * torch.minimum(torch.full_like(distance, radius), distance / 2)[:, None])
    area = math.pi * (rim - pixels).square().sum(-1) / (exo_camera.width * exo_camera.height)
    return torch.where(seen, area.clamp_max(1), 0)


def masked_psnr(picture: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    """PSNR in dB per frame [F] of uint8 videos [F, H, W, 3], over `region` [F, H, W] or [H, W]; NaN where the region is empty, 100
    where nothing differs."""
    error = ((picture.float() - truth.float()) / 255).square().mean(dim=-1)
    inside = torch.ones_like(error, dtype=torch.bool) if region is None else region.expand_as(error)
    count = inside.flatten(1).sum(dim=1)
    mean = torch.where(inside, error, 0).flatten(1).sum(dim=1) / count
    return -10 * torch.log10(mean.clamp_min(1e-10))
