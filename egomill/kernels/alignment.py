"""From hands in two cameras' frames to the motion between the cameras, and when not to believe it (GenEgo's step between its two stages).

Umeyama (1991): with weighted means ā, b̄ of points a_j, b_j and Σ = Σ_j w_j (b_j − b̄)(a_j − ā)ᵀ = U D Vᵀ,

    S = diag(1, 1, det U · det V)    R = U S Vᵀ    s = tr(D S) / Σ_j w_j |a_j − ā|²    t = b̄ − s R ā

S is not optional: of a flat hand every second solution without it is a reflection. Both sides are metric, so that s stays 1 unless asked
for: noise shrinks it, and the other way round stretches it (our reading; the paper says similarity). Hands that are exchanged or mirrored
leave a residual like that of ordinary noise, and are found by trying those fits too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egomill.kernels.poses import transform

LEAST = 6  # joints
THIN = 0.01  # m, spread of the joints across their longest direction, below which a rotation around it is anybody's guess
FLAT = 0.01  # m, spread across the third direction, below which a reflection is no other fit
APART = 0.06  # m, residual (RMS)
BETTER = 0.95  # of the residual, below which a reflecting fit is the better one
EXACT = 1e-3  # m, residual below which no other fit is asked
ROUNDS = 10  # of reweighting (Cauchy): a joint counts half at
WIDTH, TIMES = 0.01, 1.5  # m, or so many times the distance at which half the joints lie: ordinary noise is no reason to drop joints

REFUSED = {
    "few_joints": f"fewer than {LEAST} joints are known on both sides",
    "joints_on_a_line": f"the joints lie within {THIN} m of a line",
    "apart": f"the hands do not fit within {APART} m",
    "exchanged": "the fit with left and right exchanged is better",
    "mirrored": "a reflected fit is clearly better",
}


def umeyama(a: Tensor, b: Tensor, weights: Tensor, scaled: bool = False, reflecting: bool = False) -> tuple[Tensor, Tensor]:
    """T_b_a [..., 4, 4] with b ≈ T_b_a a, and the weighted RMS [...] of what is left, metres.

    Points [..., N, 3], weights [..., N] of any sum; points of weight 0 may be NaN. `scaled`: with s, else 1. `reflecting`: a reflection is
    allowed, which no camera's motion is: to compare with.
    """
    used = weights[..., None] > 0
    a, b = torch.where(used, a, 0), torch.where(used, b, 0)
    w = (weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12))[..., None]
    mean_a, mean_b = ((w * x).sum(dim=-2, keepdim=True) for x in (a, b))
    U, D, Vh = torch.linalg.svd((w * (b - mean_b)).transpose(-1, -2) @ (a - mean_a))
    sign = torch.linalg.det(U) * torch.linalg.det(Vh)
    S = torch.ones_like(D)
    S[..., 2] = 1 if reflecting else sign.sign()
    R = U * S[..., None, :] @ Vh
    s = (D * S).sum(dim=-1) / (w * (a - mean_a).square()).sum(dim=(-1, -2)).clamp_min(1e-12) if scaled else torch.ones_like(sign)
    sR = s[..., None, None] * R
    T = torch.eye(4, dtype=a.dtype).expand(*sR.shape[:-2], 4, 4).clone()
    T[..., :3, :3] = sR
    T[..., :3, 3] = (mean_b - mean_a @ sR.transpose(-1, -2))[..., 0, :]
    return T, (w[..., 0] * _distances(T, a, b).square()).sum(dim=-1).sqrt()


def _distances(T_b_a: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (transform(T_b_a, a) - b).norm(dim=-1)


def pa_mpjpe(found: Tensor, true: Tensor) -> Tensor:
    """Mean distance [...] of joints [..., N, 3] to the true ones after the best similarity, in the unit of the true ones; joints that are
    NaN on either side do not count, and with fewer than three it is NaN."""
    known = (found.isfinite() & true.isfinite()).all(dim=-1)
    weights = known.to(true)
    off = _distances(umeyama(found.to(true), true, weights, scaled=True)[0], torch.where(known[..., None], found.to(true), 0), true)
    mean = torch.where(known, off, 0).sum(dim=-1) / weights.sum(dim=-1).clamp_min(1)
    return torch.where(known.sum(dim=-1) >= 3, mean, torch.nan)


@dataclass(frozen=True)
class Alignment:
    """What the hands of a clip say of the cameras. A frame that is refused has NaN for its motion."""

    T_b_a: Tensor  # [F, 4, 4]
    residual: Tensor  # [F] m, RMS over the joints that are known on both sides
    used: Tensor  # [F] joints known on both sides
    refused: tuple[str, ...]  # [F] a key of REFUSED, or ""
    weak: Tensor  # [F] bool: one hand only, whose motion is three times as uncertain
    exchanged: bool  # left and right were exchanged on one side, in the whole clip


def align(a: Tensor, b: Tensor) -> Alignment:
    """The motion T_b_a of every frame from hands [F, 2, 21, 3] in the frames of two cameras, metres, NaN unknown.

    Where exchanging left and right fits better in most frames that have both hands, it is exchanged in all. Joints that do not fit are
    weighted down (Cauchy, ten rounds): one that is 30 cm off turns the camera by 10° otherwise. Refused frames: see REFUSED.
    """
    a, b = a.double(), b.double()
    other, both = b.flip(1), _both(a, b)
    plain, exchanged, reflected = _residual(a, b), _residual(a, other), _residual(a, b, reflecting=True)
    better = both & (exchanged < plain) & (exchanged < reflected) & (plain > EXACT)  # a mirrored scene is much like an exchanged one
    swap = bool(both.any() and better[both].double().mean() > 0.5)
    if swap:
        b, plain, better = other, exchanged, both & (plain < exchanged) & (exchanged > EXACT)
        reflected = _residual(a, b, reflecting=True)
    known = (a.isfinite() & b.isfinite()).all(dim=-1).flatten(1)
    points, targets, weights = a.flatten(1, 2), b.flatten(1, 2), known.double()
    spread = _spread(points, weights)
    checks = {
        "few_joints": known.sum(dim=1) < LEAST,
        "joints_on_a_line": spread[:, 1] < THIN,
        "apart": plain > APART,
        "exchanged": better,
        "mirrored": (reflected < BETTER * plain) & (plain > EXACT) & (spread[:, 2] > FLAT),
    }
    refused = tuple(next((name for name, found in checks.items() if found[f]), "") for f in range(len(a)))
    T = _robust(points, targets, weights)
    T[torch.tensor([bool(why) for why in refused], dtype=torch.bool)] = torch.nan
    sides = known.unflatten(1, (2, -1)).any(dim=2).sum(dim=1)
    return Alignment(T, plain, known.sum(dim=1), refused, sides == 1, swap)


def _residual(a: Tensor, b: Tensor, reflecting: bool = False) -> Tensor:
    known = (a.isfinite() & b.isfinite()).all(dim=-1).flatten(1)
    return umeyama(a.flatten(1, 2), b.flatten(1, 2), known.double(), reflecting=reflecting)[1]


def _both(a: Tensor, b: Tensor) -> Tensor:
    """[F] frames in which both hands can be compared either way."""
    shown = [x.isfinite().all(dim=-1).sum(dim=2) >= LEAST for x in (a, b)]
    return (shown[0] & shown[1]).all(dim=1)


def _spread(points: Tensor, weights: Tensor) -> Tensor:
    """RMS spread [F, 3] of points along their own axes, the longest first, metres."""
    points = torch.where(weights[..., None] > 0, points, 0)
    w = (weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12))[..., None]
    centred = points - (w * points).sum(dim=-2, keepdim=True)
    return torch.linalg.svdvals(w.sqrt() * centred)


def _robust(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    now = weights
    T = umeyama(a, b, now)[0]
    for _ in range(ROUNDS):
        off = torch.where(weights > 0, _distances(T, a, b), torch.nan)
        width = (TIMES * off.nanmedian(dim=-1, keepdim=True).values).nan_to_num(0.0).clamp_min(WIDTH)
        now = weights / (1 + (off.nan_to_num(0.0) / width).square())
        T = umeyama(a, b, now)[0]
    return T
