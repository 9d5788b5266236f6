"""How much surface one pixel of a depth picture stands for.

A depth picture samples a surface on a grid of rays. Seen from elsewhere, the samples lie apart, and a splatter that draws every sample
with the same number of pixels either leaves stripes (floors, table tops: sampled obliquely) or smears near things. The size in metres
is known, though: half the diagonal of the cell that the neighbouring samples span. Neighbours across a depth edge are on another
surface and do not count; the cell is then that of a surface facing the camera, depth x angle of one pixel. The stretch is capped, so
that a grazing surface is not invented between samples that are far apart.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from egomill.kernels.cameras import Camera


@lru_cache(maxsize=16)
def pixel_angle(camera: Camera, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Angle in radians between neighbouring pixels' rays, [H, W]: the mean of the horizontal and the vertical step. Outside the lens:
    the median inside.

    Remembered per camera: it is asked for once a frame. Not to be written to.
    """
    rays, valid = camera.rays(dtype=torch.float64)
    rays = torch.where(valid[..., None], rays, torch.nan)
    steps = []
    for axis in (0, 1):
        step = rays.diff(dim=axis).norm(dim=-1)
        first, last = (step[:1], step[-1:]) if axis == 0 else (step[:, :1], step[:, -1:])
        padded = torch.cat([first, step, last], dim=axis)
        steps.append((padded.narrow(axis, 0, step.shape[axis] + 1) + padded.narrow(axis, 1, step.shape[axis] + 1)) / 2)
    angle = (steps[0] + steps[1]) / 2
    return torch.where(angle.isfinite(), angle, angle.nanmedian()).to(dtype=dtype, device=device)


class Projected(NamedTuple):
    """Points in the picture: pixels [n, 2], distance [n] from the centre, radius [n] in pixels, index [n] into the cloud."""

    pixels: Tensor
    distance: Tensor
    radius: Tensor
    index: Tensor


def depth_edges(depth: Tensor, threshold: float = 0.1, window: int = 5, flat: float = 0.02) -> Tensor:
    """True where a depth picture [..., H, W] (metres, 0 or NaN unknown) jumps, or is unknown.

    A pixel is an edge where the range over the window exceeds `threshold` of the mean (the test of ViPE and of the paper's renderer),
    unless the inverse depth is locally linear to within `flat`: planes are linear in inverse depth however obliquely they are seen, and
    a floor must not be thrown away for being far off.
    """
    shape = depth.shape
    picture = depth.reshape(-1, 1, *shape[-2:])
    known = picture.isfinite() & (picture > 0)
    inverse = torch.where(known, 1 / picture.clamp_min(1e-6), 0)
    high, low = _extremes(inverse, window)
    jump = (high - low) > threshold * (high + low) / 2
    half = window // 2
    padded = functional.pad(inverse, (half, half, half, half), mode="replicate")
    bend = torch.zeros_like(inverse)
    height, width = shape[-2:]
    for dy, dx in ((0, half), (half, 0), (half, half), (half, -half)):
        ahead = padded[..., half + dy : half + dy + height, half + dx : half + dx + width]
        behind = padded[..., half - dy : half - dy + height, half - dx : half - dx + width]
        bend = torch.maximum(bend, (ahead + behind - 2 * inverse).abs())
    edge = (jump & (bend > flat * inverse)) | ~known
    return edge.reshape(shape)


def _extremes(picture: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Largest and smallest value in a square window, as two passes of a row (max pooling is separable)."""
    half = window // 2

    def largest(x: Tensor) -> Tensor:
        x = functional.max_pool2d(x, (1, window), stride=1, padding=(0, half))
        return functional.max_pool2d(x, (window, 1), stride=1, padding=(half, 0))

    return largest(picture), -largest(-picture)


def sample_extent(depth: Tensor, camera: Camera, edge: float = 0.05, stretch: float = 5.0) -> Tensor:
    """Radius in metres of the surface that each pixel of `depth` [H, W] (metres along the ray, 0 or NaN unknown) stands for; 0 where
    depth is unknown.

    Half the diagonal of the cell spanned by the wider of the two neighbours in each direction; neighbours further than `edge` times the
    depth per step (and more than `stretch` facing cells) are on another surface.
    """
    angle = pixel_angle(camera, depth.dtype, depth.device)
    rays, _ = camera.rays(dtype=depth.dtype)
    known = depth.isfinite() & (depth > 0)
    points = rays.to(depth.device) * torch.where(known, depth, torch.nan)[..., None]
    facing = angle * depth
    spans = []
    for axis in (0, 1):
        step = points.diff(dim=axis).norm(dim=-1)
        jump = depth.diff(dim=axis).abs()
        count = depth.shape[axis] - 1
        near = torch.minimum(depth.narrow(axis, 0, count), depth.narrow(axis, 1, count))
        step = torch.where(jump < edge * near, step, 0).nan_to_num(0.0)
        blank = torch.zeros_like(depth.narrow(axis, 0, 1))
        span = torch.maximum(torch.cat([blank, step], axis), torch.cat([step, blank], axis))
        spans.append(torch.minimum(torch.maximum(span, facing), stretch * facing))
    return torch.where(known, torch.hypot(spans[0], spans[1]) / 2, 0)
