"""The embedded base for pictures: a tiny latent inpainter in the classes and the layout of Stable Diffusion inpainting. No I/O.

Channels of the U-Net are those of that model: noisy latent (4), what is to be filled (1 in holes), latent of the picture with grey holes
(4). It differs in three numbers: a latent pixel is 4x4 px, or nothing would be left of a small picture; it predicts the velocity
v = √ᾱ ε − √(1 − ᾱ) z, which has a meaning at pure noise, where a short training has to work; and its steps are counted from the noisy end.
The driver is tasks/training/pretrain.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egomill.models import genego
from egomill.models.genego import SCHEDULE
from egomill.models.layout import Layout

LAYOUT = Layout(channels=4, temporal=1, spatial=4, patch=2, inputs=9)
SAMPLING = {**genego.SAMPLING, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class PictureRecipe:
    """Sizes and rates of the pretraining."""

    size: int = 128  # px
    widths: tuple[int, ...] = (48, 96)  # channels of the U-Net, by level
    codec_widths: tuple[int, ...] = (16, 32, 48)
    text_dim: int = 32
    text_tokens: int = 77
    merges: int = 400  # of the tokenizer
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.998
    pure: float = 0.3  # share of samples at the last time step
    codec_share: float = 0.3  # of the minutes, for the codec
    from_text: float = 0.1  # share of samples without a picture
    no_text: float = 0.1
    seed: int = 0


def make_unet(recipe: PictureRecipe) -> Any:
    """The stock class, with attention to the text at its lower level."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(recipe.seed)
    levels = len(recipe.widths) - 1
    return UNet2DConditionModel(
        sample_size=recipe.size // LAYOUT.spatial,
        in_channels=LAYOUT.inputs,
        out_channels=LAYOUT.channels,
        block_out_channels=recipe.widths,  # type: ignore[arg-type]
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * levels),  # type: ignore[arg-type]
        up_block_types=(*("CrossAttnUpBlock2D",) * levels, "UpBlock2D"),  # type: ignore[arg-type]
        cross_attention_dim=recipe.text_dim,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def make_codec(recipe: PictureRecipe) -> Any:
    """The stock class; no attention, so that it takes pictures of any size in one time a pixel."""
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed + 2)
    levels = len(recipe.codec_widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
        block_out_channels=recipe.codec_widths,  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=LAYOUT.channels,
        norm_num_groups=8,
        sample_size=recipe.size,
        mid_block_add_attention=False,
    )


def velocity_loss(model: Any, batch: dict[str, Tensor], timesteps: Tensor, noise: Tensor) -> Tensor:
    """|v̂ − v|² over a sample [B], of latents x [B, 4, h, w], condition [B, 5, h, w] and text [B, 77, c]."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(**SCHEDULE, prediction_type="v_prediction")
    noisy = scheduler.add_noise(batch["x"], noise, timesteps)
    out = model(torch.cat([noisy, batch["condition"]], dim=1), timesteps, batch["text"], return_dict=False)[0]
    return (out - scheduler.get_velocity(batch["x"], noise, timesteps)).square().flatten(1).mean(dim=1)
