"""Exo2EgoSyn on tiny stock models: where it starts, what it may and may not depend on, and its loop beside the stock pipeline's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from egomill.kernels import rays
from egomill.kernels.cameras import Camera
from egomill.models import exo2egosyn, flow, lora
from egomill.models.exo2egosyn import Batch, Net
from egomill.models.layout import Layout
from egomill.schemas.config import Profile
from tests.kernels.test_rays import poses

B, V, C, F, H = 2, 4, 48, 3, 8
TI2V = Layout(channels=C, temporal=4, spatial=16, patch=2, inputs=C)
I2V = Layout(channels=16, temporal=4, spatial=8, patch=2, inputs=36)
SMALL = ["exo2egosyn.align_width=32", "exo2egosyn.align_heads=2", "exo2egosyn.align_depth=2", "exo2egosyn.ray_width=16"]
SMALL += ["clips.views=4", "clips.exo_cameras=1"]
CAMERA = Camera("pinhole", (60.0, 60.0, 63.5, 63.5), 128, 128)


def profile(*settings: str) -> Profile:
    return Profile.load("local", [*SMALL, "train.method=exo2egosyn", *settings])


def tiny(layout: Layout = TI2V) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        in_channels=layout.inputs, out_channels=layout.channels, num_attention_heads=3, attention_head_dim=32, num_layers=3, ffn_dim=192,
        text_dim=40, freq_dim=64, rope_max_seq_len=128,
    )  # fmt: skip


def net(layout: Layout = TI2V, *settings: str, vae=None) -> Net:
    return Net(SimpleNamespace(transformer=tiny(layout), vae=vae, layout=layout), profile(*settings))


def batch(layout: Layout = TI2V, views: int = V, seed: int = 1, count: int = B) -> Batch:
    g = torch.Generator().manual_seed(seed)
    exo = torch.randn(count, views, layout.channels, F, H, H, generator=g)
    looks = torch.stack([rays.maps(CAMERA, poses(seed + i, 9), poses(seed + 9 + i, V), cell=16) for i in range(count)])
    looks = torch.cat([looks[:, : 24 * views], 0 * looks[:, 24 * views : -1], looks[:, -1:]], dim=1)
    return Batch(exo, None, looks, torch.arange(count) % 2, torch.randn(count, layout.channels, F, H, H, generator=g))


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def stirred(made: Net) -> Net:
    """All that starts at zero or at the identity moved away from there."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.startswith("transformer.") and ("out.weight" in name or "fuse" in name or "leave" in name):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    made.ready = True
    return made


def velocity(made: Net, given: Batch, sigma: float = 0.7, shown: bool = True) -> torch.Tensor:
    told = torch.full((len(given.exo),), shown)
    noise = torch.randn(given.exo[:, 0].shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        fixed = exo2egosyn.prepare(made, given, told, noise[:, :, :1])
        return exo2egosyn.velocity(made, fixed, noise, torch.full((len(given.exo),), sigma))


def test_it_starts_as_the_stock_model_with_an_empty_prompt():
    stock, given = tiny(), batch()
    found = velocity(net(), given)
    noise = torch.randn(given.exo[:, 0].shape, generator=torch.Generator().manual_seed(3))
    noise[:, :, 0] = given.exo[:, 0, :, 0]  # no Align yet: the given frame is the first view's
    time = torch.full((B, F * 16), 700.0)
    time[:, :16] = 0
    with torch.no_grad():
        wanted = stock(noise, time, torch.zeros(B, 512, 40), return_dict=False)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with_rays, without = net(), net(TI2V, "exo2egosyn.rays=false")
    assert torch.equal(velocity(with_rays, given), velocity(without, given))  # exactly


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_missing_views_change_nothing(views):
    """Whatever stands in their place; and a clip of fewer views is that clip with the rest missing."""
    made, given = stirred(net()), batch()
    seen = torch.arange(V).expand(B, V) < views
    looks = given.rays.clone()
    looks[:, 24 * views : -1] = 0
    other = given.exo.clone()
    other[:, views:] = torch.randn(other[:, views:].shape)
    one = velocity(made, replace(given, seen=seen, rays=looks))
    torch.testing.assert_close(one, velocity(made, replace(given, seen=seen, rays=looks, exo=other)), atol=1e-5, rtol=1e-5)
    fewer = replace(given, exo=given.exo[:, :views], rays=looks)
    torch.testing.assert_close(one, velocity(made, fewer), atol=1e-5, rtol=1e-5)
    assert (views == 4) == torch.allclose(one, velocity(made, given), atol=1e-4)


def test_places_and_views_of_tokens_matter():
    made, given = stirred(net()), batch()
    tokens = made.tokens(given.exo, torch.ones(B, dtype=torch.bool))
    assert tokens.shape == (B, V * F * 16, 96)
    first, rest = given.exo[:, :, :, :1], given.exo[:, :, :, 1:]  # the first frames are Align's
    for other in (rest.flip(1), rest.flip(3), rest.roll(2, dims=-1), rest.roll(2, dims=-2)):
        moved = replace(given, exo=torch.cat([first, other], dim=3))
        assert (velocity(made, moved) - velocity(made, given)).abs().max() > 1e-3
    shuffled = tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))]
    fixed = exo2egosyn.prepare(made, given, torch.ones(B, dtype=torch.bool))
    x = torch.randn(B, C, F, H, H)
    with torch.no_grad():  # to the cross-attention they are a set
        a, b = (exo2egosyn.velocity(made, replace(fixed, tokens=t), x, torch.full((B,), 0.5)) for t in (tokens, shuffled))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_its_tokens_a_sample_is_told_nothing():
    made, given = stirred(net()), batch()
    other = replace(given, exo=given.exo.clone())
    other.exo[:, :, :, 1:] += 1  # the first frames are Align's
    torch.testing.assert_close(velocity(made, given, shown=False), velocity(made, other, shown=False), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(velocity(made, given), velocity(made, other), atol=1e-3)


@pytest.mark.parametrize("layout", [TI2V, I2V], ids=["ti2v", "i2v"])
def test_the_loss_does_not_know_the_true_first_frame(layout):
    from egomill.models.codec import PatchCodec

    made, given = stirred(net(layout, vae=PatchCodec(layers=0))), batch(layout)
    other = replace(given, ego=given.ego.clone())
    other.ego[:, :, 0] += 3
    assert torch.equal(made(given, seeds(1, 2)), made(other, seeds(1, 2)))
    other.ego[:, :, 1] += 3
    assert not torch.equal(made(given, seeds(1, 2)), made(other, seeds(1, 2)))


def test_a_loss_is_its_samples_own():
    made, given = stirred(net()), batch()
    one = Batch(given.exo[1:], None, given.rays[1:], given.fold[1:], given.ego[1:])
    torch.testing.assert_close(made(given, seeds(1, 2))[1:], made(one, seeds(2)), atol=1e-5, rtol=1e-5)


def test_a_fold_teaches_the_other_align_and_is_told_by_its_own():
    made, given = net(), replace(batch(), fold=torch.zeros(B, dtype=torch.long))
    made.phase = "align"
    made(given, seeds(1, 2)).mean().backward()
    learnt = [sum(p.grad.abs().sum() for p in align.parameters() if p.grad is not None) for align in made.align]
    assert learnt[0] == 0 < learnt[1]
    stirred(made)
    with torch.no_grad():
        frame = exo2egosyn.first_frame(made, given)
        torch.testing.assert_close(frame[:, :, 0], made.align[0](given.exo[:, :, :, 0], given.seen))
        other = exo2egosyn.first_frame(made, replace(given, fold=1 - given.fold))
    assert not torch.allclose(frame, other)


def test_gradients_with_checkpointing_are_those_without():
    given, found = batch(), []
    for checkpointing in (False, True):
        made = stirred(net())
        lora.add(made.transformer, 4, 4, ["to_q", "to_k", "to_v", "to_out.0"])
        if checkpointing:
            made.transformer.enable_gradient_checkpointing()
        made.train()
        loss = made(given, seeds(1, 2)).mean()
        made.rays.maps = None  # it is read outside of what runs again
        loss.backward()
        found.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name in ("tokens.patch.weight", "tokens.out.weight", "tokens.null", "rays.encode.weight", "rays.fuse.weight"):
        assert found[0][name].abs().sum() > 0, name
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-5)


def test_a_moved_world_makes_the_same_video():
    made, given, (T_other_world,) = stirred(net()), batch(count=1), poses(77, 1, far=100.0)
    ego, exo = poses(1, 9), poses(10, V)
    here, there = (rays.maps(CAMERA, T @ ego, T @ exo, cell=16)[None] for T in (torch.eye(4, dtype=torch.float64), T_other_world))
    settings = profile("generate.steps=2").generate
    a, b = (exo2egosyn.sample(made, replace(given, rays=r), seeds(4), settings) for r in (here, there))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", [TI2V, I2V], ids=["ti2v", "i2v"])
@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_frame_0_is_the_given_one_bit_for_bit_and_a_clip_its_seed_s_own(layout, kind):
    from egomill.models.codec import PatchCodec

    made, given = stirred(net(layout, vae=PatchCodec(layers=0))), batch(layout)
    settings = profile("generate.steps=3", f"generate.scheduler='{kind}'", "generate.shift=5.0", "generate.guidance=2.0").generate
    found = exo2egosyn.sample(made, given, seeds(7, 8), settings)
    assert torch.equal(found[:, :, :1], exo2egosyn.first_frame(made, given))
    one = Batch(given.exo[1:], None, given.rays[1:], given.fold[1:])
    torch.testing.assert_close(exo2egosyn.sample(made, one, seeds(8), settings), found[1:], atol=1e-4, rtol=1e-4)


def test_kept_tokens_change_nothing():
    given = batch()
    given = replace(given, seen=torch.tensor([[True, True, True, False], [True] * 4]))
    settings = profile("generate.steps=4", "generate.guidance=3.0").generate
    kept = settings.model_copy(update={"keep_tokens": True})
    a, b = (exo2egosyn.sample(stirred(net()), given, seeds(7, 8), how) for how in (settings, kept))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_blurred_frame_may_be_refined():
    """From the noise level at which it begins; at nearly none it stays as it was."""
    given = batch()
    settings = profile("generate.steps=8").generate
    plain = exo2egosyn.sample(stirred(net()), given, seeds(7, 8), settings)
    hardly = exo2egosyn.sample(stirred(net(TI2V, "exo2egosyn.refine=1e-6")), given, seeds(7, 8), settings)
    refined = exo2egosyn.sample(stirred(net(TI2V, "exo2egosyn.refine=0.4")), given, seeds(7, 8), settings)
    torch.testing.assert_close(hardly, plain, atol=1e-3, rtol=1e-3)
    assert (refined[:, :, 0] - plain[:, :, 0]).abs().max() > 0.05


def test_a_refined_frame_becomes_what_the_model_knows(monkeypatch):
    """With velocities towards a known video, its frame 0 comes out too, whatever frame was given; and its loss counts frame 0."""
    given, truth = batch(), batch(seed=9).ego
    made = stirred(net(TI2V, "exo2egosyn.refine=0.4", "exo2egosyn.drop_views=0"))

    def towards(_, it, x, sigma, level=0.0):
        first = (it.frame - truth[:, :, :1]) / max(level, 1e-9)
        return torch.cat([first, (x - truth)[:, :, 1:] / sigma.view(-1, 1, 1, 1, 1)], dim=2)

    with monkeypatch.context() as patched:
        patched.setattr(exo2egosyn, "velocity", towards)
        found = exo2egosyn.sample(made, given, seeds(7, 8), profile("generate.steps=6").generate)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-4)
    other = replace(given, ego=torch.cat([truth[:, :, :1], given.ego[:, :, 1:]], dim=2))
    assert (made(given, seeds(1, 2)) - made(other, seeds(1, 2))).abs().min() > 1e-4


def test_dropped_views_are_missing_views():
    """What training leaves out, tokens, rays and first frames, is as if it had never been there; one view always stays."""
    made, given = stirred(net()).eval(), batch()
    given = replace(given, seen=torch.tensor([[True, True, True, False], [True] * 4]))
    left = exo2egosyn.fewer(given, torch.tensor([[False, True, True, False], [True] * 4]))
    assert left.seen.tolist() == [[True, False, False, False], [True] * 4]
    per = (given.rays.shape[1] - 1) // 4
    assert not left.rays[0, per:-1].any()
    assert torch.equal(left.rays[:, -1], given.rays[:, -1])
    noisy = replace(left, exo=torch.where(left.seen[:, :, None, None, None, None], left.exo, 7.0))
    torch.testing.assert_close(made(left, seeds(1, 2)), made(noisy, seeds(1, 2)))
    dropping = net(TI2V, "exo2egosyn.drop_views=0.6").train()
    losses = {dropping(given, seeds(n, n + 50))[1].item() for n in range(3)}
    assert len(losses) == 3


def test_the_align_that_is_given_is_the_one_that_is_validated():
    made, given = stirred(net(TI2V, "exo2egosyn.drop_views=0")), batch()
    made.phase = "align"
    given = replace(given, fold=torch.tensor([0, 1]))
    with torch.no_grad():
        errors = [(align(given.exo[:, :, :, 0]) - given.ego[:, :, 0]).square().flatten(1).mean(dim=1) for align in made.align]
        torch.testing.assert_close(made.train()(given, seeds(1, 2)), torch.stack([errors[1][0], errors[0][1]]))
        torch.testing.assert_close(made.eval()(given, seeds(1, 2)), torch.stack([errors[0][0], errors[1][1]]))


def test_an_align_that_learnt_nothing_gives_way_to_the_other():
    made, given = stirred(net()), batch()
    for parameter in made.align[0].leave.parameters():
        torch.nn.init.zeros_(parameter)
    one, two = (exo2egosyn.first_frame(made, replace(given, fold=torch.full((len(given.fold),), fold))) for fold in (0, 1))
    assert torch.equal(one, two)
    assert one.abs().sum() > 0


def test_the_untuned_base_starts_from_the_exo_view_and_the_truth_is_for_training():
    given = batch()
    fresh = net(TI2V, "exo2egosyn.frame=none")
    assert torch.equal(exo2egosyn.first_frame(fresh, given), given.exo[:, 0, :, :1])
    made = stirred(net(TI2V, "exo2egosyn.frame=truth"))
    assert torch.equal(exo2egosyn.first_frame(made, given), given.ego[:, :, :1])
    predicted = exo2egosyn.first_frame(made, replace(given, ego=None))
    assert torch.equal(predicted, exo2egosyn.first_frame(stirred(net()), replace(given, ego=None)))


def codec() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=C, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * C, latents_std=[1.3] * C, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_temporal=4, scale_factor_spatial=16,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_the_loop_is_the_stock_pipeline_s(kind):
    """Wan 2.2's image-to-video pipeline with the picture that the codec makes of the given frame, and the same noise."""
    from diffusers import WanImageToVideoPipeline

    from egomill.models.latents import encode_video

    vae, steps, guidance = codec(), 4, 3.0
    picture = torch.rand(1, 3, 1, 128, 128, generator=torch.Generator().manual_seed(2)) * 2 - 1
    frame = encode_video(vae, picture)
    made = net(TI2V, "exo2egosyn.frame='exo'", vae=vae)
    given = batch(count=1)
    given.exo[:, 0, :, :1] = frame
    noise = torch.randn(1, C, F, H, H, generator=torch.Generator().manual_seed(9))
    tokens, null = torch.randn(1, 7, 96), torch.randn(1, 5, 96)
    scheduler = flow.make_scheduler(kind, 5.0)
    pipe = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=made.transformer, expand_timesteps=True
    )
    pipe.set_progress_bar_config(disable=True)
    made.rays.maps = None
    wanted = pipe(
        image=(picture[:, :, 0] + 1) / 2, height=128, width=128, num_frames=9, num_inference_steps=steps, guidance_scale=guidance,
        prompt_embeds=tokens, negative_prompt_embeds=null, latents=noise.clone(), output_type="latent",
    ).frames  # fmt: skip

    turns = iter([tokens, null])
    made.tokens.forward = lambda exo, shown: next(turns)
    made.settings = made.settings.model_copy(update={"rays": False})
    asked = [f"generate.steps={steps}", f"generate.scheduler='{kind}'", "generate.shift=5.0", f"generate.guidance={guidance}"]
    own = made_with(made, given, noise, profile(*asked).generate)
    torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4)


def made_with(made: Net, given: Batch, noise: torch.Tensor, settings) -> torch.Tensor:
    """`sample` with this noise, on the steps that the stock pipeline takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: noise[0])
        patch.setattr(exo2egosyn, "set_steps", lambda s, steps, device: s.set_timesteps(steps, device=device))
        return exo2egosyn.sample(made, given, seeds(0), settings)


def test_it_is_saved_and_loaded_whole(tmp_path):
    from egomill.tasks.training import adapters

    made, given = stirred(net()), batch()
    lora.add(made.transformer, 4, 4, ["to_q", "to_k", "to_v", "to_out.0"])
    with torch.no_grad():
        for name, parameter in made.transformer.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    description = adapters.about(profile(), "base", 3, "r1")
    assert description["method"] == "exo2egosyn"
    assert {"views", "metres", "frame", "align_width"} <= description.keys()
    adapters.save(*adapters.state(made), tmp_path, description)
    fresh = net()
    assert not fresh.ready
    adapters.load(fresh, tmp_path, "base")
    assert fresh.ready
    torch.testing.assert_close(velocity(fresh, given), velocity(made, given), atol=1e-5, rtol=1e-5)


def test_what_does_not_go_together_is_named():
    local = profile()
    with pytest.raises(ValueError, match=r"takes 36 channels.*takes 48"):
        exo2egosyn.check(local, replace(TI2V, inputs=36))
    with pytest.raises(ValueError, match=r"clips.exo_size=\[128,128\]"):
        exo2egosyn.check(local, I2V)
    square = profile("clips.exo_size=[128,128]")
    exo2egosyn.check(square, I2V)
    with pytest.raises(ValueError, match="refine"):
        exo2egosyn.check(profile("clips.exo_size=[128,128]", "exo2egosyn.refine=0.3"), I2V)
    with pytest.raises(ValueError, match="image branch"):
        exo2egosyn.check(square, replace(I2V, image_branch=True))
    with pytest.raises(ValueError, match="true ego latents"):
        net()(replace(batch(), ego=None), seeds(1, 2))
    with pytest.raises(ValueError, match="2 clips, 1 generators"):
        exo2egosyn.sample(net(), batch(), seeds(1), local.generate)
