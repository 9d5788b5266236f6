"""Geometry-guided attention in the stock transformer."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch._dynamo.testing import CompileCounterWithBackend

from egomill.models.attention import GGAProcessor, install_gga
from tests.kernels.test_gga import geometry


def tiny(**more) -> WanTransformer3DModel:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32, "text_dim": 8, "freq_dim": 16}
    return WanTransformer3DModel(in_channels=36, out_channels=16, **sizes, **more)


def inputs(batch=2, f=3, h=2, w=5):
    g = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(batch, 36, f, 2 * h, 2 * w, generator=g),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.randn(batch, 7, 8, generator=g),
    }


def test_off_is_the_stock_model_bit_for_bit():
    model = tiny()
    before = model(**inputs()).sample
    state = install_gga(model)
    assert torch.equal(model(**inputs()).sample, before)
    state.geometry = geometry()
    assert not torch.allclose(model(**inputs()).sample, before)
    state.geometry = None
    assert torch.equal(model(**inputs()).sample, before)


def test_on_equals_the_dense_reference_through_the_whole_model():
    """Output, and the gradients of every weight."""
    outputs, gradients = [], []
    for path in ("dense", "chunked", None):
        model = tiny()
        state = install_gga(model)
        state.geometry, state.path = geometry(formula="egox-released", lambda_g=3.0), path
        outputs.append(model(**inputs()).sample)
        outputs[-1].square().mean().backward()
        gradients.append(gathered(model))
    for output, gradient in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=1e-4)


def gathered(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_it_gives_the_same_numbers(backend):
    """In one graph: fullgraph refuses to break it. And no second one for another batch's geometry, or for another λ."""
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    model = tiny()
    state = install_gga(model)
    state.geometry = geometry()
    wanted = model(**inputs()).sample
    wanted.square().mean().backward()
    gradient = gathered(model)
    model.zero_grad()
    counted = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counted, fullgraph=True)
    got = compiled(**inputs()).sample
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    got.square().mean().backward()
    torch.testing.assert_close(gathered(model), gradient, atol=1e-6, rtol=1e-4)
    state.geometry = dataclasses.replace(geometry(), centres=torch.zeros(2, 3, 3))
    torch.testing.assert_close(compiled(**inputs()).sample, model(**inputs()).sample, atol=1e-5, rtol=1e-5)
    assert counted.frame_count == 1


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        install_gga(model).geometry = geometry()
        model(**inputs()).sample.square().mean().backward()
        grads.append(gathered(model))
    torch.testing.assert_close(grads[0], grads[1])


def test_it_refuses_by_name():
    model = tiny()
    install_gga(model).geometry = geometry(w_exo=4)
    with pytest.raises(ValueError, match="tokens for geometry"):
        model(**inputs())
    model = tiny()
    install_gga(model).geometry = geometry()
    processor = model.blocks[0].attn1.processor
    assert isinstance(processor, GGAProcessor)
    processor._parallel_config = object()
    with pytest.raises(NotImplementedError, match="context parallel"):
        model(**inputs())
