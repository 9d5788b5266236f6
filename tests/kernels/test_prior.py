"""Dynamic masks, the accumulated room, the prior and the filling of its holes, on pictures made so that the answer is known."""

import pytest
import torch

from egomill.kernels.background import accumulate, background_mask, masked_median, temporal_static
from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.fill import push_pull
from egomill.kernels.prior import coverage, join, render_cloud, render_prior, room_cloud

FRAMES, HEIGHT, WIDTH = 9, 64, 96
EXO = Camera("pinhole", (60.0, 60.0, 47.5, 31.5), WIDTH, HEIGHT)


def scene(step: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Video of a noisy checkered wall at z = 3 m with a bright box at 2 m passing by; true range, true dynamic mask, the empty wall."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    wall = (60 + 80 * ((x // 8 + y // 8) % 2))[..., None].expand(-1, -1, 3).float()
    video = wall + 3 * torch.randn(FRAMES, HEIGHT, WIDTH, 3, generator=generator)
    rays, _ = EXO.rays()
    depth, moving = (3 / rays[..., 2]).repeat(FRAMES, 1, 1), torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    for frame in range(FRAMES):
        box = (frame, slice(16, 52), slice(step * frame, step * frame + 16))
        video[box], depth[box], moving[box] = 230.0, 2.0, True
    return video.round().clamp(0, 255).to(torch.uint8), depth, moving, wall


def test_the_mask_finds_what_moves():
    video, _, moving, _ = scene()
    found = background_mask(video)
    assert found[moving].float().mean() > 0.99
    assert (found & ~moving).float().mean() < 0.08


def test_a_change_of_light_is_no_motion():
    video, _, _, wall = scene()
    still = wall.to(torch.uint8).repeat(FRAMES, 1, 1, 1)
    still[4:] += 30
    assert not background_mask(still).any()
    assert not background_mask(torch.randint(100, 110, video.shape, dtype=torch.uint8)).any()


def test_what_never_rests_is_dynamic_throughout():
    """Somebody who shifts about in one place: every frame differs there, the median is a blur of all."""
    wall = scene()[3]
    still = wall.to(torch.uint8).repeat(FRAMES, 1, 1, 1)
    still[:, 20:44, 30:60] = torch.randint(0, 255, (FRAMES, 24, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert background_mask(still)[:, 22:42, 32:58].all()


def test_other_videos_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        background_mask(torch.zeros(3, 8, 8, 3))


def test_masked_median_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(7, 40, generator=generator), torch.rand(7, 40, generator=generator) > 0.5
    mask[:, 0] = False
    found = masked_median(values, mask)
    assert torch.isnan(found[0])
    for column in range(1, 40):
        assert found[column] == values[mask[:, column], column].median()


def test_the_accumulated_room_is_the_room():
    video, depth, moving, wall = scene()
    room = accumulate(video, depth, ~moving)
    rays, _ = EXO.rays()
    assert (room.colour - wall).abs().mean() < 2
    assert torch.allclose(room.depth, 3 / rays[..., 2], rtol=1e-4)


def test_what_was_never_static_is_unknown():
    video, depth, moving, _ = scene(step=0)
    room = accumulate(video, depth, ~moving)
    assert (room.depth[16:52, :16] == 0).all()
    assert (room.seen[16:52, :16] == 0).all()
    assert (room.depth[:, 20:] > 0).all()


def test_temporal_static_is_steady():
    _, depth, moving, _ = scene()
    generator = torch.Generator().manual_seed(0)
    flickering = (
        depth * (1 + 0.05 * torch.randn(FRAMES, 1, 1, generator=generator)) * (1 + 0.02 * torch.randn(depth.shape, generator=generator))
    )
    steady = temporal_static(flickering, ~moving)
    rays, _ = EXO.rays()
    ratio = steady / (3 / rays[..., 2])
    assert (ratio / ratio.median() - 1).abs().max() < 0.05
    assert (steady.diff(dim=0) == 0).all()
    own = temporal_static(flickering, ~moving, fill_dynamic=False)
    assert (own[moving] / 2 - ratio.median()).abs().mean() < 0.05


def test_the_prior_from_the_same_place_is_the_empty_wall():
    video, depth, moving, wall = scene()
    prior, valid = render_prior(video, depth, ~moving, EXO, torch.eye(4), EXO, torch.eye(4)[None])
    assert valid.float().mean() > 0.98
    assert (prior[0].float() - wall)[valid[0]].abs().mean() < 6
    assert (prior[0][~valid[0]] == 0).all()


def test_frames_on_their_own_have_holes_where_somebody_stands():
    video, depth, moving, _ = scene()
    poses = torch.eye(4).repeat(FRAMES, 1, 1)
    _, valid = render_prior(video, depth, ~moving, EXO, torch.eye(4), EXO, poses, accumulated=False)
    assert valid[moving].float().mean() < 0.3
    assert valid[~moving].float().mean() > 0.95


def test_another_pose_moves_the_picture_as_geometry_says():
    """Half a metre to the right at 3 m and f = 60 px: ten pixels to the left."""
    video, depth, moving, wall = scene()
    T = torch.eye(4)
    T[0, 3] = 0.5
    prior, valid = render_prior(video, depth, ~moving, EXO, torch.eye(4), EXO, T[None])
    assert (prior[0, :, :80].float() - wall[:, 10:90])[valid[0, :, :80]].abs().mean() < 12
    assert not valid[0, :, -9:].any()


def test_two_views_cover_more():
    video, depth, moving, _ = scene()
    other = torch.eye(4)
    other[0, 3] = 2.0
    ego = aria_rgb(64)
    rooms = [room_cloud(accumulate(video, depth, ~moving), EXO, pose) for pose in (torch.eye(4), other)]
    disc = ego.rays()[1]
    one = coverage(render_cloud(rooms[0], ego, torch.eye(4)[None])[1], disc)
    both = coverage(render_cloud(join(rooms), ego, torch.eye(4)[None])[1], disc)
    assert 0 < one < both <= 1


def test_what_does_not_fit_is_refused():
    video, depth, moving, _ = scene()
    with pytest.raises(ValueError, match="fit"):
        render_prior(video, depth[:4], ~moving, EXO, torch.eye(4), EXO, torch.eye(4)[None])
    with pytest.raises(ValueError, match="exo camera"):
        render_prior(video, depth, ~moving, aria_rgb(64), torch.eye(4), EXO, torch.eye(4)[None])


@pytest.mark.parametrize("layout", ["last", "first", "bytes"])
def test_filling_keeps_what_is_known(layout):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 37, 50, 3, generator=generator)
    if layout == "bytes":
        image = (image * 255).to(torch.uint8)
    valid = torch.rand(2, 37, 50, generator=generator) > 0.6
    valid[0, 5:25, 5:25] = False
    given = image.movedim(-1, 1) if layout == "first" else image
    filled = push_pull(given, valid)
    filled = filled.movedim(1, -1) if layout == "first" else filled
    assert filled.dtype == image.dtype
    assert torch.equal(filled[valid], image[valid])
    assert filled.float().min() >= image[valid].float().min() - 1e-6
    assert filled.float().max() <= image[valid].float().max() + 1e-6


def test_a_smooth_picture_is_restored():
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    image = torch.stack([x, y, (x + y) / 2], dim=-1)[None]
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, 24:40, 24:40] = False
    assert (push_pull(image, valid) - image).abs().max() < 0.1


def test_a_constant_stays_and_nothing_is_nothing():
    valid = torch.zeros(1, 20, 31, dtype=torch.bool)
    assert (push_pull(torch.ones(1, 20, 31, 3), valid) == 0).all()
    valid[0, 3, 4] = True
    assert torch.allclose(push_pull(torch.full((1, 20, 31, 3), 0.7), valid), torch.tensor(0.7))
