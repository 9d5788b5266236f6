"""Hands of 21 joints: where their surface is, the scale that it gives to depth, and that they are drawn where the camera sees them."""

import numpy as np
import pytest
import torch

from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.hands import BONES, COLOURS, FINGER, JOINTS, pose_map, scale, surface
from tests.kernels.hands import two

CAMERA = Camera("pinhole", (300.0, 300.0, 159.5, 119.5), 320, 240)


def before(camera_z: float = 0.8) -> torch.Tensor:
    """Two hands before a camera, [2, 21, 3]."""
    joints = two(curl=0.3)
    return joints - joints.flatten(0, 1).mean(dim=0) + torch.tensor([0, 0, camera_z])


def test_the_skeleton_has_each_joint_once_as_an_end():
    assert [b for _, b in BONES] == list(range(1, JOINTS))
    assert [a for a, b in BONES if b % 4 == 1] == [0] * 5
    assert len(COLOURS) == 5


def test_the_surface_lies_a_radius_around_the_bones():
    joints = before().float()
    found = surface(joints, CAMERA)
    rays, _ = CAMERA.rays()
    hit = found.isfinite()
    assert 1000 < int(hit.sum()) < 20000
    points = rays[hit] * found[hit][:, None]
    off = torch.full((len(points),), torch.inf)
    for hand in joints:
        for a, b in BONES:
            along = hand[b] - hand[a]
            at = (((points - hand[a]) @ along) / along.dot(along)).clamp(0, 1)
            distance = (points - hand[a] - at[:, None] * along).norm(dim=1)
            off = torch.minimum(off, distance - (FINGER if a else 0.012))
    assert off.abs().max() < 2e-4
    assert surface(torch.full((2, 21, 3), torch.nan), CAMERA).isinf().all()
    assert surface(-joints, CAMERA).isinf().all()  # behind the camera


@pytest.mark.parametrize(
    ("behind", "before_it", "wanted", "within"),
    [(0, 0, 0.0, 0.01), (0.1, 0, -0.004, 0.01), (0.3, 0, -0.017, 0.015), (0, 0.3, 0.017, 0.015)],
)
def test_a_scale_bears_pixels_that_show_something_else(behind, before_it, wanted, within):
    """Shares of the hands' pixels that show a wall at 1.8 m, or something 12 cm before them: errors of a median of noisy ratios."""
    rng = torch.Generator().manual_seed(0)
    hands = torch.full((20, 80, 80), torch.inf)
    hands[:, 20:60, 20:60] = 0.8
    depth = torch.where(hands.isinf(), 0.8, hands) * (1 + 0.03 * torch.randn(hands.shape, generator=rng)) / 1.7
    spot = torch.rand(20, 1, 80, generator=rng).expand_as(depth)  # in columns, or all of it would be edges
    depth = torch.where(spot < behind, torch.tensor(1.8 / 1.7), depth)
    depth = torch.where(spot > 1 - before_it, depth - 0.12 / 1.7, depth)
    found = scale(hands, depth)
    assert found.factor / 1.7 - 1 == pytest.approx(wanted, abs=within + 0.02 * (behind + before_it))
    assert found.pixels > 30
    assert found.spread < 0.25


def test_a_scale_of_nothing_is_none_and_of_half_a_wall_is_spread():
    nothing = scale(torch.full((1, 8, 8), torch.inf), torch.ones(1, 8, 8))
    assert nothing.pixels == 0
    assert np.isnan(nothing.factor)
    hands = torch.full((1, 40, 80), 0.8)
    depth = torch.full((1, 40, 80), 0.8)
    depth[..., 35:] = 1.8
    assert scale(hands, depth).spread > 0.25


@pytest.mark.parametrize("camera", [CAMERA, aria_rgb(256)], ids=["pinhole", "turned fisheye"])
def test_the_drawing_lies_on_the_projected_joints(camera):
    joints = before(0.8)
    joints[1, 8] = torch.nan
    joints[0, 20, 2] = 0.01
    picture = pose_map(joints, camera)
    assert picture.shape == (camera.height, camera.width, 3)
    pixels, inside = camera.project(torch.nan_to_num(joints))
    for hand, joint in [(0, 4), (0, 8), (1, 12), (1, 20), (1, 16)]:  # tips, which few bones lie over
        x, y = pixels[hand, joint].round().int().tolist()
        assert inside[hand, joint]
        colour = COLOURS[(joint - 1) // 4] + hand * 0.45 * (255 - COLOURS[(joint - 1) // 4])
        assert np.abs(picture[y, x].astype(float) - colour).max() < 60, (hand, joint)
    lit = picture.any(axis=-1)
    ys, xs = np.nonzero(lit)
    near = np.hypot(xs[:, None] - pixels[..., 0].flatten().numpy(), ys[:, None] - pixels[..., 1].flatten().numpy()).min(axis=1)
    assert near.max() < 0.06 * camera.width
    assert not pose_map(torch.full((2, 21, 3), torch.nan), camera).any()
    np.testing.assert_array_equal(pose_map(joints, camera), pose_map(joints.float(), camera))
