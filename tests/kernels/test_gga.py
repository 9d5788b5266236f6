"""The bias, and the chunked path against the dense reference."""

from __future__ import annotations

import math

import pytest
import torch

from egomill.kernels.gga import Geometry, chunked, dense, log_weight


def geometry(batch=2, f=3, h=2, w_exo=3, w_ego=2, **more) -> Geometry:
    g = torch.Generator().manual_seed(0)
    rays = torch.nn.functional.normalize(torch.randn(batch, f, h, w_ego, 3, generator=g), dim=-1)
    return Geometry(
        torch.randn(batch, f, h, w_exo, 3, generator=g),
        torch.rand(batch, f, h, w_exo, generator=g) > 0.2,
        rays,
        torch.rand(batch, f, h, w_ego, generator=g) > 0.2,
        torch.randn(batch, f, 3, generator=g),
        **more,
    )


def qkv(geo: Geometry, heads=2, channels=8, dtype=torch.float64):
    f, h, w_exo, w_ego = geo.layout
    g = torch.Generator().manual_seed(1)
    shape = (len(geo.centres), heads, f * h * (w_exo + w_ego), channels)
    return [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(("formula", "lam"), [("paper", 1.0), ("paper", 2.5), ("egox-released", 3.0), ("egox-released", 1.0)])
def test_chunked_is_the_ego_part_of_dense_forward_and_backward(formula, lam):
    geo = geometry(formula=formula, lambda_g=lam)
    f, h, w_exo, w_ego = geo.layout
    q, k, v = qkv(geo)
    whole = dense(q, k, v, geo).unflatten(2, (f, h, w_exo + w_ego))[:, :, :, :, w_exo:].flatten(2, 4)
    part = chunked(q, k, v, geo)
    torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-6)
    wanted = torch.autograd.grad(whole.square().sum(), (q, k, v))
    got = torch.autograd.grad(part.square().sum(), (q, k, v))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_dense_against_the_formula_written_out():
    geo = geometry(batch=1, lambda_g=1.7)
    _f, h, w_exo, w_ego = geo.layout
    w = w_exo + w_ego
    q, k, v = (t[0, 0] for t in qkv(geo, heads=1))
    logits = q @ k.T / math.sqrt(q.shape[-1])
    for m in range(len(q)):
        fm, hm, wm = m // (h * w), m // w % h, m % w
        for n in range(len(k)):
            fn, hn, wn = n // (h * w), n // w % h, n % w
            if wm >= w_exo > wn:
                key = geo.exo_points[0, fn, hn, wn] - geo.centres[0, fm]
                cos = torch.dot(geo.ego_rays[0, fm, hm, wm - w_exo], key / key.norm())
                both = geo.exo_valid[0, fn, hn, wn] and geo.ego_valid[0, fm, hm, wm - w_exo]
                logits[m, n] += math.log(1.7 * (1 + float(cos) if both else 1.0))
    torch.testing.assert_close(dense(*qkv(geo, heads=1), geo)[0, 0], logits.softmax(-1) @ v, atol=1e-6, rtol=1e-6)


def test_values_of_the_two_formulas():
    cos = torch.tensor([-1.0, -0.9, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(log_weight(cos, 1.0)[1:], torch.log1p(cos[1:]))
    assert math.isclose(float(log_weight(cos, 1.0)[0]), math.log(1e-6))
    released = log_weight(cos, 3.0, "egox-released")
    torch.testing.assert_close(
        released, torch.tensor([math.log(1e-6), -2.302575, 0.0, math.log(4)], dtype=torch.float64), atol=2e-5, rtol=0
    )


def test_it_keeps_almost_nothing_and_refuses_nonsense():
    paper = geometry(batch=1, f=13, h=28, w_exo=49, w_ego=28)
    assert paper.bytes < 0.5e6
    with pytest.raises(ValueError, match="lambda"):
        geometry(lambda_g=0.0)
    with pytest.raises(ValueError, match="formula"):
        geometry(formula="mine")
