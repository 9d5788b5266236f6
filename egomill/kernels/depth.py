"""Bringing a temporally steady but affine-invariant depth to a metric one: D = 1 / (α/Dv + β), EgoX eq. 1.

Dv (a video network's) keeps still over time, Dm (a single-picture network's) knows metres. α and β are fitted in inverse depth on what
stands still. Three ways:

"robust"    Huber weights on the relative error; one estimate for the clip, and per frame a departure from it that is smooth over time.
The default. "momentum"  the paper's: least squares per frame inside the 10-90 % quantiles, then a running mean with momentum 0.99,
which lets frame 0 count for 62 % of frame 48. "peer"      the same as released: the quantile test replaces the static mask, so that
moving people enter the fit. For comparison only.

In the first two the static mask stays in force throughout: the trimming is intersected with it. Trade-off of "robust": it looks at all
frames, hence is not causal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from egomill.kernels.cameras import Camera
from egomill.kernels.poses import inverse, transform

MODES = ("robust", "momentum", "peer")
SMALLEST_INVERSE = 1e-3  # nothing is taken to be further than a kilometre
FIT_PIXELS = 8_000  # per frame; the fit has two unknowns, more pixels change nothing but the time
INLIER = 0.1  # relative error of depth
HUBER = 1.345
HEAD = 0.1  # metres: radius of a head, and how far its middle lies behind the camera at its temple


class Alignment(NamedTuple):
    """Depth [F, H, W] in metres (0 where Dv is unknown); α, β [F]; per frame the share of static known pixels within 10 % of Dm, and
    the rms relative error of those."""

    depth: Tensor
    alpha: Tensor
    beta: Tensor
    inliers: Tensor
    rms: Tensor


def align(mono: Tensor, temporal: Tensor, static: Tensor, mode: str = "robust", momentum: float = 0.99) -> Alignment:
    """Fit `temporal` Dv to `mono` Dm, both [F, H, W] (0 or NaN unknown), on `static` [F, H, W].

    Raises ValueError on an unknown mode, on shapes that differ, and where no frame has static pixels at which both are known.
    """
    if mode not in MODES:
        raise ValueError(f"unknown alignment {mode!r}: one of {', '.join(MODES)}")
    if not mono.shape == temporal.shape == static.shape:
        raise ValueError(f"depths {tuple(mono.shape)}, {tuple(temporal.shape)} and mask {tuple(static.shape)} differ")
    step = max(1, round((mono.shape[1] * mono.shape[2] / FIT_PIXELS) ** 0.5))
    y = _inverse(mono[:, ::step, ::step]).flatten(1).double()
    v = _inverse(temporal[:, ::step, ::step]).flatten(1).double()
    usable = static[:, ::step, ::step].flatten(1) & (v > 0) & (y > 0)
    if not usable.any():
        raise ValueError("no frame has a static pixel at which both depths are known")
    band = _within_quantiles(v, usable if mode == "robust" else v > 0) & _within_quantiles(y, usable)
    fitted = band & (v > 0) & (y > 0) if mode == "peer" else band & usable
    if not fitted.any():  # depth so flat that nothing lies between its quantiles
        fitted = usable
    unit = v[usable].median()  # brings v to order one, for the conditioning of the fit
    coefficients = _robust(v / unit, y, fitted) if mode == "robust" else _running(v / unit, y, fitted, momentum)
    alpha, beta = coefficients[:, 0] / unit, coefficients[:, 1]
    error = y / (alpha[:, None] * v + beta[:, None]).clamp_min(SMALLEST_INVERSE) - 1
    close = usable & (error.abs() < INLIER)
    inliers = close.sum(1) / usable.sum(1).clamp_min(1)
    rms = (torch.where(close, error, 0).square().sum(1) / close.sum(1).clamp_min(1)).sqrt()
    fit = alpha.to(mono)[:, None, None] * _inverse(temporal) + beta.to(mono)[:, None, None]
    depth = torch.where(_inverse(temporal) > 0, 1 / fit.clamp_min(SMALLEST_INVERSE), 0)
    return Alignment(depth, alpha.to(mono), beta.to(mono), inliers.to(mono), rms.to(mono))


def _inverse(depth: Tensor) -> Tensor:
    known = depth.isfinite() & (depth > 0)
    return torch.where(known, 1 / torch.where(known, depth, 1), 0)


def _within_quantiles(values: Tensor, usable: Tensor) -> Tensor:
    """Strictly between the 10 % and the 90 % quantile over each frame's usable pixels."""
    levels = torch.tensor([0.1, 0.9], dtype=values.dtype, device=values.device)
    low, high = values.masked_fill(~usable, torch.nan).nanquantile(levels, dim=1)
    return (values > low[:, None]) & (values < high[:, None])


def _normal(v: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Normal equations of the weighted fit a v + b = y per row.

    Matrices [F, 2, 2] and right sides [F, 2], as means over all pixels of a row.
    """
    vv, v1, one = ((weight * x).mean(-1) for x in (v * v, v, torch.ones_like(v)))
    matrix = torch.stack([torch.stack([vv, v1], -1), torch.stack([v1, one], -1)], -2)
    return matrix, torch.stack([(weight * v * y).mean(-1), (weight * y).mean(-1)], -1)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """A thousand-millionth of ridge keeps a frame of one constant depth solvable (it is then fitted by α and β together)."""
    ridge = 1e-9 * matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
    return torch.linalg.solve(matrix + ridge[..., None, None] * torch.eye(2).to(matrix), right)


def _running(v: Tensor, y: Tensor, fitted: Tensor, momentum: float) -> Tensor:
    """Least squares per frame, then A_f = m A_{f-1} + (1 - m) a_f.

    A frame with nothing to fit repeats its predecessor; leading ones take the first fit.
    """
    own = _solve(*_normal(v, y, fitted.double()))
    known = (fitted.sum(1) >= 2).tolist()
    state = own[known.index(True)]
    out = []
    for index in range(len(own)):
        if known[index]:
            state = momentum * state + (1 - momentum) * own[index]
        out.append(state)
    return torch.stack(out)


def _robust(v: Tensor, y: Tensor, fitted: Tensor, rounds: int = 8, stiffness: float = 200.0, pull: float = 0.2) -> Tensor:
    """Iteratively reweighted fit of all frames together: [F, 2].

    Minimises  Σ_f |θ_f - data_f|² + pull |θ_f - θ_clip|² + stiffness |θ_f - θ_{f-1}|²  in the metric of the mean normal matrix, so that
    both are in the fit's own units: a departure from the clip's estimate has to last some √stiffness ≈ 14 frames to be followed. A
    frame that is off as a whole counts less, too. A frame without static pixels is carried by its neighbours.
    """
    frames = len(v)
    relative = fitted / y.clamp_min(SMALLEST_INVERSE) ** 2  # weights that make residuals relative to depth
    chain = torch.zeros(frames, frames, dtype=v.dtype, device=v.device)
    for index in range(frames - 1):
        chain[index : index + 2, index : index + 2] += torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).to(chain)
    clip = _solve(*(part.mean(0) for part in _normal(v, y, relative)))
    theta = clip.expand(frames, 2)
    for _ in range(rounds):
        clip = _solve(*(part.mean(0) for part in _normal(v, y, relative * _huber(v, y, clip[None], fitted))))
        trust = relative * _huber(v, y, theta, fitted) * _huber_frames(v, y, theta, fitted)[:, None]
        matrix, right = _normal(v, y, trust)
        mean = matrix.mean(0)
        system = torch.kron(pull * torch.eye(frames).to(chain) + stiffness * chain, mean)
        system = system + torch.block_diag(*matrix) + 1e-12 * mean.diagonal().mean() * torch.eye(2 * frames).to(chain)
        theta = torch.linalg.solve(system, (right + pull * mean @ clip).flatten()).reshape(frames, 2)
    return theta


def _huber(v: Tensor, y: Tensor, theta: Tensor, fitted: Tensor) -> Tensor:
    """Huber's weights of the relative residuals, scaled by their median absolute value over the clip."""
    error = ((theta[:, :1] * v + theta[:, 1:]) / y.clamp_min(SMALLEST_INVERSE) - 1).abs()
    scale = (1.4826 * error[fitted].median()).clamp_min(1e-6)
    return (HUBER * scale / error.clamp_min(1e-12)).clamp_max(1.0)


def _huber_frames(v: Tensor, y: Tensor, theta: Tensor, fitted: Tensor) -> Tensor:
    """Huber's weights of the frames' median relative residuals, scaled by their own median absolute value; 1 for a frame with nothing
    to fit."""
    error = (theta[:, :1] * v + theta[:, 1:]) / y.clamp_min(SMALLEST_INVERSE) - 1
    offset = error.masked_fill(~fitted, torch.nan).nanmedian(dim=1).values.abs().nan_to_num(0.0)
    scale = (1.4826 * offset.median()).clamp_min(1e-6)
    return (HUBER * scale / offset.clamp_min(1e-12)).clamp_max(1.0)


class AtHead(NamedTuple):
    """What depth says of a head whose place is known, as medians over the frames in which it is seen: `scale`, the depth of its surface over
    the distance; `around`, the depth of what surrounds it over that of its surface (a head stands before its surroundings: over 1); from
    how many frames; and whether anything moves there (else the head may be hidden by something that stands still)."""

    scale: float
    around: float
    frames: int
    moving: bool


def at_head(depth: Tensor, static: Tensor, camera: Camera, T_cam_ego: Tensor) -> AtHead | None:
    """Compare depth [F, H, W] (0 unknown) with the distance of the head at T_cam_ego [F, 4, 4] (z forward); `static` [F, H, W].

    The head is a ball behind the ego camera. Its surface is the lower quartile of the depth within the ball's outline: hair, background
    beside it and a pixel of misalignment reach the upper ones. Frames in which something moves there count before all others. None where no
    frame shows the head: out of the picture, within 30 cm of the lens, or depth unknown there. Against simulated views with true depth:
    1.00 ± 0.015, none further off than 0.05.
    """
    middle = T_cam_ego[:, :3, 3] - HEAD * T_cam_ego[:, :3, 2]
    pixels, inside = camera.project(middle)
    distance = middle.norm(dim=-1)
    radius = (HEAD / distance * camera.params[0]).clamp_min(1.5)
    rows, columns = torch.arange(camera.height)[:, None], torch.arange(camera.width)
    found = []
    for frame in torch.nonzero(inside & (distance > 3 * HEAD)).flatten().tolist():
        known = depth[frame].isfinite() & (depth[frame] > 0)
        off = ((columns - pixels[frame, 0]).square() + (rows - pixels[frame, 1]).square()) / radius[frame].square()
        head, ring = known & (off <= 1), known & (off > 1) & (off <= 9)
        if head.sum() < 4 or not ring.any():
            continue
        surface = depth[frame][head].quantile(0.25)
        moves = float((~static[frame])[head].float().mean()) > 0.25
        found.append((float(surface / (distance[frame] - HEAD)), float(depth[frame][ring].median() / surface), moves))
    if not found:
        return None
    moving = any(moves for *_, moves in found)
    counted = torch.tensor([part[:2] for part in found if part[2] or not moving], dtype=torch.float64)
    scale, around = counted.median(dim=0).values.tolist()
    return AtHead(scale, around, len(counted), moving)


def metric_scale(depth: Tensor, camera: Camera, T_world_cam: Tensor, landmarks: Tensor, least: int = 20) -> tuple[float, int]:
    """The factor that brings depth [H, W] to known world points [N, 3] (semi-dense points of the recording), and from how many of them:
    the median ratio.

    Points further than 30 % from that median do not count as support; with fewer than `least` the answer is (1.0, 0): leave the scale
    alone.
    """
    local = transform(inverse(T_world_cam), landmarks)
    pixels, inside = camera.project(local)
    column, row = pixels[inside].round().long().unbind(-1)
    found = depth[row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)]
    ratio = (local[inside].norm(dim=-1) / found)[found.isfinite() & (found > 0)]
    if len(ratio) < least:
        return 1.0, 0
    middle = ratio.median()
    support = int(((ratio / middle).log().abs() < 0.3).sum())
    return (float(middle), support) if support >= least else (1.0, 0)


def pinhole_z_to_range(z: Tensor, camera: Camera, focal_ratio: float = 1.0) -> Tensor:
    """Metres along the calibrated ray from z-depth [F, H, W] that was estimated as if the picture were a pinhole's; 0 where unknown.

    A monocular network sees how large things look, and turns size = f S / z around with the focal length it was told, `focal_ratio` times
    the lens' own. In a fisheye picture a thing looks about f S / range large wherever it is, so that what comes out as z is the range, in
    units of the ratio; counting the ray's obliquity in would count what is not there. In a true pinhole picture it is: z / cos θ.

    Measured on EgoX clips (network told 0.7 of the lens' focal length) against static landmarks triangulated from the ego video and poses,
    spread (interquartile range) of log(true / converted) for soccer (857) and kitchen (3,406): range = z 0.13, 0.22; distance from the
    optical axis kept (z tan / sin θ) 0.16, 0.27; pinhole range 0.19, 0.31; z / cos θ 0.23, 0.39.
    ValueError where z is not of the camera's size.
    """
    if z.shape[-2:] != (camera.height, camera.width):
        raise ValueError(f"z-depth {tuple(z.shape)} is not the camera's {camera.height}x{camera.width}")
    rays, inside = camera.rays(torch.float64, z.device)
    stretch = 1 / rays[..., 2] if camera.model == "pinhole" else torch.ones_like(rays[..., 2])
    return torch.where(inside & z.isfinite() & (z > 0), z * (stretch / focal_ratio).to(z.dtype), 0)
