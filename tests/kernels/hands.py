"""Hands for tests: 21 joints each, bent fingers, of an adult's size."""

from __future__ import annotations

import math

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor


def hand(seed: int = 0, curl: float = 0.5, right: bool = False) -> Tensor:
    """[21, 3] metres, wrist at the origin, fingers along x, the palm looking down (-z); flat where `curl` is 0. Bent a little by seed."""
    rng = torch.Generator().manual_seed(seed)
    joints = [torch.zeros(3)]
    side = -1.0 if right else 1.0
    for finger in range(5):
        spread = side * (0.9 - 0.35 * finger if finger == 0 else 0.36 - 0.18 * finger)
        ahead = torch.tensor([math.cos(spread), math.sin(spread), 0.0])
        at, bend = ahead * (0.045 if finger == 0 else 0.09), 0.0
        joints.append(at)
        for bone in range(3):
            bend += curl * (0.6 + 0.4 * torch.rand(1, generator=rng).item())
            at = at + (0.04 - 0.008 * bone) * torch.tensor([math.cos(bend) * ahead[0], math.cos(bend) * ahead[1], -math.sin(bend)])
            joints.append(at)
    return torch.stack(joints).double()


def two(seed: int = 0, curl: float = 0.5, apart: float = 0.3) -> Tensor:
    """[2, 21, 3], left and right, so far apart."""
    left, right = hand(seed, curl), hand(seed + 1, curl, right=True)
    turn = torch.from_numpy(Rotation.from_euler("xyz", [0.3, -0.2, 0.4]).as_matrix())
    return torch.stack([left, right @ turn.T + torch.tensor([0.02, -apart, 0.03], dtype=torch.float64)])


def motion(seed: int) -> Tensor:
    """A random rigid motion [4, 4], float64."""
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    T[:3, 3] = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return T
