"""What stands still before a fixed camera: which pixels, at what depth, in what colour. Medians over time, no weights.

An exo camera of Ego-Exo4D does not move during a take, so a pixel that shows the room shows it in most frames, and the median over time
is the room. What departs from it by more than the pixel's own noise is dynamic. Trade-off against a segmentation network: somebody who
stays put for more than half the clip counts as room, and a shadow may count as dynamic; in return nothing has to be downloaded, and
things no network has a name for are found.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Background(NamedTuple):
    """The empty room: colour [H, W, 3] (0..255, float), depth [H, W] (metres along the ray, 0 unknown), seen [H, W] in how many
    frames."""

    colour: Tensor
    depth: Tensor
    seen: Tensor


def background_mask(video: Tensor, sensitivity: float = 6.0, floor: float = 14.0, margin: int | None = None) -> Tensor:
    """Dynamic pixels [F, H, W] of a fixed camera's video uint8 [F, H, W, 3].

    A pixel is dynamic where a channel departs from its median over time by more than `sensitivity` robust standard deviations (1.4826 MAD,
    per pixel, but no more than thrice the picture's usual one) and more than `floor` grey levels. Where a pixel's own deviation is above
    twice that limit and 0.7 of the floor, it shows something that never rests (somebody who shifts about in one place): dynamic throughout.
    A change of the whole picture's brightness is taken out first. Specks are opened away, gaps closed, the rest grown by `margin` pixels
    (default: 1 % of the picture's width) so that soft rims are inside. ValueError on anything but uint8 [F, H, W, 3].
    """
    if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"a video is uint8 [F, H, W, 3], not {video.dtype} {tuple(video.shape)}")
    room = video.median(dim=0).values
    departure = torch.empty(video.shape[:3], dtype=torch.uint8, device=video.device)
    for index, frame in enumerate(video):
        difference = frame.to(torch.int16) - room
        shift = difference[::4, ::4].reshape(-1, 3).median(dim=0).values
        departure[index] = (difference - shift).abs().amax(dim=-1).clamp(max=255).to(torch.uint8)
    spread = departure.median(dim=0).values.float() * 1.4826
    usual = 3 * spread.median().clamp_min(0.5)
    restless = spread > torch.clamp(2 * usual, min=floor * 0.7)
    dynamic = (departure > (sensitivity * spread.minimum(usual)).clamp_min(floor)) | restless
    grow = max(1, round(video.shape[2] / 100)) if margin is None else margin
    return torch.cat([_tidy(part, grow) for part in dynamic.split(8)])


def _tidy(mask: Tensor, margin: int) -> Tensor:
    """Open by one pixel, close by twice the margin, grow by the margin. [F, H, W]. Large margins work at half the size, being soft."""
    picture = mask[:, None].float()
    picture = _grow(_shrink(picture, 1), 1)
    size, halve = picture.shape[-2:], margin >= 4
    if halve:
        picture = functional.max_pool2d(picture, 2, ceil_mode=True)
        margin = margin // 2
    picture = _grow(_shrink(_grow(picture, 2 * margin), 2 * margin), margin)
    if halve:
        picture = functional.interpolate(picture, scale_factor=2.0)[..., : size[0], : size[1]]
    return picture[:, 0] > 0.5


def _grow(picture: Tensor, pixels: int) -> Tensor:
    size = 2 * pixels + 1
    rows = functional.max_pool2d(picture, (1, size), stride=1, padding=(0, pixels))
    return functional.max_pool2d(rows, (size, 1), stride=1, padding=(pixels, 0))


def _shrink(picture: Tensor, pixels: int) -> Tensor:
    return -_grow(-picture, pixels)


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """Median over the first axis of `values` [F, ...] where `mask` [F, ...] holds; NaN where it never does. The lower of the two middle
    values."""
    return values.float().masked_fill(~mask, torch.nan).nanmedian(dim=0).values


def accumulate(video: Tensor, depth: Tensor, static: Tensor, least: float = 0.1) -> Background:
    """The empty room from video uint8 [F, H, W, 3], depth [F, H, W] and static [F, H, W]: medians over the frames in which a pixel is
    static and its depth known.

    Pixels seen in fewer than `least` of the frames are left unknown: with so few samples the mask's own errors would show.
    """
    usable = static & depth.isfinite() & (depth > 0)
    seen = usable.sum(dim=0)
    enough = seen >= max(1.0, least * len(depth))
    distance = torch.where(enough, masked_median(depth, usable), 0).nan_to_num(0.0)
    colour = torch.stack([masked_median(video[..., channel], static) for channel in range(3)], dim=-1)
    return Background(torch.where(enough[..., None], colour, 0).nan_to_num(0.0), distance, torch.where(enough, seen, 0))


def temporal_static(depth: Tensor, static: Tensor, fill_dynamic: bool = True) -> Tensor:
    """A temporally steady estimate [F, H, W] from per-frame depth [F, H, W] of a fixed camera, without a second network.

    Depth is first brought to one scale (each frame's median ratio to the clip's median room), then static pixels take their median over
    time. Dynamic pixels take it too where they were seen static at some time, so that the room is whole in every frame; with
    fill_dynamic=False they keep their own (rescaled) depth, which is what directions to a moving person need. Unknown depth (0 or NaN)
    stays unknown unless the room is known there.
    """
    usable = static & depth.isfinite() & (depth > 0)
    room = masked_median(depth, usable)
    ratio = masked_median((room / depth).flatten(1).T, (usable & room.isfinite()).flatten(1).T)
    steady = depth * ratio.nan_to_num(1.0)[:, None, None].to(depth)
    room = masked_median(steady, usable).to(depth)
    known = room.isfinite() & (torch.ones_like(static) if fill_dynamic else static)
    return torch.where(known, room, steady)
