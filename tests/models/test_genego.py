"""GenEgo's net on tiny models of the stock classes: channels and their order, loss, sampler, what is trained, saved and loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from egomill.models import genego, lora
from egomill.models.genego import Batch, Net, condition, sample, training_loss
from egomill.models.layout import Layout
from egomill.models.picture_base import SCHEDULE
from egomill.schemas.config import Profile
from egomill.tasks.training import adapters, train

B, C, F, H, W = 2, 4, 3, 8, 8
LAYOUT = Layout(channels=C, temporal=1, spatial=8, patch=1, inputs=9)


def profile(*settings: str) -> Profile:
    return Profile.load("local-genego", ["genego.pure=0.0", *settings])


LORA = ("genego.full=false", 'train.targets=["to_q","to_v","conv_in"]', "train.rank=4", "train.alpha=4")


def unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=H,
        in_channels=9,
        out_channels=C,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def net(*settings: str, kind: str = "epsilon") -> Net:
    schedule = {**genego.SCHEDULE, **genego.SAMPLING, "prediction_type": kind}
    parts = SimpleNamespace(
        transformer=unet().requires_grad_(False),
        layout=LAYOUT,
        scheduler=SimpleNamespace(config=schedule),
        text_encoder=object(),
        encode_text=lambda texts, tokens: torch.full((1, tokens, 8), 0.3),
    )
    return genego.build(parts, profile(*settings))


def batch(seed: int = 1, ego: bool = True) -> Batch:
    g = torch.Generator().manual_seed(seed)
    latents = [torch.randn(B, C, F, H, W, generator=g) for _ in range(3)]
    return Batch(latents[0], latents[1], torch.randn(B, 77, 8, generator=g), latents[2] if ego else None)


def generators(seed: int = 5) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(B)]


def generate(**settings):
    return Profile.load("local-genego", [f"generate.{k}={v}" for k, v in settings.items()]).generate


class Seen:
    """What a U-Net is given, frame by frame; it answers with zeros."""

    def __init__(self) -> None:
        self.dtype, self.inputs, self.steps, self.texts = torch.float32, [], [], []

    def __call__(self, x, t, text, return_dict):
        self.inputs.append(x)
        self.steps.append(t)
        self.texts.append(text)
        return (torch.zeros_like(x[:, :C]),)


def spied(*settings: str, kind: str = "epsilon") -> tuple[Net, Seen]:
    made, seen = net(*settings, kind=kind), Seen()
    object.__setattr__(made, "unet", seen)
    del made._modules["unet"]
    return made, seen


def test_channels_are_noisy_latent_pose_sparse_in_that_order():
    made, seen = spied()
    given = batch(ego=False)
    sample(made, given, generators(), generate(steps=1))
    (x,) = seen.inputs
    assert x.shape == (B * F, 9, H, W)
    assert torch.equal(x[:, 5:], given.sparse.transpose(1, 2).flatten(0, 1))
    pose = made.reducer(given.pose.transpose(1, 2).flatten(0, 1))
    assert torch.equal(x[:, 4:5], pose)
    assert 0 < pose.min() < pose.max() < 1
    noise = torch.stack([torch.randn(C, F, H, W, generator=g) for g in generators()])
    assert torch.equal(x[:, :4], noise.transpose(1, 2).flatten(0, 1))


def test_the_reducer_is_37_numbers_and_the_released_one_is_not_trained():
    assert sum(p.numel() for p in net().reducer.parameters()) == 37
    assert all(p.requires_grad for p in net().reducer.parameters())
    released = net("genego.reducer=released")
    assert not any(p.requires_grad for p in released.reducer.parameters())
    assert {name for name in adapters.state(released)[2] if name.startswith("reducer")} == {"reducer.0.weight", "reducer.0.bias"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_that_of_what_the_base_predicts(kind):
    made, seen = spied("genego.drop=0.0", kind=kind)
    given = batch()
    assert given.ego is not None
    loss = training_loss(made, given, generators())
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=kind)
    for i, g in enumerate(generators()):
        draws, noise = torch.rand(1 + 2 * F, generator=g), torch.randn(C, F, H, W, generator=g)
        steps = (draws[1 : 1 + F] * 1000).long()
        clean, noise = given.ego[i].transpose(0, 1), noise.transpose(0, 1)
        assert torch.equal(seen.inputs[0][i * F : (i + 1) * F, :C], scheduler.add_noise(clean, noise, steps))
        target = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, steps), "sample": clean}[kind]
        assert torch.allclose(loss[i], target.square().mean(), rtol=1e-5)


def test_a_share_of_samples_is_at_pure_noise_and_a_share_knows_no_text():
    made, seen = spied("genego.pure=1.0", "genego.drop=1.0")
    training_loss(made, batch(), generators())
    assert (seen.steps[0] == 999).all()
    assert (seen.texts[0] == 0.3).all()


def test_ddim_visits_the_released_codes_steps_and_ends_with_the_clean_latent():
    made, seen = spied()
    found = sample(made, batch(ego=False), generators(), generate(steps=20))
    assert [int(t[0]) for t in seen.steps] == [*range(951, 0, -50)]
    assert found.shape == (B, C, F, H, W)


def test_the_loop_is_the_stock_schedulers_with_guidance():
    made = net("genego.eta=0.0")
    given = batch(ego=False)
    found = sample(made, given, generators(), generate(steps=4, guidance=3.0))
    scheduler = DDIMScheduler.from_config(made.schedule)
    scheduler.set_timesteps(4)
    x = torch.stack([torch.randn(C, F, H, W, generator=g) for g in generators()]).transpose(1, 2).flatten(0, 1)
    text, nothing = given.text.repeat_interleave(F, 0), torch.full((B * F, 77, 8), 0.3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            full = torch.cat([x, condition(made, given)], dim=1)
            with_, without = (made.unet(full, t, words).sample for words in (text, nothing))
            x = scheduler.step(without + 3 * (with_ - without), t, x).prev_sample
    assert torch.allclose(found, x.unflatten(0, (B, F)).transpose(1, 2), atol=1e-5)


def test_a_clips_video_depends_on_its_own_seed_alone():
    made = net()
    given = batch(ego=False)
    both = sample(made, given, generators(), generate(steps=3))
    one = Batch(given.sparse[1:], given.pose[1:], given.text[1:])
    assert torch.allclose(sample(made, one, generators()[1:], generate(steps=3))[0], both[1], atol=1e-5)


def test_frames_begin_with_one_noise_where_that_is_asked_for():
    made, seen = spied("genego.same_noise=true")
    sample(made, batch(ego=False), generators(), generate(steps=1))
    x = seen.inputs[0][:, :C].unflatten(0, (B, F))
    assert torch.equal(x[:, 0], x[:, 2])
    assert not torch.equal(x[0], x[1])


@pytest.mark.parametrize(("setting", "channels"), [("sparse", slice(5, 9)), ("pose", slice(4, 5))])
def test_what_is_left_out_for_comparison_is_zero(setting, channels):
    made, seen = spied(f"genego.{setting}=false")
    sample(made, batch(ego=False), generators(), generate(steps=1))
    assert (seen.inputs[0][:, channels] == 0).all()


def test_without_text_all_are_told_the_empty_one():
    made, seen = spied("genego.text=false")
    sample(made, batch(ego=False), generators(), generate(steps=1))
    assert (seen.texts[0] == 0.3).all()


@pytest.mark.parametrize("settings", [(), LORA])
def test_gradients_reach_what_is_trained_and_nothing_else_and_checkpointing_changes_none(settings):
    grads = []
    for checkpointing in (False, True):
        made = net(*settings)
        if settings:
            lora.add(made.transformer, 4, 4, ("to_q", "to_v", "conv_in"))
        if checkpointing:
            made.backbone.enable_gradient_checkpointing()
        made.train()
        training_loss(made, batch(), generators()).mean().backward()
        trained = {name for name, p in made.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for name, p in made.named_parameters() if name in trained)
        assert {name.partition(".")[0] for name in trained} == {"reducer", "transformer" if settings else "unet"}
        grads.append({name: p.grad for name, p in made.named_parameters() if name in trained})
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


@pytest.mark.parametrize("settings", [(), LORA])
def test_an_adapter_is_saved_and_loaded_whole(settings, tmp_path):
    made = net(*settings)
    if settings:
        lora.add(made.transformer, 4, 4, ("to_q", "to_v", "conv_in"))
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    parts = adapters.state(made)
    adapters.save(*parts, tmp_path, {"base_revision": "base", "method": "genego"})
    again = net(*settings)
    adapters.load(again, tmp_path, "base")
    again.eval()
    given = batch(ego=False)
    one, other = (sample(each, given, generators(), generate(steps=2)) for each in (made.eval(), again))
    assert torch.allclose(one, other, atol=1e-5)


def test_the_base_and_what_is_trained_have_to_go_with_the_method():
    with pytest.raises(ValueError, match="name a Stable Diffusion inpainting base"):
        genego.check(profile(), Layout(16, 4, 8, 2, 36))
    with pytest.raises(ValueError, match="either the whole U-Net is trained"):
        genego.check(profile('train.targets=["to_q"]'), LAYOUT)
    genego.check(profile(*LORA), LAYOUT)


def test_a_source_that_is_not_made_cannot_be_trained_on():
    with pytest.raises(ValueError, match=r"genego\.given is predicted, which genego\.sources does not make"):
        Profile.load("local-genego", ['genego.sources=["jittered"]'])


def test_where_a_regressor_lies_is_no_part_of_a_training(monkeypatch):
    monkeypatch.setattr(train.bases, "revision", lambda model: "base")
    assert train.recipe(profile("genego.regressor=/here")) == train.recipe(profile("genego.regressor=/there"))
    assert train.recipe(profile("genego.drop=0.5")) != train.recipe(profile())


def test_what_is_read_of_a_clip_is_of_the_source_that_the_profile_names():
    method, asked = genego.METHOD, profile()
    assert method.learnt(asked) == {"latents": ("ego", "text", "sparse-jittered", "pose-jittered")}
    assert method.given(asked) == {"latents": ("text", "sparse-predicted", "pose-predicted")}
