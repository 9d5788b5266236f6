"""A base's own configuration says how it cuts a video up, and its codec does so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, UNet2DConditionModel, WanTransformer3DModel

from egomill.models import egox
from egomill.models.codec import PatchCodec
from egomill.models.latents import to_frames, to_latent
from egomill.models.layout import Layout
from egomill.schemas.config import Profile

torch.manual_seed(0)
SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 16, "text_dim": 8, "freq_dim": 16}
UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4, "attention_head_dim": 4}
UNET |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
PICTURES = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "layers_per_block": 1}
PICTURES |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TI2V = {"z_dim": 48, "base_dim": 8, "decoder_base_dim": 8, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
TI2V |= {"scale_factor_spatial": 16, "num_res_blocks": 1, "latents_mean": [0.1] * 48, "latents_std": [2.0] * 48}
BASES = {
    "Wan 2.1": (
        lambda: AutoencoderKLWan(base_dim=4, num_res_blocks=1),
        lambda: WanTransformer3DModel(in_channels=36, out_channels=16, **SMALL),
        Layout(channels=16, temporal=4, spatial=8, patch=2, inputs=36),
    ),
    "embedded": (
        PatchCodec,
        lambda: WanTransformer3DModel(in_channels=36, out_channels=16, **SMALL),
        Layout(channels=16, temporal=4, spatial=8, patch=2, inputs=36),
    ),
    "Wan 2.2 TI2V-5B": (
        lambda: AutoencoderKLWan(**TI2V),
        lambda: WanTransformer3DModel(in_channels=48, out_channels=48, **SMALL),
        Layout(channels=48, temporal=4, spatial=16, patch=2, inputs=48),
    ),
    "Stable Diffusion": (
        lambda: AutoencoderKL(**PICTURES),
        lambda: UNet2DConditionModel(in_channels=9, out_channels=4, **UNET),
        Layout(channels=4, temporal=1, spatial=8, patch=1, inputs=9),
    ),
}


@pytest.mark.parametrize("base", BASES)
def test_latents_of_stock_classes_are_as_the_layout_says(base):
    codec, network, wanted = BASES[base][0]().eval(), BASES[base][1](), BASES[base][2]
    layout = Layout.of(codec.config, network.config)
    assert layout == wanted
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), np.uint8)
    latent = to_latent(codec, frames)
    assert latent.shape == (layout.channels, *layout.latents(5, 32, 64))
    assert latent.isfinite().all()
    made = to_frames(codec, latent)
    assert made is not None
    assert made.shape == frames.shape


def test_a_picture_codec_takes_each_frame_by_itself():
    codec = AutoencoderKL(**PICTURES).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    torch.testing.assert_close(to_latent(codec, frames)[:, 1:2], to_latent(codec, frames[1:2]))


def test_what_does_not_fit_is_refused_with_what_to_set():
    wan, picture = BASES["Wan 2.1"][2], BASES["Stable Diffusion"][2]
    wan.check(9, 128, 224)
    picture.check(1, 8)
    for frames, sides, says in ((10, (128,), r"4n \+ 1 frames .* not 10 frames"), (9, (136,), "multiples of 16 px .* 136 px: set clips")):
        with pytest.raises(ValueError, match=says):
            wan.check(frames, *sides)
    with pytest.raises(ValueError, match="takes 48 channels, and EgoX gives 100"):
        egox.check(Profile.load("local"), BASES["Wan 2.2 TI2V-5B"][2])
    with pytest.raises(ValueError, match="heights must agree"):
        egox.check(Profile.load("local", ["clips.ego_size=64"]), wan)
