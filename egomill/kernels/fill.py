"""Push-pull filling of holes: each hole takes the mean of what is known around it, from as near as possible.

Push: halve the picture again and again, averaging known pixels only, until nothing is empty. Pull: come back, and give every empty
pixel the value of the level above. Smooth, batched, linear in the number of pixels; it knows nothing of texture, and is what a trained
model has to beat.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def push_pull(image: Tensor, valid: Tensor) -> Tensor:
    """Fill pictures [F, H, W, 3] or [F, C, H, W] where `valid` [F, H, W] is False. Known pixels are returned unchanged; a picture with
    none comes back as zeros.

    Same layout and dtype as the input (uint8 is rounded). Channels-last is assumed where the last axis has 3 entries. Raises ValueError
    on shapes that do not fit.
    """
    last = image.ndim == 4 and image.shape[-1] == 3 and image.shape[:3] == valid.shape
    planes = image.movedim(-1, 1) if last else image
    if planes.ndim != 4 or planes.shape[-2:] != valid.shape[-2:] or planes.shape[0] != valid.shape[0]:
        raise ValueError(f"pictures {tuple(image.shape)} and validity {tuple(valid.shape)} do not fit")
    known = valid[:, None]
    values = planes if planes.is_floating_point() else planes.float()
    filled = _fill(torch.where(known, values, 0), known.to(values.dtype))
    if not image.is_floating_point():
        filled = filled.round().clamp(0, 255).to(image.dtype)
    filled = torch.where(known, planes, filled)
    return filled.movedim(1, -1) if last else filled


def _fill(values: Tensor, weight: Tensor) -> Tensor:
    """`values` [F, C, H, W] are zero where `weight` [F, 1, H, W] is; the weight of a coarse pixel is the known share of what it covers,
    saturating at one half."""
    if min(values.shape[-2:]) == 1 and max(values.shape[-2:]) == 1:
        return values
    total = functional.avg_pool2d(values * weight, 2, ceil_mode=True, count_include_pad=False)
    share = functional.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
    coarse = _fill(total / share.clamp_min(1e-8), (2 * share).clamp_max(1))
    above = functional.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return weight * values + (1 - weight) * above
