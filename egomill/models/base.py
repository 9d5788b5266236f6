"""The embedded base model's shape, its start, and how it learns; the driver is tasks/training/pretrain.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egomill.models.flow import TIMESTEPS


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates of the pretraining. Widths in px: what a single view is cut or stretched to."""

    heads: int = 6
    head_dim: int = 32
    layers: int = 5
    ffn: int = 512
    text_dim: int = 32
    text_tokens: int = 64
    widths: tuple[int, ...] = (128, 224, 352)
    batches: tuple[int, ...] = (6, 3, 2)  # samples a step, by width
    odds: tuple[float, ...] = (0.6, 0.25, 0.15)
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.998
    pure: float = 0.35  # share of samples at σ = 1
    shift: float = 3.0
    codec_share: float = 0.08  # of the minutes, for the codec
    first_image: float = 0.15  # tasks: from the first frame, from text alone; the rest restores
    from_text: float = 0.1
    no_mask: float = 0.4  # of the restorations: the mask channels say nothing
    seed: int = 0


def make_transformer(recipe: Recipe) -> Any:
    """The stock class, started so that it passes noise minus condition through to the velocity.

    The embedding copies its 144 inputs; a pair of large constant channels keeps the layer norms' divisor nearly the same for all tokens,
    so that the output layer can undo it; the blocks begin as small corrections.
    """
    from diffusers import WanTransformer3DModel

    torch.manual_seed(recipe.seed)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=recipe.heads,
        attention_head_dim=recipe.head_dim,
        in_channels=36,
        out_channels=16,
        text_dim=recipe.text_dim,
        freq_dim=64,
        ffn_dim=recipe.ffn,
        num_layers=recipe.layers,
        rope_max_seq_len=256,
    )
    dim, big = recipe.heads * recipe.head_dim, 16.0
    with torch.no_grad():
        weight, bias = model.patch_embedding.weight, model.patch_embedding.bias
        assert bias is not None
        weight.normal_(0, 0.02)
        bias.zero_()
        for place in range(4):
            y, x = divmod(place, 2)
            for channel in range(36):
                weight[place * 36 + channel].zero_()
                weight[place * 36 + channel, channel, 0, y, x] = 1
        bias[dim - 2], bias[dim - 1] = big, -big
        divisor = math.sqrt((2 * big**2 + 144) / dim)
        model.proj_out.weight.normal_(0, 0.002)
        model.proj_out.bias.zero_()
        for place in range(4):
            for channel in range(16):
                row = model.proj_out.weight[place * 16 + channel]
                row[place * 36 + channel], row[place * 36 + 20 + channel] = divisor, -divisor
        model.scale_shift_table.zero_()
        for block in model.blocks:
            block.scale_shift_table.data *= 0.5  # type: ignore[union-attr]
    return model


def flow_loss(model: Any, batch: dict[str, Tensor], sigma: Tensor, noise: Tensor) -> Tensor:
    """|v − (ε − x)|² over a sample [B]."""
    level = sigma.view(-1, 1, 1, 1, 1)
    x = batch["x"]
    v = model(torch.cat([(1 - level) * x + level * noise, batch["condition"]], dim=1), sigma * TIMESTEPS, batch["text"], return_dict=False)[
        0
    ]
    return (v - (noise - x)).square().flatten(1).mean(dim=1)


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Warm-up by steps, then a cosine down to 2% by the share of the wall clock that has passed."""
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
