"""Plücker maps by their axioms, and against the cameras: a point that a pixel shows lies on the pixel's line."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from egomill.kernels import rays
from egomill.kernels.cameras import Camera, aria_rgb, gopro
from egomill.kernels.poses import inverse, transform

F64 = torch.float64
LENSES = {"fisheye624": aria_rgb(64), "kannala_brandt": gopro(64, 64), "pinhole": Camera("pinhole", (40.0, 42.0, 30.0, 33.0), 64, 64)}
seeds = st.integers(0, 2**32 - 1)


def poses(seed: int, count: int, far: float = 3.0) -> torch.Tensor:
    """Rigid poses [count, 4, 4] anywhere within `far` metres."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.eye(4, dtype=F64).repeat(count, 1, 1)
    turns = torch.randn(count, 4, generator=generator, dtype=F64)
    out[:, :3, :3] = torch.from_numpy(Rotation.from_quat(turns.numpy()).as_matrix())
    out[:, :3, 3] = (torch.rand(count, 3, generator=generator, dtype=F64) * 2 - 1) * far
    return out


def unit(seed: int, count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=F64), dim=-1)


@given(seeds, st.floats(-50, 50))
def test_the_moment_is_that_of_every_point_of_the_ray(seed, along):
    (T,), d = poses(seed, 1), unit(seed, 7)
    moment, direction = rays.plucker(T, d).split(3, dim=-1)
    points = transform(T, along * d)
    torch.testing.assert_close(torch.linalg.cross(points, direction), moment, atol=1e-12, rtol=1e-12)
    assert (moment * direction).sum(dim=-1).abs().max() < 1e-12
    nearest = transform(T, -(T[:3, :3].T @ T[:3, 3] @ d.T)[:, None] * d)  # to the origin of frame a
    torch.testing.assert_close(moment.norm(dim=-1), nearest.norm(dim=-1), atol=1e-12, rtol=1e-9)


@settings(max_examples=20)
@given(seeds, st.sampled_from(sorted(LENSES)), st.integers(1, 4))
def test_a_moved_world_changes_nothing(seed, lens, views):
    ego, exo, (T_other_world,) = poses(seed, 5), poses(seed + 1, views), poses(seed + 2, 1, far=1000.0)
    here = rays.maps(LENSES[lens], ego, exo)
    there = rays.maps(LENSES[lens], T_other_world @ ego, T_other_world @ exo)
    assert here.shape == (24 * views + 1, 2, 8, 8)
    torch.testing.assert_close(here, there, atol=1e-6, rtol=1e-6)


@settings(max_examples=20)
@given(seeds, st.sampled_from(sorted(LENSES)))
def test_a_known_point_lies_on_the_line_of_the_pixel_that_shows_it(seed, lens):
    """For every pixel that the lens has: a point somewhere before it, brought to each exo camera's frame, has the map's moment; and the
    ego camera shows it where the map says."""
    camera, ego, exo = LENSES[lens], poses(seed, 1), poses(seed + 1, 3)
    map_ = rays.maps(camera, ego, exo, cell=1, temporal=1).double()
    lines, inside = map_[:-1].reshape(3, 6, 64, 64).movedim(1, -1), map_[-1, 0].bool()
    y, x = torch.nonzero(inside, as_tuple=True)
    ray, valid = camera.unproject(torch.stack([x, y], dim=-1).double())
    assert valid.all()
    depth = 0.2 + 5 * torch.rand(len(ray), 1, generator=torch.Generator().manual_seed(seed), dtype=F64)
    points = transform(ego[0], ray * depth)
    for T_world_exo, of_view in zip(exo, lines, strict=True):
        moment, direction = of_view[y, x].split(3, dim=-1)
        in_exo = transform(inverse(T_world_exo), points)
        torch.testing.assert_close(torch.linalg.cross(in_exo, direction), moment, atol=5e-5, rtol=1e-5)
        # Back: the line's point at that depth, by the map alone, is shown at this very pixel.
        origin = (inverse(T_world_exo) @ ego[0])[:3, 3]
        again = transform(inverse(ego[0]), transform(T_world_exo, origin + depth * direction))
        pixel, shown = camera.project(again)
        at_rim = (pixel - torch.stack([x, y], dim=-1)).abs().amax(dim=-1) > 1e-3
        assert not (at_rim & shown).any()
        assert shown.double().mean() > 0.99
    assert not lines[:, ~inside].any()


def test_a_cell_looks_along_the_mean_of_its_pixels():
    camera = LENSES["fisheye624"]
    cells, inside = rays.cell_rays(camera, 8)
    each, valid = camera.rays(dtype=F64)
    for row, column in ((0, 0), (3, 4), (7, 2)):
        of_cell = valid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert bool(of_cell.any()) == bool(inside[row, column])
        if of_cell.any():
            mean = each[8 * row : 8 * row + 8, 8 * column : 8 * column + 8][of_cell].mean(dim=0)
            torch.testing.assert_close(cells[row, column], mean / mean.norm())
    assert not inside.all()  # a circle in a square


def test_frames_and_views_stand_in_their_order():
    """One frame a group at a time, one view a block at a time; frame 0 fills its cell, as the causal codec's latent frame 0 is frame 0."""
    camera, ego, exo = LENSES["pinhole"], poses(1, 9), poses(2, 2)
    packed = rays.maps(camera, ego, exo)
    each = torch.stack([rays.maps(camera, ego[i : i + 1], exo, temporal=1)[:-1, 0].unflatten(0, (2, 6)) for i in range(9)])
    by_frame = packed[:-1].unflatten(0, (2, 4, 6))  # view, frame of the cell, component
    for latent, frames in enumerate(((0, 0, 0, 0), (1, 2, 3, 4), (5, 6, 7, 8))):
        for place, frame in enumerate(frames):
            torch.testing.assert_close(by_frame[:, place, :, latent], each[frame])
    swapped = rays.maps(camera, ego, exo.flip(0))
    torch.testing.assert_close(swapped[:-1].unflatten(0, (2, 24)).flip(0), packed[:-1].unflatten(0, (2, 24)))


def test_a_turned_picture_is_turned_once():
    """The stored picture's first row is the sensor's first column, and the poses are the sensor's: rays stay what the sensor has."""
    upright = aria_rgb(64)
    lying = Camera(upright.model, upright.params, 64, 64, turns=0, max_theta=upright.max_theta)
    turned, _ = rays.cell_rays(upright)
    plain, _ = rays.cell_rays(lying)
    torch.testing.assert_close(turned, plain.rot90(-1))


def test_metres_may_count_for_less():
    camera, ego, exo = LENSES["pinhole"], poses(1, 5), poses(2, 1)
    one, two = (rays.maps(camera, ego, exo, scale=scale)[:-1].unflatten(0, (4, 2, 3)) for scale in (1.0, 2.0))
    torch.testing.assert_close(one[:, 0], 2 * two[:, 0])
    torch.testing.assert_close(one[:, 1], two[:, 1])


def test_what_cannot_be_is_named():
    camera = LENSES["pinhole"]
    with pytest.raises(ValueError, match="no exo view"):
        rays.maps(camera, poses(1, 5), poses(2, 1)[:0])
    with pytest.raises(ValueError, match="4n \\+ 1 frames, not 6"):
        rays.maps(camera, poses(1, 6), poses(2, 1))
    with pytest.raises(ValueError, match="multiple of 24"):
        rays.maps(camera, poses(1, 5), poses(2, 1), cell=24)
