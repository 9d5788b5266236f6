"""The fused kernel in Triton's interpreter against the dense reference. Run by test_gga_triton.py in a process of its own, because Triton
must be told before it is imported; by hand: TRITON_INTERPRET=1 pytest tests/kernels/gga_interpreted.py. A block is 64 queries by 64 keys.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from triton import knobs

from egomill.kernels.gga import attend
from tests.kernels.test_gga import formulas, geometry, lambdas, parity, qkv, shared, sizes

assert knobs.runtime.interpret


@pytest.mark.parametrize(("formula", "lam", "channels"), [("paper", 2.5, 32), ("egox-released", 3.0, 48), ("egox-released", 0.7, 128)])
def test_forward_and_backward(formula, lam, channels):
    """70 rows a frame and 266 keys: blocks inside a frame, across two, and short ones at the end."""
    geo = geometry(batch=1, f=2, h=7, w_exo=9, w_ego=10, formula=formula, lambda_g=lam)
    parity(geo, "triton", *qkv(geo, heads=1, channels=channels, dtype=torch.float32), forward=2e-6, backward=3e-6)


def test_half_precision_the_strides_of_the_model_and_one_geometry_for_a_batch():
    geo = geometry(batch=1, lambda_g=1.5)
    q, k, v = (t.detach().half().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in qkv(geo, channels=16, batch=2))
    parity(geo, "triton", q, k, v, forward=2e-3, backward=2e-3)
    assert attend(q, k, v, geo, "triton").transpose(1, 2).is_contiguous()


@settings(max_examples=6)
@given(sizes, shared, formulas, lambdas)
def test_random_layouts(layout, shared, formula, lam):
    geo = geometry(batch=1 if shared else 2, **layout, formula=formula, lambda_g=lam)
    parity(geo, "triton", *qkv(geo, dtype=torch.float32, batch=2), forward=2e-6, backward=3e-6)


def test_the_operators_keep_their_word():
    """Shapes, strides, aliasing and gradients as torch.compile is told of them."""
    geo = geometry(batch=1, f=1, h=2)
    inputs = (geo.exo_points, geo.exo_valid, geo.ego_rays, geo.ego_valid, geo.centres, geo.lambda_g, geo.formula)
    torch.library.opcheck(torch.ops.egomill.gga.default, (*qkv(geo, heads=1, dtype=torch.float32), *inputs))


def test_compiled():
    geo = geometry(batch=1, f=2, h=1)
    q, k, v = qkv(geo, heads=1, dtype=torch.float32)
    wanted = attend(q, k, v, geo, "triton")
    got = torch.compile(attend, backend="aot_eager", fullgraph=True)(q, k, v, geo, "triton")
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)
    for found, reference in zip(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (got, wanted)), strict=True):
        torch.testing.assert_close(found, reference, atol=0, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_through_the_whole_model(checkpointing):
    from egomill.models.attention import install_gga
    from tests.models.test_attention import gathered, inputs, tiny

    found = []
    for path in ("dense", "triton"):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        state = install_gga(model)
        state.geometry, state.path = geometry(lambda_g=2.0), path
        output = model(**inputs()).sample
        output.square().mean().backward()
        found.append((output, gathered(model)))
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=1e-4)
