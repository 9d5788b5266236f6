"""A head's path as others measure it, at uneven times and for the upright picture, brought to a clip's frames and to the sensor."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

SLACK = 1e-3  # seconds by which a path may end early: times are written with few digits


def poses_at(seconds: Tensor, T: Tensor, wanted: Tensor) -> Tensor:
    """Poses [F, 4, 4] float64 at times `wanted` [F] on a path of rigid poses T [N, 4, 4] at ascending `seconds` [N], N > 1.

    Positions linearly, rotations by slerp, between the two poses that surround a time. NaN where the path does not reach.
    """
    first, last = float(seconds[0]), float(seconds[-1])
    at = wanted.double().clamp(first, last).numpy()
    out = torch.eye(4, dtype=torch.float64).repeat(len(at), 1, 1)
    slerp = Slerp(seconds.double().numpy(), Rotation.from_matrix(T[:, :3, :3].double().numpy()))
    out[:, :3, :3] = torch.from_numpy(slerp(at).as_matrix())
    for axis in range(3):
        out[:, axis, 3] = torch.from_numpy(np.interp(at, seconds.double().numpy(), T[:, axis, 3].double().numpy()))
    out[(wanted < first - SLACK) | (wanted > last + SLACK)] = torch.nan
    return out
