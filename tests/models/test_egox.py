"""The conditioning, the loss and the sampler, on a tiny stock transformer."""

from __future__ import annotations

import pytest
import torch

from egomill.models import egox
from egomill.models.attention import install_gga
from tests.models.test_attention import tiny

SETTINGS = {"mask": "coverage", "gga": "paper", "lambda_g": 1.0}


def batch(b=2, f=3, h=4, w_exo=6, w_ego=4) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=g)

    th, tw_exo, tw_ego = h // 2, w_exo // 2, w_ego // 2
    return {
        "exo": rand(b, 16, f, h, w_exo),
        "prior": rand(b, 16, f, h, w_ego),
        "ego": rand(b, 16, f, h, w_ego),
        "cover": torch.rand(b, 4, f, h, w_ego, generator=g),
        "text": rand(b, 7, 8),
        "exo_points": rand(b, f, th, tw_exo, 3),
        "exo_valid": torch.ones(b, f, th, tw_exo, dtype=torch.bool),
        "ego_rays": torch.nn.functional.normalize(rand(b, f, th, tw_ego, 3), dim=-1),
        "ego_valid": torch.ones(b, f, th, tw_ego, dtype=torch.bool),
        "centres": rand(b, f, 3),
    }


@pytest.mark.parametrize("mode", egox.MASKS)
def test_input_layout(mode):
    data = batch()
    ego = torch.full_like(data["ego"], 7.0)
    x = egox.model_input(data, ego, mode)
    assert x.shape == (2, 36, 3, 4, 10)
    assert torch.equal(x[:, :16, ..., :6], data["exo"])  # clean, whatever the step
    assert torch.equal(x[:, :16, ..., 6:], ego)
    assert torch.equal(x[:, 20:, ..., :6], data["exo"])
    assert torch.equal(x[:, 20:, ..., 6:], data["prior"])
    exo_mask, ego_mask = x[:, 16:20, ..., :6], x[:, 16:20, ..., 6:]
    assert bool((exo_mask[:, :, 0] == 1).all())
    assert bool((exo_mask[:, :, 1:] == (0 if mode == "egox-released" else 1)).all())
    assert torch.equal(ego_mask, data["cover"] if mode == "coverage" else torch.zeros_like(data["cover"]))


def test_loss_counts_only_ego_columns_and_training_moves_only_lora():
    model, data = tiny(), batch()
    state = install_gga(model)
    parameters = egox.add_lora(model, 4, 8, ("to_q", "to_v"))
    noise, time = torch.randn_like(data["ego"]), torch.tensor([0.3, 0.9])
    before = egox.loss(model, state, data, noise, time, **SETTINGS)
    assert before.shape == (2,)
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        egox.loss(model, state, data, noise, time, **SETTINGS).mean().backward()
        optimiser.step()
    assert egox.loss(model, state, data, noise, time, **SETTINGS).mean() < before.mean()
    frozen = {n: p for n, p in model.named_parameters() if "lora" not in n}
    assert all(p.grad is None and not p.requires_grad for p in frozen.values())
    weights, metadata = egox.lora_state(model)
    assert set(weights) == {
        f"blocks.{i}.attn{j}.{t}.lora_{ab}.weight" for i in (0, 1) for j in (1, 2) for t in ("to_q", "to_v") for ab in "AB"
    }
    assert metadata["transformer_lora_adapter_metadata"]["lora_alpha"] == 8


def test_one_euler_step_is_the_models_guess_of_the_clean_latent():
    model, data = tiny(), batch()
    state = install_gga(model)
    got = egox.sample(model, state, data, [1, 2], steps=1, shift=1.0, **SETTINGS)
    noise = torch.stack([torch.randn(data["ego"].shape[1:], generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    state.geometry = egox.geometry(data, "paper", 1.0)
    with torch.no_grad():
        v = egox.velocity(model, data, noise, torch.ones(2), "coverage")
    torch.testing.assert_close(got, noise - v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_a_clips_sample_depends_on_its_seed_alone(scheduler):
    model, data = tiny(), batch()
    state = install_gga(model)
    both = egox.sample(model, state, data, [5, 6], steps=3, scheduler=scheduler, **SETTINGS)
    second = egox.sample(model, state, {k: v[1:] for k, v in data.items()}, [6], steps=3, scheduler=scheduler, **SETTINGS)
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[0], both[1])
    with pytest.raises(ValueError, match="empty text"):
        egox.sample(model, state, data, [5, 6], guidance=5.0, **SETTINGS)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="mask mode"):
        egox.model_input(batch(), batch()["ego"], "mine")
    with pytest.raises(ValueError, match="scheduler"):
        egox.schedule("ddim", 2, 1.0)
