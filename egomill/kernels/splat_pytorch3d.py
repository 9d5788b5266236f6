"""PyTorch3D's point rasteriser behind our splatter: the reference for the fast path, and a second opinion on GPUs that have it compiled.

It takes the points as already projected by our lens (PyTorch3D's cameras know neither Kannala-Brandt nor the Aria lens) and returns for
each pixel the K nearest discs. Slow on CPU: it compares every pixel with every point (about two minutes a frame at 350,000 points and
448 x 448).
"""

from __future__ import annotations

import torch
from torch import Tensor

from egomill.kernels.footprint import Projected

PER_PIXEL = 64  # discs kept per pixel, nearest first; PyTorch3D allows up to 150


def cover_pytorch3d(seen: Projected, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same (pixel, point, squared distance) pairs as splat.cover, as far as they are among the nearest 64 of a pixel.

    Raises ImportError where PyTorch3D is not installed (extra `reference`).
    """
    from pytorch3d.renderer.points import rasterize_points
    from pytorch3d.structures import Pointclouds

    short = min(width, height)
    centre = torch.tensor([width, height], dtype=torch.float32, device=seen.pixels.device) / 2
    ndc = -(seen.pixels.float() + 0.5 - centre) * (2 / short)  # PyTorch3D: x left, y up, the shorter side spans -1..1
    cloud = Pointclouds([torch.cat([ndc, seen.distance.float()[:, None]], dim=-1)])
    index, _, squared = rasterize_points(
        cloud,
        image_size=(height, width),
        radius=seen.radius.float() * (2 / short),
        points_per_pixel=min(PER_PIXEL, max(1, len(seen.index))),
        bin_size=0,
    )
    index, squared = index[0].reshape(width * height, -1), squared[0].reshape(width * height, -1) * (short / 2) ** 2
    pixel, slot = (index >= 0).nonzero(as_tuple=True)
    return pixel, index[pixel, slot], squared[pixel, slot].to(seen.distance.dtype)
