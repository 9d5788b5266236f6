"""Degraded copies of a video: what the condition channels of the embedded base model hold while it learns to restore.

Deliberately general: holes of several shapes, push-pull filled; small smooth warps; colour, noise, loss of resolution. None of them is a
picture of another view, so exo→ego stays for the adapter to learn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from egomill.kernels.fill import push_pull


def _smooth(rng: np.random.Generator, size: tuple[int, int, int], knots: tuple[int, int, int]) -> Tensor:
    """Normal noise [F, H, W] that is smooth between `knots`."""
    coarse = torch.from_numpy(rng.standard_normal(knots, dtype=np.float32))[None, None]
    return functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)[0, 0]


def holes(rng: np.random.Generator, frames: int, height: int, width: int) -> Tensor:
    """A random validity [F, H, W]: blobs, streaks, borders and speckle, alone or together, that drift with time."""
    size = (frames, height, width)
    valid = torch.ones(size, dtype=torch.bool)
    kinds = rng.random(4) < (0.6, 0.5, 0.35, 0.35)
    if kinds[0]:
        n = int(rng.integers(3, 9))
        field = _smooth(rng, size, (2, n, n))
        valid &= field < torch.quantile(field[0], float(rng.uniform(0.6, 0.95)))
    if kinds[1]:
        n, m = (int(rng.integers(3, 6)), int(rng.integers(10, 28)))
        field = _smooth(rng, size, (2, n, m) if rng.random() < 0.7 else (2, m, n))
        valid &= field < torch.quantile(field[0], float(rng.uniform(0.75, 0.95)))
    if kinds[2]:
        angle, speed = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.02)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        edge = rng.uniform(0.1, 0.9) + speed * torch.arange(frames)[:, None, None] + 0.1 * _smooth(rng, size, (2, 4, 4))
        valid &= x * np.cos(angle) + y * np.sin(angle) < edge
    if kinds[3]:
        valid &= torch.from_numpy(rng.random(size, dtype=np.float32)) > rng.uniform(0.02, 0.4) * float(rng.random() < 0.9)
    return valid


def degrade(rng: np.random.Generator, video: Tensor) -> tuple[Tensor, Tensor]:
    """A worse copy of video [F, 3, H, W] (in [-1, 1]) and its validity [F, H, W]; holes are filled from around them."""
    frames, _, height, width = video.shape
    out = video
    if rng.random() < 0.7:
        pixels = rng.uniform(0.3, 3.5)
        n = int(rng.integers(3, 12))
        shift = torch.stack([_smooth(rng, (frames, height, width), (2, n, n)) * (2 * pixels / s) for s in (width, height)], dim=-1)
        y, x = torch.meshgrid((torch.arange(height) + 0.5) * 2 / height - 1, (torch.arange(width) + 0.5) * 2 / width - 1, indexing="ij")
        grid = torch.stack([x, y], dim=-1) + shift
        out = functional.grid_sample(out, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if rng.random() < 0.35:
        k = int(rng.choice([2, 3, 4]))
        small = functional.interpolate(out, size=(-(-height // k), -(-width // k)), mode="area")
        out = functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    if rng.random() < 0.5:
        gain = torch.from_numpy(rng.normal(1, 0.08, (1, 3, 1, 1)).astype(np.float32))
        offset = torch.from_numpy(rng.normal(0, 0.05, (1, 3, 1, 1)).astype(np.float32))
        out = out * gain + offset
    if rng.random() < 0.4:
        out = out + float(rng.uniform(0.02, 0.2)) * torch.from_numpy(rng.standard_normal(out.shape, dtype=np.float32))
    valid = holes(rng, frames, height, width) if rng.random() < 0.85 else torch.ones(frames, height, width, dtype=torch.bool)
    return push_pull(out.clamp(-1, 1), valid), valid
