"""The splatter against a plain loop and PyTorch3D's rasteriser, and on scenes where the right answer is known."""

import pytest
import torch

from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.footprint import depth_edges, pixel_angle, sample_extent
from egomill.kernels.splat import splat, splat_reference

EYE = torch.eye(4)


def wall(camera: Camera, distance: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth along the ray to the plane z = distance, the points, and their extent."""
    rays, _ = camera.rays()
    depth = distance / rays[..., 2]
    return depth, (rays * depth[..., None]).reshape(-1, 3), sample_extent(depth, camera).flatten()


def scattered(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator) * torch.tensor([4.0, 4.0, 3.0]) - torch.tensor([2.0, 2.0, -0.5])
    return points, torch.rand(count, 3, generator=generator), 0.8 + 2.5 * torch.rand(count, generator=generator)


@pytest.mark.parametrize("camera", [aria_rgb(40), Camera("pinhole", (30.0, 30.0, 24.5, 15.5), 50, 32)], ids=["aria", "pinhole"])
def test_computes_what_the_reference_says(camera):
    points, colours, radius = scattered(1500)
    ours = splat(points, colours, camera, EYE, radius=radius)
    reference = splat_reference(points, colours, camera, EYE, radius)
    assert torch.equal(ours.valid, reference.valid)
    assert torch.allclose(ours.image, reference.image, atol=1e-4)
    assert torch.allclose(ours.depth, reference.depth, atol=1e-4)


@pytest.mark.parametrize("camera", [aria_rgb(64), Camera("pinhole", (50.0, 50.0, 47.5, 31.5), 96, 64)], ids=["square", "wide"])
def test_agrees_with_pytorch3d(camera):
    pytest.importorskip("pytorch3d")
    points, colours, radius = scattered(4000)
    ours = splat(points, colours, camera, EYE, radius=radius)
    theirs = splat(points, colours, camera, EYE, radius=radius, backend="pytorch3d")
    assert (ours.valid == theirs.valid).float().mean() > 0.999
    assert -10 * torch.log10((ours.image - theirs.image).square().mean()) > 45


def test_a_wall_seen_closer_has_no_holes_and_the_right_depth():
    exo, ego = Camera("pinhole", (60.0, 60.0, 63.5, 63.5), 128, 128), Camera("pinhole", (60.0, 60.0, 63.5, 63.5), 128, 128)
    _, points, extent = wall(exo, 3.0)
    T = torch.eye(4)
    T[2, 3] = 2.0
    drawn = splat(points, torch.ones_like(points), ego, T, extent=extent)
    assert drawn.valid.all()
    assert (drawn.image - 1).abs().max() < 1e-5
    truth, _, _ = wall(ego, 1.0)
    assert (drawn.depth / truth - 1).abs().max() < 0.05


def test_constant_discs_would_leave_holes_there():
    exo = Camera("pinhole", (60.0, 60.0, 63.5, 63.5), 128, 128)
    _, points, _ = wall(exo, 3.0)
    T = torch.eye(4)
    T[2, 3] = 2.0
    assert splat(points, torch.ones_like(points), exo, T, radius=1.0).valid.float().mean() < 0.5


def test_an_obliquely_sampled_floor_is_closed():
    """The stripes of the shipped priors: a floor 1.5 m below an exo camera, looked at steeply from above."""
    exo = Camera("pinhole", (120.0, 120.0, 63.5, 20.5), 128, 128)
    rays, _ = exo.rays()
    depth = torch.where(rays[..., 1] > 0.25, 1.5 / rays[..., 1], 0)
    points = (rays * depth[..., None])[depth > 0]
    extent = sample_extent(depth, exo)[depth > 0]
    T = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0.0], [0, -1, 0, 3.0], [0, 0, 0, 1]])  # looks along +y (down), at the floor's middle
    ego = Camera("pinhole", (80.0, 80.0, 31.5, 31.5), 64, 64)
    drawn = splat(points, torch.ones_like(points), ego, T, extent=extent)
    inside = drawn.valid[20:44, 20:44]
    assert inside.all()


def test_background_does_not_shine_through_a_sparse_foreground():
    exo = Camera("pinhole", (40.0, 40.0, 31.5, 31.5), 64, 64)
    rays, _ = exo.rays()
    depth = torch.full((64, 64), 6.0)
    depth[20:44, 20:44] = 2.0
    points, extent = (rays * depth[..., None]).reshape(-1, 3), sample_extent(depth, exo).flatten()
    near = (depth == 2.0).flatten()
    colours = near.float()[:, None].expand(-1, 3)
    T = torch.eye(4)
    T[2, 3] = 1.2  # the square is now 0.8 m away: its samples lie 2.5 px apart
    drawn = splat(points, colours, exo, T, extent=extent)
    solid = drawn.image[12:52, 12:52, 0]
    assert drawn.valid[12:52, 12:52].all()
    assert (solid == 1).all()


def test_nothing_is_invented_between_surfaces():
    """Across a depth edge the samples are those of facing surfaces: the gap that a sideways step opens stays empty."""
    exo = Camera("pinhole", (60.0, 60.0, 63.5, 63.5), 128, 128)
    rays, _ = exo.rays()
    depth = torch.where(torch.arange(128) < 64, 1.0, 5.0).expand(128, 128) / rays[..., 2]
    kept = ~depth_edges(depth)
    extent = sample_extent(depth, exo)
    assert extent.max() < 3 * (pixel_angle(exo) * depth).max()
    T = torch.eye(4)
    T[0, 3] = 0.5
    drawn = splat((rays * depth[..., None])[kept], torch.ones(int(kept.sum()), 3), exo, T, extent=extent[kept])
    gap = drawn.valid[64, 40:55]
    assert not gap.any()


def test_depth_edges_spare_floors():
    camera = Camera("pinhole", (60.0, 60.0, 63.5, 10.0), 128, 128)
    rays, _ = camera.rays()
    floor = torch.where(rays[..., 1] > 0.1, 1.5 / rays[..., 1], 0)
    inside = (rays[..., 1] > 0.15) & (torch.arange(128)[:, None] < 125)
    assert not depth_edges(floor)[inside].any()
    step = torch.full((32, 32), 2.0)
    step[:, 16:] = 4.0
    assert depth_edges(step)[:, 14:18].all()
    assert not depth_edges(step)[:, :13].any()


def test_gradients_reach_colours_and_points():
    points, colours, radius = (x.double() for x in scattered(300))
    points.requires_grad_(True)
    colours.requires_grad_(True)
    drawn = splat(points, colours, aria_rgb(32), EYE.double(), radius=radius)
    drawn.image.square().sum().backward()
    assert points.grad is not None
    assert colours.grad is not None
    assert points.grad.isfinite().all()
    assert (colours.grad != 0).any()


def test_an_empty_view_is_empty():
    drawn = splat(torch.tensor([[0.0, 0.0, -2.0]]), torch.ones(1, 3), aria_rgb(32), EYE)
    assert not drawn.valid.any()
    assert (drawn.depth == 0).all()


def test_bad_calls():
    with pytest.raises(ValueError, match="cloud"):
        splat(torch.zeros(4, 2), torch.zeros(4, 3), aria_rgb(32), EYE)
    with pytest.raises(ValueError, match="backend"):
        splat(torch.zeros(4, 3), torch.zeros(4, 3), aria_rgb(32), EYE, backend="opengl")


@pytest.mark.gpu
def test_gpu_and_cpu_agree():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    points, colours, radius = scattered(20_000)
    here = splat(points, colours, aria_rgb(128), EYE, radius=radius)
    there = splat(points.cuda(), colours.cuda(), aria_rgb(128), EYE.cuda(), radius=radius.cuda())
    assert (here.valid == there.valid.cpu()).float().mean() > 0.9999
    assert -10 * torch.log10((here.image - there.image.cpu()).square().mean()) > 45
