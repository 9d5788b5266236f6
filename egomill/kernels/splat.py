"""A z-ordered point splatter: a cloud drawn through any lens, on CPU and GPU by the same tensor code.

Every point covers the pixels whose centres lie within its radius. Of the points that cover a pixel the nearest one sets the surface;
those within a relative depth tolerance of it belong to the same surface and are blended, the closer to the pixel centre the heavier;
everything further away is hidden. Since a point's disc hides what lies behind it, background does not shine between the samples of a
near surface as long as the discs (see footprint.py) close it.

The usual rasterisers ask for every pixel which points cover it, at (pixels x points) cost without bins; here every point is written to
the few pixels it covers, with a scatter-min for the depth and a scatter-add for the colours, at (points x covered pixels) cost.
Trade-off: a disc per point, not an oriented ellipse. Backend "pytorch3d" is the reference rasteriser (slow on CPU), `splat_reference`
the plain statement of what is computed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from egomill.kernels.cameras import Camera
from egomill.kernels.footprint import Projected, pixel_angle
from egomill.kernels.poses import inverse, transform

SMALLEST = 0.75  # pixels; a disc of at least sqrt(1/2) always covers a pixel centre, so that no visible point vanishes


class Splat(NamedTuple):
    """Picture [H, W, 3] in the colours' scale, depth [H, W] in metres from the camera centre (0 where empty), valid [H, W]."""

    image: Tensor
    depth: Tensor
    valid: Tensor


def splat(
    points: Tensor,
    colours: Tensor,
    camera: Camera,
    T_world_cam: Tensor,
    radius: float | Tensor = 1.0,
    extent: Tensor | None = None,
    tolerance: float = 0.05,
    largest: float = 8.0,
    near: float = 0.05,
    backend: str = "scatter",
) -> Splat:
    """Draw points [N, 3] (world, metres) with colours [N, C] through `camera` at `T_world_cam` [4, 4].

    `radius`: in pixels, one or per point [N]; `extent` [N], metres, replaces it by the size seen from here (footprint.sample_extent).
    Radii are held between 0.75 and `largest` pixels. `tolerance`: relative depth within which points are one surface. `near`: nothing
    closer than this is drawn. Differentiable in colours and, through the blending weights, in points. Raises ValueError on shapes that
    do not fit and on an unknown backend.
    """
    if points.ndim != 2 or points.shape[-1] != 3 or colours.shape[0] != points.shape[0]:
        raise ValueError(f"a cloud is points [N, 3] and colours [N, C], not {tuple(points.shape)} and {tuple(colours.shape)}")
    seen = project_cloud(points, camera, T_world_cam, radius, extent, largest, near)
    if backend == "scatter":
        pairs = cover(seen, camera.width, camera.height)
    elif backend == "pytorch3d":
        from egomill.kernels.splat_pytorch3d import cover_pytorch3d

        pairs = cover_pytorch3d(seen, camera.width, camera.height)
    else:
        raise ValueError(f"unknown splat backend {backend!r}: scatter or pytorch3d")
    return blend(seen, _take(colours, seen.index), *pairs, camera.width, camera.height, tolerance)


def project_cloud(
    points: Tensor,
    camera: Camera,
    T_world_cam: Tensor,
    radius: float | Tensor,
    extent: Tensor | None,
    largest: float,
    near: float,
) -> Projected:
    """What of the cloud falls into the picture, with its radius in pixels."""
    local = transform(inverse(T_world_cam.to(points)), points)
    margin = math.ceil(largest)  # a point just outside still reaches in
    pixels, valid = camera.crop(-margin, -margin, camera.width + 2 * margin, camera.height + 2 * margin).project(local)
    distance = local.norm(dim=-1)
    index = (valid & (distance > near)).nonzero().squeeze(-1)
    pixels, distance = _take(pixels, index) - margin, _take(distance, index)
    if extent is not None:
        column = pixels[:, 0].detach().round().long().clamp(0, camera.width - 1)
        row = pixels[:, 1].detach().round().long().clamp(0, camera.height - 1)
        size = (
            _take(extent, index) / distance / _take(pixel_angle(camera, points.dtype, points.device).flatten(), row * camera.width + column)
        )
    else:
        size = radius[index].to(points) if isinstance(radius, Tensor) else torch.full_like(distance, radius)
    return Projected(pixels, distance, size.clamp(SMALLEST, largest), index)


def cover(seen: Projected, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """All (pixel, point) pairs where a point's disc covers a pixel centre: flat pixel index, row of `seen`, squared distance in pixels.

    Points are taken by the size of their disc, so that a few large ones do not make all pay for theirs.
    """
    side = (2 * seen.radius.detach()).ceil().to(torch.uint8)  # an open interval of length 2r holds at most so many integers
    first = (seen.pixels - seen.radius[:, None]).detach().ceil()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for size in side.unique().tolist():
        rows = (side == size).nonzero().squeeze(-1)
        centre, (left, top) = _take(seen.pixels, rows), _take(first, rows).unbind(-1)
        within = (_take(seen.radius, rows) ** 2)[:, None]
        x = left[:, None] + torch.arange(size, dtype=left.dtype, device=side.device)
        dx = torch.where((x >= 0) & (x < width), x - centre[:, :1], torch.inf) ** 2
        pixel, owner = (top.long()[:, None] * width + x.long()).flatten(), rows.repeat_interleave(size)
        for row in range(size):  # a row of the disc at a time keeps the working set in the cache
            y = top + row
            dy = torch.where((y >= 0) & (y < height), y - centre[:, 1], torch.inf) ** 2
            distance = dx + dy[:, None]
            inside = (distance < within).flatten().nonzero().squeeze(-1)
            found.append((_take(pixel, inside) + row * width, _take(owner, inside), _take(distance.flatten(), inside)))
    if not found:
        none = torch.zeros(0, dtype=torch.long, device=side.device)
        return none, none, seen.distance.new_zeros(0)
    pixel, point, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return pixel, point, distance


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values[index], several times faster."""
    return values.index_select(0, index)


def weight(squared_distance: Tensor, radius: Tensor) -> Tensor:
    """How heavily a point counts for a pixel: falls to 0 at the rim of its disc, and steeply inside, so that dense samples keep their
    sharpness."""
    return (1 - squared_distance / radius**2).clamp_min(0) ** 2 / (squared_distance + 0.15) + 1e-8


def blend(
    seen: Projected, colours: Tensor, pixel: Tensor, point: Tensor, squared: Tensor, width: int, height: int, tolerance: float
) -> Splat:
    """Keep for every pixel the nearest surface and average its points."""
    distance = _take(seen.distance, point)
    nearest = torch.full((width * height,), torch.inf, dtype=distance.dtype, device=distance.device)
    nearest = nearest.scatter_reduce(0, pixel, distance.detach(), "amin")
    kept = (distance.detach() <= _take(nearest, pixel) * (1 + tolerance)).nonzero().squeeze(-1)
    pixel, point, distance, squared = (_take(values, kept) for values in (pixel, point, distance, squared))
    share = weight(squared, _take(seen.radius, point))
    channels = [*colours.to(distance.dtype).T.contiguous().unbind(0), None]
    total = share.new_zeros(width * height).index_add(0, pixel, share)
    valid = total > 0
    safe = torch.where(valid, total, 1)
    planes = []
    for channel in channels:  # one plane at a time: contiguous adds are several times faster than rows of three
        value = distance if channel is None else _take(channel, point)
        planes.append(share.new_zeros(width * height).index_add(0, pixel, share * value) / safe)
    image = torch.stack(planes[:-1], dim=-1).reshape(height, width, -1)
    return Splat(image, planes[-1].reshape(height, width), valid.reshape(height, width))


def splat_reference(points: Tensor, colours: Tensor, camera: Camera, T_world_cam: Tensor, radius: Tensor, tolerance: float = 0.05) -> Splat:
    """What `splat` computes, said plainly: every pixel looks at every point. For tests on small pictures only."""
    local = transform(inverse(T_world_cam), points)
    margin = math.ceil(float(radius.max()))
    pixels, valid = camera.crop(-margin, -margin, camera.width + 2 * margin, camera.height + 2 * margin).project(local)
    pixels, distance = pixels - margin, local.norm(dim=-1)
    image = points.new_zeros(camera.height, camera.width, colours.shape[-1])
    depth, filled = points.new_zeros(camera.height, camera.width), torch.zeros(camera.height, camera.width, dtype=torch.bool)
    for row in range(camera.height):
        for column in range(camera.width):
            squared = ((pixels - torch.tensor([column, row], dtype=points.dtype)) ** 2).sum(-1)
            covers = valid & (squared < radius**2)
            if not covers.any():
                continue
            surface = covers & (distance <= distance[covers].min() * (1 + tolerance))
            share = weight(squared[surface], radius[surface])
            image[row, column] = (share[:, None] * colours[surface]).sum(0) / share.sum()
            depth[row, column] = (share * distance[surface]).sum() / share.sum()
            filled[row, column] = True
    return Splat(image, depth, filled)
