from __future__ import annotations

import numpy as np
import torch

from egomill.kernels.cameras import aria_rgb
from egomill.kernels.landmarks import follow, triangulate
from egomill.kernels.poses import inverse, transform


def path(frames: int) -> torch.Tensor:
    """A camera that moves half a metre to the side and turns."""
    T = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    turn = torch.linspace(0, 0.2, frames, dtype=torch.float64)
    T[:, 0, 0], T[:, 0, 2], T[:, 2, 0], T[:, 2, 2] = turn.cos(), turn.sin(), -turn.sin(), turn.cos()
    T[:, 0, 3] = torch.linspace(0, 0.5, frames)
    return T


def test_points_at_rest_are_found_and_moving_ones_are_not():
    camera, T = aria_rgb(), path(8)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 2.0, 2.0]) + torch.tensor([-1, -1, 1.5])
    places = points[None].repeat(8, 1, 1)
    places[:, 40:50, 1] += torch.linspace(0, 0.3, 8)[:, None]  # these move
    pixels, inside = camera.project(transform(inverse(T), places))
    tracks = torch.where(inside[..., None], pixels, torch.nan).transpose(0, 1)
    tracks[50:, 3:] = torch.nan  # these are seen too seldom
    still = points[:40][(tracks[:40].isfinite().all(-1).sum(1) >= 4)]
    found = triangulate(tracks, camera, T)
    assert len(still) > 30
    assert torch.allclose(found, still, atol=1e-4)
    assert len(triangulate(tracks, camera, T[:1].repeat(8, 1, 1))) == 0  # a camera that stands sees no depth
    assert triangulate(tracks[:0], camera, T).shape == (0, 3)


def test_pictures_without_corners_have_no_landmarks():
    grey = np.full((5, 64, 64, 3), 128, np.uint8)
    tracks = follow(grey, np.ones((64, 64), bool))
    assert tracks.shape == (0, 5, 2)
