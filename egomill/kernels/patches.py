"""The grid of tokens: which pixels of which frames one token of the video model stands for. Wan 2.1's 4×16×16 where nothing is said.

Wan's VAE is causal in time: latent frame 0 covers frame 0 alone, latent frame k ≥ 1 covers frames 4k−3 … 4k. A latent pixel covers 8×8
pixels, a transformer patch 2×2 latent pixels, so a token covers 4×16×16 (EgoX, App. F.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPORAL = 4
LATENT = 8
TOKEN = 16


def latent_frames(frames: int, temporal: int = TEMPORAL) -> int:
    """49 → 13, 9 → 3. ValueError unless frames = 4n + 1 (or tn + 1)."""
    if frames < 1 or (frames - 1) % temporal:
        raise ValueError(f"a clip has {temporal}n + 1 frames, not {frames}")
    return (frames - 1) // temporal + 1


def spans(frames: int, temporal: int = TEMPORAL) -> list[range]:
    """The frames that each latent frame covers: [0], [1..4], [5..8], ..."""
    return [range(1)] + [range(temporal * (k - 1) + 1, temporal * k + 1) for k in range(1, latent_frames(frames, temporal))]


def grid(frames: int, height: int, width: int, cell: int = TOKEN, temporal: int = TEMPORAL) -> tuple[int, int, int]:
    """(f, h, w) of the token grid (or of the latent grid with cell=LATENT). ValueError where the picture is no multiple of the cell."""
    if height % cell or width % cell:
        raise ValueError(f"{width}x{height} is not a multiple of {cell} px")
    return latent_frames(frames, temporal), height // cell, width // cell


def pool(values: Tensor, weights: Tensor, cell: int = TOKEN, temporal: int = TEMPORAL) -> tuple[Tensor, Tensor]:
    """Weighted mean over cells: values [F, H, W, C], weights [F, H, W] ≥ 0 -> mean [f, h, w, C] and weight sum [f, h, w].

    A cell without weight gets a zero mean. Values under zero weight may be NaN: they are never touched.
    """
    frames, height, width, channels = values.shape
    f, h, w = grid(frames, height, width, cell, temporal)
    clean = torch.where(weights[..., None] > 0, values, torch.zeros_like(values)) * weights[..., None]
    summed = clean.reshape(frames, h, cell, w, cell, channels).sum(dim=(2, 4))
    weight = weights.reshape(frames, h, cell, w, cell).sum(dim=(2, 4))
    summed = torch.stack([summed[s.start : s.stop].sum(dim=0) for s in spans(frames, temporal)])
    weight = torch.stack([weight[s.start : s.stop].sum(dim=0) for s in spans(frames, temporal)])
    assert summed.shape == (f, h, w, channels)
    return summed / weight.clamp(min=torch.finfo(values.dtype).tiny)[..., None], weight
