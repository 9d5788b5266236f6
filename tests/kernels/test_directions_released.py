"""The released code's directions, against what was measured of that code: its faults are to be reproduced, to the tenth of a degree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from egomill.kernels import directions, directions_released
from egomill.kernels.cameras import Camera, aria_rgb, gopro
from tests.kernels.test_directions import EXO, degrees, poses, room


def test_the_ego_rays_are_as_wrong_as_measured_on_a_real_aria():
    """Of cmu_bike08_2, over all tokens: mean 12.4°, median 10.5°, at most 50.1°; 16.8° in the middle; 10.7° within 65° of the axis."""
    lens = replace(aria_rgb(448), max_theta=math.radians(80))  # the corners too
    still = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    true, seen = directions.ego_rays(lens, still)
    found, valid = directions_released.ego_rays(448, still)
    assert found.shape == true.shape == (2, 28, 28, 3)
    assert seen.all()
    assert valid.all()
    wrong = degrees(found, true)[0]
    assert float(wrong.mean()) == pytest.approx(12.4, abs=0.1)
    assert float(wrong.median()) == pytest.approx(10.5, abs=0.1)
    assert float(wrong.max()) == pytest.approx(50.1, abs=0.2)
    assert float(wrong[13:15, 13:15].mean()) == pytest.approx(16.8, abs=0.2)
    assert float(wrong[true[0, ..., 2] > math.cos(math.radians(65))].mean()) == pytest.approx(10.7, abs=0.1)


def test_rays_turn_with_the_head_of_every_fourth_frame():
    T = poses().double()
    found, _ = directions_released.ego_rays(64, T)
    still, _ = directions_released.ego_rays(64, torch.eye(4, dtype=torch.float64)[None])
    assert torch.allclose(found, torch.einsum("fij,hwj->fhwi", T[::4, :3, :3], still[0]))
    assert torch.equal(directions_released.latent_centres(T), T[[0, 4, 8], :3, 3])


def test_the_exo_pinhole_is_the_annotations():
    """f = 1248 px at 3840x2160 for the lens of every take, centred: rays 4.7° off in the mean, 7.1° at most."""
    lens = gopro(796, 448).crop(6, 0, 784, 448)
    found = directions_released.pinhole(lens)
    assert found.params[1] * 2160 / 448 == pytest.approx(1248, abs=0.5)
    assert found.params[2:] == (392, 224)
    wrong = degrees(lens.rays(torch.float64)[0], found.rays(torch.float64)[0])
    assert (float(wrong.mean()), float(wrong.max())) == pytest.approx((4.7, 7.1), abs=0.1)
    given = Camera("pinhole", (634.0, 634.0, 390.0, 225.0), 784, 448)
    assert directions_released.pinhole(given).params == (634, 634, 392, 224)


def exact(depth: torch.Tensor, T_world_exo: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """As the released code goes about it: the point map of every fourth frame shrunk bilinearly, unit vectors, pooled and left so."""
    rays, _ = EXO.rays(torch.float64)
    pin = directions_released.pinhole(EXO)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in depth.shape[1:]), indexing="ij")
    on_plane = torch.stack([(x - pin.params[2]) / pin.params[0], (y - pin.params[3]) / pin.params[1], torch.ones_like(x)], dim=-1)
    points = (depth[::4] * rays[..., 2])[..., None] * on_plane
    points = points @ T_world_exo[:3, :3].T + T_world_exo[:3, 3]
    small = interpolate(points.movedim(-1, 1), size=(depth.shape[1] // 8, depth.shape[2] // 8), mode="bilinear").movedim(1, -1)
    unit = normalize(small[None] - centres[:, None, None, None], dim=-1)
    return torch.nn.functional.avg_pool2d(unit.flatten(0, 1).movedim(-1, 1), 2).movedim(1, -1).unflatten(0, unit.shape[:2])


def test_exo_points_give_the_directions_that_the_released_code_pools():
    depth, T_exo = room().double(), torch.eye(4, dtype=torch.float64)
    T_exo[:3, 3] = torch.tensor([0.3, -0.2, 0.1])
    centres = directions_released.latent_centres(poses().double())
    points, valid = directions_released.exo_points(depth, EXO, T_exo, centres)
    assert valid.all()
    pooled = exact(depth, T_exo, centres)
    wrong = degrees(directions.exo_directions(points, centres), normalize(pooled, dim=-1))
    assert float(wrong.mean()) < 0.1
    lengths = pooled.norm(dim=-1)
    assert float((lengths > 0.99).double().mean()) > 0.9  # what leaving them unnormalised takes from the cosines there


def test_unknown_depth_is_left_out_and_a_token_of_nothing_else_is_invalid():
    depth, centres = room().double(), directions_released.latent_centres(poses().double())
    whole, _ = directions_released.exo_points(depth, EXO, torch.eye(4), centres)
    depth[:, 4:16, :16] = 0  # the first token keeps a row of its upper cells' middles
    depth[:, 16:32, 16:32] = torch.nan
    found, valid = directions_released.exo_points(depth, EXO, torch.eye(4), centres)
    assert not valid[:, 1, 1].any()
    assert not found[:, 1, 1].any()
    assert int(valid.sum()) == valid.numel() - len(valid)
    assert torch.equal(found[:, 2:], whole[:, 2:])
