"""Sinusoidal places on a grid, for tokens that have none of their own."""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 10000.0


def sinusoid(width: int, *sides: int) -> Tensor:
    """A vector for every place of a grid [*sides, width], float32: each axis has its share of the channels, sines and cosines of
    wavelengths from 2π to 10000·2π (Vaswani et al. 2017); what the shares leave over is zero."""
    share = width // len(sides) // 2
    out = torch.zeros(*sides, width)
    for axis, side in enumerate(sides):
        rates = LONGEST ** (-torch.arange(share) / share)
        angles = torch.arange(side)[:, None] * rates
        of_axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
        shape = [1] * len(sides)
        shape[axis] = side
        out[..., 2 * share * axis : 2 * share * (axis + 1)] = of_axis.view(*shape, 2 * share)
    return out
