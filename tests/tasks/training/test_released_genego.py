"""GenEgo's released checkpoint, by its names and in its layout, made an adapter; on a U-Net of a few channels."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from egomill.models import genego
from egomill.schemas.config import Profile
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.networks import bases
from egomill.tasks.training import adapters
from egomill.tasks.training.foreign import register

PROFILE = Profile.load("local-genego")
OF_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def ldm_name(name: str, layers: int = 1) -> str:
    """A tensor's name in latent diffusion's code, of a U-Net with so many layers a block."""
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)

    def inner(rest: str) -> str:
        first, _, last = rest.partition(".")
        return f"{OF_RESNET[first]}.{last}" if first in OF_RESNET else rest

    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        place = 2 * int(match[2]) + (match[1] == "attentions")
        return f"middle_block.{place}.{inner(match[3])}"
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        return f"input_blocks.{1 + int(match[1]) * (layers + 1) + int(match[3])}.{int(match[2] == 'attentions')}.{inner(match[4])}"
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
    if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        return f"output_blocks.{int(match[1]) * (layers + 1) + int(match[3])}.{int(match[2] == 'attentions')}.{inner(match[4])}"
    match = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name)
    assert match, name
    block = int(match[1])
    return f"output_blocks.{block * (layers + 1) + layers}.{2 if block == 0 else 1}.conv.{match[2]}"


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    """Other numbers than the base's, under the released code's names."""
    unet, rng = bases.load(PROFILE.model, "transformer").transformer, torch.Generator().manual_seed(0)
    tensors = {
        f"model.diffusion_model.{ldm_name(name)}": t + 0.01 * torch.randn(t.shape, generator=rng) for name, t in unet.state_dict().items()
    }
    assert len(tensors) == len(unet.state_dict())
    reducer = genego.Reducer(4).state_dict()
    return {
        **tensors,
        **{f"channel_reducer.{name}": t.clone() for name, t in reducer.items()},
        "first_stage_model.encoder.conv_in.weight": torch.zeros(4, 3, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(4),
    }


def test_the_released_model_becomes_an_adapter_with_its_own_numbers(checkpoint, tmp_path):
    save_file({name: t.contiguous() for name, t in checkpoint.items()}, tmp_path / "released.safetensors")
    tracker = Tracker.beside(str(tmp_path / "lake"))
    adapter = register(tmp_path / "released.safetensors", PROFILE, tracker)
    assert adapter.spec == "genego@v1"
    net = genego.build(bases.load(PROFILE.model, *genego.METHOD.parts), PROFILE)
    adapters.load(net, adapter.folder, bases.revision(PROFILE.model))
    assert torch.equal(net.reducer[0].weight, checkpoint["channel_reducer.0.weight"])
    for name, tensor in net.unet.state_dict().items():
        assert torch.equal(tensor, checkpoint[f"model.diffusion_model.{ldm_name(name)}"]), name


FAULTS = {
    "of another size": (lambda t: {n: v[:8] if n.endswith("input_blocks.0.0.bias") else v for n, v in t.items()}, "not of the base's size"),
    "a layer is missing": (lambda t: {n: v for n, v in t.items() if "time_embed.0" not in n}, "not of the base's size"),
    "no reducer": (lambda t: {n: v for n, v in t.items() if "reducer" not in n}, "no channel_reducer"),
    "another reducer": (lambda t: {n: v[:, :2] if n == "channel_reducer.0.weight" else v for n, v in t.items()}, "no channel_reducer"),
    "not finite": (lambda t: {n: v * torch.nan if n.endswith("out.2.bias") else v for n, v in t.items()}, "not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_by_name(checkpoint, tmp_path, fault):
    change, words = FAULTS[fault]
    save_file({name: t.contiguous() for name, t in change(checkpoint).items()}, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=words) as caught:
        register(tmp_path / "f.safetensors", PROFILE, Tracker.beside(str(tmp_path / "lake")))
    assert "f.safetensors" in str(caught.value)


def test_it_asks_for_a_profile_that_trains_the_whole(checkpoint, tmp_path):
    save_file({name: t.contiguous() for name, t in checkpoint.items()}, tmp_path / "f.safetensors")
    profile = Profile.load("local-genego", ["genego.full=false", 'train.targets=["to_q"]'])
    with pytest.raises(ValueError, match=r"set genego\.full=true"):
        register(tmp_path / "f.safetensors", profile, Tracker.beside(str(tmp_path / "lake")))
