"""The 36-channel input, the loss on ego columns only, and a sampler whose result depends on a clip's seed alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel

from egomill.models import egox, flow, lora
from egomill.models.layout import Layout

F, H, EXO, EGO = 3, 4, 6, 4
LAYOUT = Layout(channels=16, temporal=4, spatial=8, patch=2, inputs=36)


def tiny() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        in_channels=36, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=32, text_dim=8, freq_dim=16
    )


def given(batch=2, mask="coverage", seed=1) -> egox.Condition:
    g = torch.Generator().manual_seed(seed)
    exo, prior = torch.randn(batch, 16, F, H, EXO, generator=g), torch.randn(batch, 16, F, H, EGO, generator=g)
    return egox.Condition(exo, prior, torch.rand(batch, 4, F, H, EGO, generator=g), torch.randn(batch, 7, 8, generator=g), mask=mask)


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


def test_layout():
    condition = given()
    ego = torch.randn(2, 16, F, H, EGO)
    x = egox.model_input(condition, ego)
    assert x.shape == (2, 36, F, H, EXO + EGO)
    assert torch.equal(x[:, :16, ..., :EXO], condition.exo)
    assert torch.equal(x[:, :16, ..., EXO:], ego)
    assert torch.equal(x[:, 20:, ..., :EXO], condition.exo)
    assert torch.equal(x[:, 20:, ..., EXO:], condition.prior)


def test_masks():
    coverage, paper, released = (egox.masks(given(mask=m)) for m in ("coverage", "paper", "egox-released"))
    assert (paper[..., :EXO] == 1).all()
    assert (paper[..., EXO:] == 0).all()
    assert torch.equal(coverage[..., EXO:], given().cover)
    assert released.sum() == released[:, :, 0, :, :EXO].numel()
    with pytest.raises(ValueError, match="coverage"):
        egox.masks(given(mask="none"))


def test_cover_cells_counts_pixels_by_frame():
    valid = torch.zeros(1, 9, 16, 8, dtype=torch.bool)
    valid[0, 0, :8] = True  # frame 0 stands for all four of its cell
    valid[0, 6, 8:12] = True  # the second of latent frame 2
    cells = egox.cover_cells(valid, LAYOUT)
    assert cells.shape == (1, 4, 3, 2, 1)
    assert cells[0, :, 0, 0, 0].tolist() == [1, 1, 1, 1]
    assert cells[0, :, 2, 1, 0].tolist() == [0, 0.5, 0, 0]
    assert cells.sum() == 4.5


def test_loss_ignores_what_is_predicted_for_exo_and_batching_does_not_matter():
    class Constant(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x, t, text, image, return_dict):
            out = x[:, :16].clone()
            out[..., :EXO] = 1e9
            return (out,)

    ego = torch.randn(2, 16, F, H, EGO)
    assert (egox.training_loss(Constant(), given(), ego, seeds(1, 2)) < 100).all()
    model, both = tiny(), given()
    together = egox.training_loss(model, both, ego, seeds(1, 2))
    alone = egox.Condition(both.exo[1:], both.prior[1:], both.cover[1:], both.text[1:])
    torch.testing.assert_close(egox.training_loss(model, alone, ego[1:], seeds(2))[0], together[1], atol=1e-5, rtol=1e-5)


def test_shift_and_pure_noise():
    u = torch.linspace(0, 1, 5)
    assert torch.equal(flow.shifted(u, 1.0), u)
    assert (flow.shifted(u, 3.0)[1:-1] > u[1:-1]).all()
    seen = []

    class Spy(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x, t, text, image, return_dict):
            seen.append(t)
            return (x[:, :16],)

    egox.training_loss(Spy(), given(), torch.zeros(2, 16, F, H, EGO), seeds(1, 2), pure=1.1)
    assert (seen[0] == 1000).all()


@pytest.mark.parametrize(("kind", "steps"), [("euler", 1), ("euler", 4), ("unipc", 4)])
def test_sampling_depends_on_the_clips_seed_alone(kind, steps):
    model, both = tiny(), given()
    together = egox.sample(model, flow.make_scheduler(kind, 3.0), both, seeds(7, 8), steps)
    alone = egox.Condition(both.exo[1:], both.prior[1:], both.cover[1:], both.text[1:])
    again = egox.sample(model, flow.make_scheduler(kind, 3.0), alone, seeds(8), steps)
    torch.testing.assert_close(together[1:], again, atol=1e-4, rtol=1e-4)
    assert together.shape == both.prior.shape


def test_samplers_find_the_target_of_an_ideal_model():
    """With v = (z − x)/σ every flow sampler must end at x, whatever the steps and shift."""
    target = torch.randn(2, 16, F, H, EGO)

    class Ideal(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x, t, text, image, return_dict):
            out = torch.zeros_like(x[:, :16])
            out[..., EXO:] = (x[:, :16, ..., EXO:] - target) / (t / 1000).view(-1, 1, 1, 1, 1)
            return (out,)

    for kind, steps, shift in (("euler", 1, 1.0), ("euler", 2, 1.0), ("euler", 4, 3.0), ("unipc", 6, 3.0)):
        got = egox.sample(Ideal(), flow.make_scheduler(kind, shift), given(), seeds(1, 2), steps)
        torch.testing.assert_close(got, target, atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", ["euler", "unipc"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 1.0), (4, 1.0), (5, 3.0)])
def test_so_many_steps_are_so_many_steps(kind, steps, shift):
    """The model is asked n times, at σ from 1 down, even before the shift; the last step, from σ well above 0, ends at 0."""
    asked = []

    class Constant(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x, t, text, image, return_dict):
            asked.append(t[0].item() / flow.TIMESTEPS)
            return (torch.ones_like(x[:, :16]),)

    scheduler = flow.make_scheduler(kind, shift)
    got = egox.sample(Constant(), scheduler, given(), seeds(1, 2), steps)
    even = torch.arange(steps, 0, -1) / steps
    torch.testing.assert_close(torch.tensor(asked), flow.shifted(even, shift), atol=2e-3, rtol=0)
    assert scheduler.sigmas[-1] == 0
    if kind == "euler":  # with v = 1 all the way it has gone by 1
        noise = torch.stack([torch.randn(16, F, H, EGO, generator=g) for g in seeds(1, 2)])
        torch.testing.assert_close(got, noise - 1, atol=1e-5, rtol=0)


def test_two_euler_steps_are_halves_of_the_way():
    """With v = z the exact answer is known: z (1 − 1/n) n times."""

    class Linear(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x, t, text, image, return_dict):
            return (x[:, :16],)

    noise = torch.stack([torch.randn(16, F, H, EGO, generator=g) for g in seeds(1, 2)])
    for steps in (1, 2, 5):
        got = egox.sample(Linear(), flow.make_scheduler("euler", 1.0), given(), seeds(1, 2), steps)
        torch.testing.assert_close(got, noise * (1 - 1 / steps) ** steps, atol=1e-5, rtol=0)


def test_a_base_with_an_image_branch_takes_512_text_tokens_and_an_image():
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 32, "text_dim": 8, "freq_dim": 16}
    model = WanTransformer3DModel(in_channels=36, out_channels=16, **size, image_dim=8, added_kv_proj_dim=24)
    seven = given()
    right = dataclasses.replace(seven, text=torch.randn(2, 512, 8), image=torch.randn(2, 257, 8))
    assert egox.velocity(model, right, right.prior, torch.ones(2)).isfinite().all()
    for wrong in (dataclasses.replace(right, text=seven.text), dataclasses.replace(right, image=None)):
        with pytest.raises(ValueError, match=r"has an image branch, and takes 512 text tokens.*model\.text_tokens=512"):
            egox.velocity(model, wrong, wrong.prior, torch.ones(2))


def test_guidance_needs_negative_text():
    with pytest.raises(ValueError, match="negative"):
        egox.sample(tiny(), flow.make_scheduler("euler", 1.0), given(), seeds(1, 2), 1, guidance=2.0)


def test_stock_pipeline_class_takes_the_adapter_with_its_alpha(tmp_path):
    from egomill.tasks.training import adapters

    model = tiny()
    lora.add(model, rank=4, alpha=8, targets=egox.TARGETS)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
    wanted = egox.velocity(model, given(), given().prior, torch.ones(2))
    adapters.save(lora.state(model), lora.config(model), {}, tmp_path, {"base_revision": "x"})
    fresh = tiny()
    fresh.load_lora_adapter(str(tmp_path), weight_name=adapters.WEIGHTS, prefix="transformer", local_files_only=True)
    assert [c.lora_alpha for c in fresh.peft_config.values()] == [8]
    torch.testing.assert_close(egox.velocity(fresh, given(), given().prior, torch.ones(2)), wanted, atol=1e-5, rtol=1e-5)
