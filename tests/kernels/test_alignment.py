"""The motion between two cameras from hands: exact without noise, never a reflection, and refused where it must not be believed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from egomill.kernels.alignment import REFUSED, align, umeyama
from egomill.kernels.poses import is_rigid, transform
from tests.kernels.hands import hand, motion, two

ONE = torch.full((1, 21, 3), torch.nan, dtype=torch.float64)


def noisy(points: torch.Tensor, metres: float, seed: int) -> torch.Tensor:
    return points + metres * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def degrees(T: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    trace = (T[..., :3, :3] * other[..., :3, :3]).sum(dim=(-1, -2))
    return torch.arccos(((trace - 1) / 2).clamp(-1, 1)).rad2deg()


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from(["both", "left", "right"]))
def test_a_motion_is_recovered(seed, curl, shown):
    """Of two hands, of either alone, of flat ones: to 1e-6, and never as a reflection."""
    a, T = two(seed, curl), motion(seed)
    if shown != "both":
        a[int(shown == "left")] = torch.nan
    found = align(a[None], transform(T, a)[None])
    assert found.refused == ("",)
    torch.testing.assert_close(found.T_b_a[0], T, atol=1e-6, rtol=0)
    assert is_rigid(found.T_b_a[0], 1e-9)
    assert found.residual[0] < 1e-9
    assert (int(found.used[0]), bool(found.weak[0])) == ((42, False) if shown == "both" else (21, True))


def test_scale_is_recovered_where_it_is_asked_for_and_noise_shrinks_it():
    a, T = two().flatten(0, 1), motion(3)
    b = transform(T, 1.3 * a)
    found, residual = umeyama(a, b, torch.ones(42, dtype=torch.float64), scaled=True)
    assert torch.linalg.det(found[:3, :3]) == pytest.approx(1.3**3)
    assert residual < 1e-9
    many = torch.stack([hand(i) for i in range(400)])
    ahead, back = (umeyama(noisy(many, 0.02, i), noisy(many, 0.02, i + 1), torch.ones(400, 21).double(), scaled=True)[0] for i in (1, 7))
    assert torch.linalg.det(ahead[:, :3, :3]).pow(1 / 3).mean() < 0.85  # which is why it stays 1
    assert torch.linalg.det(back[:, :3, :3]).pow(1 / 3).mean() < 0.85


def test_without_the_sign_a_flat_hand_is_reflected():
    flat = torch.stack([hand(i, curl=0.0) for i in range(200)])
    moved = torch.stack([transform(motion(i), h) for i, h in enumerate(noisy(flat, 1e-4, 0))])
    weights = torch.ones(200, 21, dtype=torch.float64)
    reflecting, proper = (umeyama(flat, moved, weights, reflecting=r)[0][:, :3, :3] for r in (True, False))
    assert 0.3 < (torch.linalg.det(reflecting) < 0).double().mean() < 0.7
    assert (torch.linalg.det(proper) > 0).all()


@pytest.mark.parametrize(("metres", "one", "both"), [(0.005, 2.9, 1.0), (0.01, 6.0, 2.0), (0.02, 12.8, 4.1)])
def test_two_hands_turn_three_times_as_surely_as_one(metres, one, both):
    """Medians of the rotation's error, with noise on both sides."""
    many = torch.stack([two(i) for i in range(300)])
    for shown, wanted in ((slice(0, 1), one), (slice(0, 2), both)):
        points = torch.full_like(many, torch.nan)
        points[:, shown] = many[:, shown]
        found = align(noisy(points, metres, 1), noisy(points, metres, 2))
        kept = [not why for why in found.refused]
        assert degrees(found.T_b_a[kept], torch.eye(4).double()).median() == pytest.approx(wanted, rel=0.35)


@pytest.mark.parametrize(("metres", "least"), [(0.01, 0.99), (0.02, 0.99), (0.03, 0.9)])
def test_exchanged_hands_are_found_and_exchanged_back(metres, least):
    many = torch.stack([two(i) for i in range(200)])
    right = align(noisy(many, metres, 1), noisy(many, metres, 2))
    assert not right.exchanged
    assert sum(why != "exchanged" for why in right.refused) / 200 >= least
    swapped = align(noisy(many, metres, 1), noisy(many, metres, 2).flip(1))
    assert swapped.exchanged
    torch.testing.assert_close(swapped.T_b_a, right.T_b_a, equal_nan=True)
    few = many.clone()
    few[:20] = few[:20].flip(1)
    found = align(many, few)
    assert not found.exchanged
    assert found.refused == ("exchanged",) * 20 + ("",) * 180


@pytest.mark.parametrize(("metres", "least"), [(0.0, 1.0), (0.01, 0.9), (0.02, 0.85)])
def test_mirrored_hands_are_refused(metres, least):
    many = torch.stack([two(i, curl=0.8) for i in range(200)])
    found = align(noisy(many, metres, 1), noisy(many * torch.tensor([-1.0, 1, 1]), metres, 2))
    assert sum(bool(why) for why in found.refused) / 200 >= least


def test_one_joint_that_is_off_turns_nothing():
    a = two()
    b = a.clone()
    b[0, 7] += torch.tensor([0.3, 0, 0])
    plain = umeyama(a.flatten(0, 1), b.flatten(0, 1), torch.ones(42, dtype=torch.float64))[0]
    assert degrees(plain, torch.eye(4).double()) > 2
    assert degrees(align(a[None], b[None]).T_b_a[0], torch.eye(4).double()) < 0.1


def test_what_is_not_to_be_believed_is_refused_by_name():
    full = two()
    few, line, apart, none = (full.clone() for _ in range(4))
    few[:, 3:] = few[1] = torch.nan
    line[:] = torch.nan
    line[0, :, 0], line[0, :, 1:] = torch.arange(21) * 0.01, 0
    other = noisy(full, 0.1, 0)
    none[:] = torch.nan
    frames = torch.stack([full, few, line, apart, none])
    found = align(frames, torch.stack([full, few, line, other, none]))
    assert found.refused[:3] == ("", "few_joints", "joints_on_a_line")
    assert found.refused[3] in ("apart", "exchanged", "mirrored")
    assert found.refused[4] == "few_joints"
    assert set(found.refused) - {""} <= REFUSED.keys()
    assert found.T_b_a[1:].isnan().all()
    assert found.T_b_a[0].isfinite().all()
    assert not math.isnan(found.residual[1])
