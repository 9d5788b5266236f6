"""Rigid transforms obey the laws of SE(3)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from egomill.kernels.poses import fill_gaps, from_rt, inverse, is_rigid, jumps, rotate, transform

NUMBER = st.floats(-5, 5)
POSE = st.tuples(*[NUMBER] * 6)


def pose(numbers) -> torch.Tensor:
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = torch.tensor(Rotation.from_rotvec(numbers[:3]).as_matrix())
    T[:3, 3] = torch.tensor(numbers[3:], dtype=torch.float64)
    return T


@settings(max_examples=60)
@given(a=POSE, b=POSE, c=POSE, x=st.tuples(*[NUMBER] * 3))
def test_group(a, b, c, x):
    A, B, C, point = pose(a), pose(b), pose(c), torch.tensor([x], dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose((A @ B) @ C, A @ (B @ C), atol=1e-9)
    assert torch.allclose(A @ inverse(A), eye, atol=1e-12)
    assert torch.allclose(inverse(A) @ A, eye, atol=1e-12)
    assert torch.allclose(inverse(A @ B), inverse(B) @ inverse(A), atol=1e-9)
    assert torch.allclose(transform(A @ B, point), transform(A, transform(B, point)), atol=1e-9)
    assert torch.allclose(inverse(A), torch.linalg.inv(A), atol=1e-9)
    assert is_rigid(A @ B)


@settings(max_examples=40)
@given(a=POSE, x=st.tuples(*[NUMBER] * 3), y=st.tuples(*[NUMBER] * 3))
def test_lengths_and_angles_are_kept(a, x, y):
    A, points = pose(a), torch.tensor([x, y], dtype=torch.float64)
    turned, moved = rotate(A, points), transform(A, points)
    assert torch.allclose(turned @ turned.T, points @ points.T, atol=1e-9)
    assert torch.allclose(moved[0] - moved[1], turned[0] - turned[1], atol=1e-9)


def test_batches():
    T = torch.stack([pose((0.1 * i, 0.2, 0, 1, 2, i)) for i in range(4)])
    points = torch.randn(4, 7, 3, dtype=torch.float64)
    together = transform(T, points)
    assert torch.allclose(together, torch.stack([transform(T[i], points[i]) for i in range(4)]))


def test_from_rt():
    T = pose((0.3, 0.2, 0.1, 1, 2, 3))
    assert torch.equal(from_rt(T[:3]), T)
    assert torch.equal(from_rt(T[:3].expand(5, 3, 4)), T.expand(5, 4, 4))


def test_what_is_not_rigid():
    mirrored, stretched, unknown = torch.eye(4).repeat(3, 1, 1)
    mirrored[0, 0] = -1
    stretched[0, 0] = 1.01
    unknown[0, 0] = math.nan
    assert not is_rigid(torch.stack([mirrored, stretched, unknown])).any()
    assert is_rigid(torch.eye(4))


@settings(max_examples=30)
@given(a=POSE, axis=st.tuples(*[st.floats(-1, 1)] * 3), gap=st.integers(1, 4))
def test_gaps_are_filled_along_the_geodesic(a, axis, gap):
    """Steady screw-free motion is met exactly; what is too long stays unknown."""
    frames = 8
    start = pose(a)
    true = torch.stack([pose((*[0.1 * i * v for v in axis], 0.1 * i, 0.2 * i, 0)) for i in range(frames)])
    true[:, :3, :3] = start[:3, :3] @ true[:, :3, :3]
    holed = true.clone()
    holed[2 : 2 + gap] = math.nan
    filled = fill_gaps(holed, 3)
    if gap <= 3:
        assert torch.allclose(filled, true, atol=1e-6)
    else:
        assert torch.equal(torch.isnan(filled), torch.isnan(holed))


def test_ends_are_not_extrapolated():
    T = torch.eye(4).repeat(6, 1, 1)
    T[0] = T[5] = math.nan
    assert torch.isnan(fill_gaps(T, 5)[[0, 5]]).all()


def test_nothing_to_fill_changes_nothing():
    T = torch.stack([pose((0.1 * i, 0, 0, i, 0, 0)) for i in range(5)])
    assert torch.equal(fill_gaps(T, 3), T)


@pytest.mark.parametrize(("step", "turn", "found"), [(0.5, 0.0, True), (0.05, 0.0, False), (0.0, 0.9, True), (0.0, 0.1, False)])
def test_jumps(step, turn, found):
    T = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    T[3:] = pose((turn, 0, 0, step, 0, 0))
    expected = [False, False, False, found, False]
    assert jumps(T, max_step=0.2, max_turn=0.5).tolist() == expected


def test_unknown_poses_are_no_jumps():
    T = torch.eye(4).repeat(4, 1, 1)
    T[2] = math.nan
    assert not jumps(T, 0.1, 0.1).any()
