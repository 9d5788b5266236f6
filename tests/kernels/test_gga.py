"""The bias, and the chunked path against the dense reference. (The fused path: test_gga_triton.py.)"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egomill.kernels import gga
from egomill.kernels.gga import attend, chunked, dense
from egomill.kernels.gga_geometry import Geometry, log_weight


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


def qkv(geo: Geometry, heads=2, channels=8, dtype=torch.float64, batch=None):
    f, h, w_exo, w_ego = geo.layout
    g = torch.Generator().manual_seed(1)
    shape = (batch or len(geo.centres), heads, f * h * (w_exo + w_ego), channels)
    return [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for _ in range(3)]


def parity(geo: Geometry, path: str, q, k, v, forward=1e-6, backward=1e-5) -> None:
    """Output and gradients of a path against the dense reference on the same numbers in double precision."""
    got = attend(q, k, v, geo, path)
    wanted = attend(*(double := [t.detach().double().requires_grad_() for t in (q, k, v)]), geo, "dense")
    torch.testing.assert_close(got.double(), wanted, atol=forward, rtol=forward)
    gradients = torch.autograd.grad((got.double() * wanted.detach()).sum(), (q, k, v))
    for found, reference in zip(gradients, torch.autograd.grad(wanted.square().sum() / 2, double), strict=True):
        torch.testing.assert_close(found.double(), reference, atol=backward * float(reference.abs().max()) + 1e-9, rtol=0)


@pytest.mark.parametrize(("formula", "lam"), [("paper", 1.0), ("paper", 2.5), ("egox-released", 3.0), ("egox-released", 1.0)])
def test_chunked_is_the_ego_part_of_dense_forward_and_backward(formula, lam):
    geo = geometry(formula=formula, lambda_g=lam)
    parity(geo, "chunked", *qkv(geo))


sizes = st.fixed_dictionaries({"f": st.integers(1, 5), "h": st.integers(1, 4), "w_exo": st.integers(1, 5), "w_ego": st.integers(1, 4)})
shared, formulas, lambdas = st.booleans(), st.sampled_from(["paper", "egox-released"]), st.floats(0.05, 20)


@settings(max_examples=40)
@given(sizes, shared, formulas, lambdas, st.integers(1, 3), st.sampled_from([1, 8, 768]))
def test_chunked_is_dense_over_random_layouts(layout, shared, formula, lam, batch, rows):
    geo = geometry(batch=1 if shared else batch, **layout, formula=formula, lambda_g=lam)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gga, "ROWS", rows)
        parity(geo, "chunked", *qkv(geo, batch=batch))


def test_many_tiles_are_made_again_for_the_backward_pass_instead_of_kept(monkeypatch):
    geo = geometry(batch=1, f=4, h=3, w_exo=20, w_ego=10)
    tile = geo.layout[1] * geo.layout[3] * math.prod(geo.layout[:2]) * (geo.layout[2] + geo.layout[3])
    monkeypatch.setattr(gga, "ROWS", 1)
    kept = []
    for keep in (1 << 30, 0):
        monkeypatch.setattr(gga, "KEEP", keep)
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.append(t.numel()) or t, lambda t: t):
            chunked(*qkv(geo, heads=1), geo)
        kept.append(seen.count(tile))
        parity(geo, "chunked", *qkv(geo))
    assert kept == [4, 0]


def test_autocast_does_not_round_the_directions():
    geo = geometry()
    q, k, v = (t.detach().float() for t in qkv(geo))
    wanted = chunked(q.bfloat16(), k.bfloat16(), v.bfloat16(), geo)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(chunked(q, k, v, geo), wanted, atol=0, rtol=0)


def test_the_path_is_chosen_in_one_place(monkeypatch):
    geo = geometry()
    q, k, v = qkv(geo)
    torch.testing.assert_close(attend(q, k, v, geo), chunked(q, k, v, geo), atol=0, rtol=0)
    with pytest.raises(ValueError, match="one of triton, chunked, dense"):
        attend(q, k, v, geo, "flex")
    with pytest.raises(ValueError, match=r"fused kernel cannot take torch\.float64"):
        attend(q, k, v, geo, "triton")
    q = q.detach().float()
    assert gga.fused_fits(q, geo) == gga.HAS_TRITON
    assert not gga.fused_fits(q, geometry(lambda_g=1e5))
    assert not gga.fused_fits(q.new_empty(1, 1, 1, 256), geo)
    monkeypatch.setattr(gga, "HAS_TRITON", False)
    assert not gga.fused_fits(q, geo)


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
