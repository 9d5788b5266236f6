"""Degraded copies: deterministic, finite, untouched shapes, and true where they claim validity of an undistorted copy."""

from __future__ import annotations

import numpy as np
import torch

from egomill.kernels.degrade import degrade, holes


def test_holes_are_of_all_sizes():
    shares = [holes(np.random.default_rng(seed), 9, 32, 48).float().mean().item() for seed in range(40)]
    assert min(shares) < 0.5
    assert max(shares) > 0.9


def test_a_copy_is_a_function_of_the_generator():
    video = torch.rand(9, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for seed in range(8):
        copy, valid = degrade(np.random.default_rng(seed), video)
        again, _ = degrade(np.random.default_rng(seed), video)
        assert copy.shape == video.shape
        assert valid.shape == (9, 32, 48)
        assert copy.isfinite().all()
        assert copy.abs().max() <= 1
        assert torch.equal(copy, again)
