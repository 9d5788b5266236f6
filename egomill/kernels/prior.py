"""The egocentric prior: what the exo camera has seen of the room, drawn through the ego lens (EgoX 3.2).

Only what stands still is drawn: a moving person seen from outside is in the wrong place half a second later. The exo camera is fixed,
so by default the clip's room is accumulated first (median colour and depth over the frames in which a pixel is static) and drawn for
all ego frames; what the wearer's body hides in one frame is seen in another. Points on depth edges are dropped: they hang between
surfaces. The validity mask is kept; a black surface is not a hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from egomill.kernels.background import Background, accumulate
from egomill.kernels.cameras import Camera
from egomill.kernels.footprint import depth_edges, sample_extent
from egomill.kernels.poses import transform
from egomill.kernels.splat import splat

EDGE = 0.1  # of the depth


class Cloud(NamedTuple):
    """Points [N, 3] in the world, colours [N, 3] (0..255), the radius in metres [N] that each stands for."""

    points: Tensor
    colours: Tensor
    extent: Tensor


def room_cloud(room: Background, camera: Camera, T_world_exo: Tensor, edge: float = EDGE) -> Cloud:
    """A view's static surface as a cloud, without points whose depth jumps by more than the share `edge`. `room` must have the camera's
    size; ValueError otherwise.
    """
    if room.depth.shape != (camera.height, camera.width):
        raise ValueError(f"depth {tuple(room.depth.shape)} is not the exo camera's {camera.height}x{camera.width}")
    rays, inside = camera.rays(dtype=torch.float32, device=room.depth.device)
    kept = inside & (room.depth > 0) & ~depth_edges(room.depth, edge)
    extent = sample_extent(room.depth, camera)
    points = transform(T_world_exo.to(rays), (rays * room.depth[..., None])[kept])
    return Cloud(points, room.colour[kept], extent[kept])


def join(clouds: Sequence[Cloud]) -> Cloud:
    """Several exo views, one cloud."""
    return Cloud(*(torch.cat(parts) for parts in zip(*clouds, strict=True)))


def render_cloud(cloud: Cloud, camera: Camera, T_world_ego: Tensor, backend: str = "scatter") -> tuple[Tensor, Tensor]:
    """Draw one cloud for every ego pose [F, 4, 4]: prior uint8 [F, h, w, 3] (0 where empty), valid [F, h, w], within the lens' disc."""
    disc = camera.rays(device=cloud.points.device)[1]
    pictures, masks = [], []
    for pose in T_world_ego:
        drawn = splat(cloud.points, cloud.colours, camera, pose, extent=cloud.extent, backend=backend)
        valid = drawn.valid & disc
        pictures.append(torch.where(valid[..., None], drawn.image.round().clamp(0, 255), 0).to(torch.uint8))
        masks.append(valid)
    return torch.stack(pictures), torch.stack(masks)


def render_prior(
    video: Tensor,
    depth: Tensor,
    static: Tensor,
    exo_camera: Camera,
    T_world_exo: Tensor,
    ego_camera: Camera,
    T_world_ego: Tensor,
    accumulated: bool = True,
    edge: float = EDGE,
) -> tuple[Tensor, Tensor]:
    """Prior uint8 [F, h, w, 3] and valid [F, h, w] for ego poses [F, 4, 4], from one exo view: video uint8 [F, H, W, 3], depth [F, H,
    W], static [F, H, W].

    accumulated=False draws every frame from its own static points only. For several exo views:
    `render_cloud(join([room_cloud(accumulate(...), ...), ...]), ...)`. Raises ValueError where the exo arrays, the camera and the poses
    do not fit each other.
    """
    if video.shape[:3] != depth.shape or static.shape != depth.shape:
        raise ValueError(f"video {tuple(video.shape)}, depth {tuple(depth.shape)}, static {tuple(static.shape)} do not fit")
    if accumulated:
        return render_cloud(room_cloud(accumulate(video, depth, static), exo_camera, T_world_exo, edge), ego_camera, T_world_ego)
    if len(T_world_ego) != len(video):
        raise ValueError(f"{len(video)} exo frames and {len(T_world_ego)} ego poses")
    frames = []
    for index in range(len(video)):
        room = accumulate(video[index : index + 1], depth[index : index + 1], static[index : index + 1])
        frames.append(render_cloud(room_cloud(room, exo_camera, T_world_exo, edge), ego_camera, T_world_ego[index : index + 1]))
    pictures, masks = zip(*frames, strict=True)
    return torch.cat(pictures), torch.cat(masks)


def coverage(valid: Tensor, disc: Tensor) -> Tensor:
    """Share [F] of the lens' disc [h, w] that a prior's validity [F, h, w] covers."""
    return (valid & disc).flatten(1).sum(dim=1) / disc.sum().clamp_min(1)
