"""The simulator's promises: the same seed gives the same clip, and its geometry is one geometry, whichever camera looks."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from egomill.kernels.cameras import gopro
from egomill.kernels.poses import inverse, transform
from egomill.scenes.clip import SceneClip, sample_clip
from egomill.scenes.render import lattice, picture, render
from egomill.scenes.world import EXO, make_scene


@lru_cache(maxsize=2)
def clip(seed: int = 3) -> SceneClip:
    return sample_clip(seed, frames=4)


def test_the_same_seed_gives_the_same_clip_and_another_another():
    again, other = sample_clip(3, frames=4), sample_clip(4, frames=4)
    for name in ("exo", "ego", "exo_depth", "exo_dynamic", "ego_depth", "ego_dynamic", "T_world_ego"):
        assert np.array_equal(getattr(clip(), name), getattr(again, name)), name
    assert again.caption == clip().caption
    assert (other.exo != clip().exo).mean() > 0.5


def test_shapes_and_kinds():
    c = clip()
    assert c.exo.shape == (4, 128, 224, 3)
    assert c.ego.shape == (4, 128, 128, 3)
    assert c.exo.dtype == c.ego.dtype == np.uint8
    assert c.exo_depth.shape == c.exo_dynamic.shape == (4, 128, 224)
    assert c.ego_depth.dtype == np.float32
    assert (c.exo_camera.width, c.exo_camera.height, c.ego_camera.turns) == (224, 128, 1)
    assert c.T_world_ego.shape == (4, 4, 4)
    _, valid = c.ego_camera.rays()
    assert np.isfinite(c.ego_depth).all()
    assert (c.ego_depth[:, valid.numpy()] > 0.05).all()
    assert c.caption.startswith("A person ")


def world_points(depth: np.ndarray, camera, T_world_cam: np.ndarray) -> torch.Tensor:
    rays, _ = camera.rays(torch.float64)
    return transform(torch.as_tensor(T_world_cam), (rays * torch.as_tensor(depth, dtype=torch.float64)[..., None]).reshape(-1, 3))


def agreement(points: torch.Tensor, depth: np.ndarray, camera, T_world_cam: np.ndarray) -> tuple[float, int]:
    """Of the points that a camera sees unoccluded: the share whose distance is that of its depth map, and their number."""
    local = transform(inverse(torch.as_tensor(T_world_cam)), points)
    pixels, valid = camera.project(local)
    x, y = pixels[valid].round().long().unbind(-1)
    seen = torch.as_tensor(depth)[y.clamp(0, camera.height - 1), x.clamp(0, camera.width - 1)].double()
    distance = local[valid].norm(dim=-1)
    not_behind = distance < seen + 0.05
    return float(((distance - seen).abs() < 0.05)[not_behind].double().mean()), int(not_behind.sum())


def test_depth_reprojected_to_the_head_camera_agrees_with_its_depth():
    c = clip()
    points = world_points(c.exo_depth[0], c.exo_camera, c.T_world_exo)[c.exo_depth[0].ravel() > 0]
    share, count = agreement(points, c.ego_depth[0], c.ego_camera, c.T_world_ego[0])
    assert count > 1000
    assert share > 0.9


def test_depth_reprojected_to_another_exo_camera_agrees_with_its_depth():
    scene, camera = make_scene(5), gopro(199, 112)
    moment, grid = scene.moment(1.0), lattice(gopro(199, 112), False)
    depths = {}
    for cam in EXO[:2]:
        T = scene.T_world_exo[cam]
        frame = render(scene, grid, T, moment, render(scene, grid, T, None))
        depths[cam] = picture(scene, grid, frame)[1]
        whole = picture(scene, grid, render(scene, grid, T, moment))[1]
        assert np.allclose(depths[cam], whole)  # the static picture with the person cast into it is the picture of all
    points = world_points(depths["cam01"], camera, scene.T_world_exo["cam01"])[depths["cam01"].ravel() > 0]
    share, count = agreement(points, depths["cam02"], camera, scene.T_world_exo["cam02"])
    assert count > 3000
    assert share > 0.9


def test_what_moves_is_masked_and_what_is_not_masked_stands_still():
    c = clip()
    still = ~c.exo_dynamic.any(axis=0)
    assert np.array_equal(c.exo_depth[0][still], c.exo_depth[-1][still])
    assert 0.002 < c.exo_dynamic.mean() < 0.3
    moved = np.abs(c.exo_depth[0] - c.exo_depth[-1]) > 0.01
    assert moved.any()
    assert not (moved & still).any()
    assert c.ego_dynamic.any()


def test_the_ego_picture_is_upright():
    """Up in the world is up in the portrait picture: the rays of the upper half look higher, and the floor is in the lower half."""
    c = clip()
    rays, valid = c.ego_camera.rays(torch.float64)
    for k in range(4):
        height = (rays @ torch.as_tensor(c.T_world_ego[k][:3, :3]).T)[..., 2].numpy()
        assert height[:64].mean() > height[64:].mean() + 0.5
        assert abs(height[:, :64].mean() - height[:, 64:].mean()) < 0.1  # level
        assert -c.T_world_ego[k][2, 0] > 0.3  # minus the sensor's x axis points up, as in the release
        ground = c.T_world_ego[k][2, 3] + height * c.ego_depth[k] < 0.01
        rows = np.nonzero(ground & valid.numpy())[0]
        assert len(rows) == 0 or rows.mean() > 30


def test_the_corners_of_the_ego_picture_are_black():
    c = clip()
    assert c.ego[:, :8, :8].max() == 0
    assert c.ego[:, -8:, -8:].max() == 0
    assert c.ego[:, 56:72, 56:72].mean() > 20


@pytest.mark.parametrize("bad", [{"exo_index": 4}, {"frames": 0}, {"fps": 0.0}])
def test_bad_calls_say_which_clip(bad):
    with pytest.raises(ValueError, match="seed 9"):
        sample_clip(9, **bad)
