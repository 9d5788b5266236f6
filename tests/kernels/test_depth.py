"""Alignment on a simulated clip whose truth is known: a person covers a fifth of the picture, and the temporal depth is wrong there."""

import pytest
import torch

from egomill.kernels.cameras import Camera
from egomill.kernels.depth import Alignment, align, at_head, metric_scale
from egomill.scenes.clip import sample_clip

FRAMES, HEIGHT, WIDTH = 49, 112, 196
ALPHA, BETA = 2.0, 0.05


def clip(flicker: float = 0.0, first_frame: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """True depth, mono, temporal and static mask; 1/temporal is off by 35 % on the person, mono by 2 % noise everywhere."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1.7, 1.7, WIDTH), indexing="ij")
    room = torch.minimum(torch.full_like(x, 6.0), torch.where(y > 0.05, 2.2 / y.clamp_min(0.05), torch.inf))
    room = torch.minimum(room, 3.15 / (x.abs() - 0.9).clamp_min(0.3))
    depth, static = room.repeat(FRAMES, 1, 1), torch.ones(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    for frame in range(FRAMES):
        person = (frame, slice(10, 105), slice(20 + frame, 66 + frame))
        depth[person], static[person] = 3.2, False
    v = (1 / depth - BETA) / ALPHA
    v = torch.where(static, v, 0.65 * v)
    scale = 1 + flicker * torch.randn(FRAMES, 1, 1, generator=generator)
    scale[0] *= first_frame
    mono = depth * scale * (1 + 0.02 * torch.randn(depth.shape, generator=generator))
    return depth, mono, 1 / v, static


def background_error(result: Alignment, depth: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
    """Per frame: median signed relative error of what stands still."""
    error = result.depth / depth - 1
    return torch.stack([error[f][static[f]].median() for f in range(FRAMES)])


def test_a_moving_person_does_not_move_the_room():
    depth, mono, temporal, static = clip()
    assert 0.15 < 1 - static.float().mean() < 0.25
    error = (align(mono, temporal, static).depth / depth - 1)[static].abs()
    assert error.median() < 0.01
    released = (align(mono, temporal, static, mode="peer").depth / depth - 1)[static].abs()
    assert released.median() > 0.05


def test_the_mask_is_kept_under_momentum():
    depth, mono, temporal, static = clip()
    assert (align(mono, temporal, static, mode="momentum").depth / depth - 1)[static].abs().median() < 0.01


def test_no_drift_and_no_domination_by_the_first_frame():
    """Each frame's mono scale is off by 3 %, that of frame 0 by 15 %: the room stays within 1.5 %, the paper's running mean does not."""
    depth, mono, temporal, static = clip(flicker=0.03, first_frame=1.15)
    error = background_error(align(mono, temporal, static), depth, static)
    assert error.abs().median() < 0.01
    assert error.abs().max() < 0.015
    assert (error[-1] - error[0]).abs() < 0.01
    paper = background_error(align(mono, temporal, static, mode="momentum"), depth, static)
    assert paper.abs().median() > 0.05


def test_a_slow_change_of_the_temporal_scale_is_followed():
    depth, mono, temporal, static = clip()
    drifting = temporal / (1 + 0.1 * torch.linspace(0, 1, FRAMES))[:, None, None]
    error = background_error(align(mono, drifting, static), depth, static)
    assert error.abs().max() < 0.03


@pytest.mark.parametrize("mode", ["robust", "momentum"])
def test_exact_data_give_the_exact_answer(mode):
    depth, _, temporal, static = clip()
    result = align(torch.where(static, depth, 0), temporal, static, mode=mode)
    assert torch.allclose(result.alpha, torch.full((FRAMES,), ALPHA), rtol=1e-3)
    assert torch.allclose(result.beta, torch.full((FRAMES,), BETA), atol=1e-3)
    assert result.inliers.min() > 0.999
    assert result.rms.max() < 1e-3


def test_a_frame_without_static_pixels_is_carried_by_its_neighbours():
    depth, mono, temporal, static = clip()
    static = static.clone()
    static[7] = False
    result = align(mono, temporal, static)
    assert (result.depth[7] / depth[7] - 1).median().abs() < 0.02
    assert result.inliers[7] == 0


@pytest.mark.parametrize("mode", ["robust", "momentum", "peer"])
def test_unknown_depth_stays_unknown(mode):
    _, mono, temporal, static = clip()
    temporal = temporal.clone()
    temporal[:, :5] = 0
    temporal[:, 5:8] = torch.nan
    mono[:, :, :4] = torch.nan
    result = align(mono, temporal, static, mode=mode)
    assert (result.depth[:, :8] == 0).all()
    assert result.depth.isfinite().all()


def test_a_flat_wall_is_aligned():
    mono = torch.full((5, 32, 32), 3.0)
    result = align(mono, torch.full_like(mono, 7.0), torch.ones_like(mono, dtype=torch.bool))
    assert torch.allclose(result.depth, mono, rtol=1e-3)


def test_bad_calls():
    _, mono, temporal, static = clip()
    with pytest.raises(ValueError, match="robust"):
        align(mono, temporal, static, mode="best")
    with pytest.raises(ValueError, match="static pixel"):
        align(mono, temporal, torch.zeros_like(static))
    with pytest.raises(ValueError, match="differ"):
        align(mono, temporal[:5], static)


def test_metric_scale_from_landmarks():
    camera = Camera("pinhole", (100.0, 100.0, 63.5, 63.5), 128, 128)
    rays, _ = camera.rays()
    depth = 2 + torch.rand(128, 128, generator=torch.Generator().manual_seed(0))
    landmarks = (rays * depth[..., None]).reshape(-1, 3)[::50] * 1.3
    landmarks[::5] *= 3
    scale, support = metric_scale(depth, camera, torch.eye(4), landmarks)
    assert scale == pytest.approx(1.3, rel=0.02)
    assert support < len(landmarks)
    assert metric_scale(depth, camera, torch.eye(4), landmarks[:5]) == (1.0, 0)
    landmarks = landmarks * torch.linspace(-1.2, 1.2, len(landmarks))[:, None].exp()  # no factor for most of them
    assert metric_scale(depth, camera, torch.eye(4), landmarks) == (1.0, 0)


def heads(seed: int, view: int, frames: int = 1):
    clip = sample_clip(seed, frames, fps=2.0, exo_size=(224, 128), ego_size=16, exo_index=view)
    T_exo_ego = torch.from_numpy(clip.T_world_exo).inverse() @ torch.from_numpy(clip.T_world_ego)
    return torch.from_numpy(clip.exo_depth), torch.from_numpy(~clip.exo_dynamic), clip.exo_camera, T_exo_ego


@pytest.mark.parametrize("seed", range(4))
def test_true_depth_is_right_at_the_head(seed):
    for view in range(4):
        depth, *more = heads(seed, view)
        found = at_head(depth, *more)
        assert found is not None
        assert found.scale == pytest.approx(1, abs=0.05)
        assert found.around > 1.5
        assert found.clear
        off = at_head(1.4 * depth, *more)
        assert off is not None
        assert off.scale == pytest.approx(1.4 * found.scale, rel=1e-4)


def test_a_head_that_is_not_seen_says_nothing():
    depth, static, camera, T = heads(0, 0, frames=3)
    assert at_head(torch.zeros_like(depth), static, camera, T) is None
    aside = T.clone()
    aside[:, 0, 3] += 30
    assert at_head(depth, static, camera, aside) is None
    behind = T.clone()
    behind[:, 2, 3] *= -1
    assert at_head(depth, static, camera, behind) is None
    still = at_head(depth, torch.ones_like(static), camera, T)
    assert still is not None
    assert not still.clear
    hidden = at_head(torch.where(torch.arange(3)[:, None, None] == 1, 0.3, depth), static, camera, T)  # in one frame of three
    assert hidden is not None
    assert hidden.scale == pytest.approx(1, abs=0.05)
