"""Rigid transforms, named by frames: `T_world_cam` takes camera coordinates to world coordinates.

Plain [..., 4, 4] matrices, so that `T_a_b @ T_b_c` reads right or wrong at a glance; three functions instead of a class tower.
"""

from __future__ import annotations

import torch
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor


def inverse(T: Tensor) -> Tensor:
    """T_b_a from T_a_b, [..., 4, 4]. Exact for rigid transforms: Rᵀ, −Rᵀt."""
    R, t = T[..., :3, :3], T[..., :3, 3:]
    top = torch.cat((R.transpose(-1, -2), -R.transpose(-1, -2) @ t), dim=-1)
    return torch.cat((top, T[..., 3:, :]), dim=-2)


def transform(T: Tensor, points: Tensor) -> Tensor:
    """Points [..., N, 3] of frame b through T_a_b [..., 4, 4] to frame a."""
    return points @ T[..., :3, :3].transpose(-1, -2) + T[..., None, :3, 3]


def rotate(T: Tensor, vectors: Tensor) -> Tensor:
    """Directions [..., N, 3] of frame b through T_a_b [..., 4, 4]: rotated, not moved."""
    return vectors @ T[..., :3, :3].transpose(-1, -2)


def from_rt(Rt: Tensor) -> Tensor:
    """[..., 3, 4] (the way Ego-Exo4D writes extrinsics) to [..., 4, 4]."""
    last = torch.zeros_like(Rt[..., :1, :])
    last[..., 3] = 1
    return torch.cat((Rt, last), dim=-2)


def is_rigid(T: Tensor, tolerance: float = 1e-3) -> Tensor:
    """[...] whether the rotation part is orthonormal and right-handed within `tolerance` (a reflection is not), and all is finite."""
    R = T[..., :3, :3]
    eye = torch.eye(3, dtype=T.dtype, device=T.device)
    error = (R @ R.transpose(-1, -2) - eye).abs().amax(dim=(-1, -2))
    return torch.isfinite(T).all(dim=-1).all(dim=-1) & (error < tolerance) & (torch.linalg.det(torch.nan_to_num(R)) > 0)


def fill_gaps(T: Tensor, max_gap: int) -> Tensor:
    """Poses [F, 4, 4] with NaN where unknown; gaps of at most `max_gap` frames between known poses are interpolated.

    Positions linearly, rotations by slerp. Longer gaps, and frames before the first or after the last known pose, stay NaN.
    """
    known = torch.isfinite(T).all(dim=-1).all(dim=-1)
    frames = torch.nonzero(known).flatten()
    out = T.clone()
    for a, b in zip(frames[:-1].tolist(), frames[1:].tolist(), strict=True):
        if not 1 < b - a <= max_gap + 1:
            continue
        slerp = Slerp([a, b], Rotation.from_matrix(T[[a, b], :3, :3].double().numpy()))
        inside = torch.arange(a + 1, b)
        w = ((inside - a) / (b - a)).to(T.dtype)[:, None]
        out[inside] = torch.eye(4, dtype=T.dtype)
        out[inside, :3, :3] = torch.as_tensor(slerp(inside.numpy()).as_matrix(), dtype=T.dtype)
        out[inside, :3, 3] = (1 - w) * T[a, :3, 3] + w * T[b, :3, 3]
    return out


def jumps(T: Tensor, max_step: float, max_turn: float) -> Tensor:
    """[F] frames whose pose departs from the previous one by more than `max_step` metres or `max_turn` radians (NaN poses: False)."""
    step = (T[1:, :3, 3] - T[:-1, :3, 3]).norm(dim=-1)
    trace = (T[1:, :3, :3] * T[:-1, :3, :3]).sum(dim=(-1, -2))
    turn = torch.arccos(((trace - 1) / 2).clamp(-1, 1))
    bad = (step > max_step) | (turn > max_turn)
    return torch.cat((torch.zeros(1, dtype=torch.bool), bad))


def hold(T: Tensor) -> Tensor:
    """Poses [F, 4, 4] with every unknown one told: interpolated between known ones however far they are apart, and held at both ends.

    ValueError where none is known.
    """
    known = torch.isfinite(T).all(dim=-1).all(dim=-1).nonzero().flatten()
    if not len(known):
        raise ValueError("no pose of the path is known")
    out = fill_gaps(T, len(T))
    out[: known[0]], out[known[-1] :] = T[known[0]], T[known[-1]]
    return out


def smooth(T: Tensor, width: int) -> Tensor:
    """Poses [F, 4, 4], each replaced by the mean of the `width` (odd) around it, fewer at the ends: positions by mean, rotations by the
    rotation nearest to the mean of matrices."""
    reach, out = width // 2, T.clone()
    for frame in range(len(T)):
        near = T[max(0, frame - reach) : frame + reach + 1]
        U, _, Vh = torch.linalg.svd(near[:, :3, :3].mean(dim=0))
        U[:, 2] *= torch.linalg.det(U @ Vh).sign()
        out[frame, :3, :3], out[frame, :3, 3] = U @ Vh, near[:, :3, 3].mean(dim=0)
    return out
