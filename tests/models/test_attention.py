"""Geometry-guided attention in the stock transformer."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from egomill.kernels import gga
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


def test_on_equals_the_dense_reference(monkeypatch):
    model = tiny()
    install_gga(model).geometry = geometry()
    got = model(**inputs()).sample

    def reference(q, k, v, geo):
        f, h, w_exo, w_ego = geo.layout
        return gga.dense(q, k, v, geo).unflatten(2, (f, h, w_exo + w_ego))[:, :, :, :, w_exo:].flatten(2, 4)

    monkeypatch.setattr(gga, "chunked", reference)
    torch.testing.assert_close(got, model(**inputs()).sample, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        install_gga(model).geometry = geometry()
        model(**inputs()).sample.square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
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
