"""The embedded base for videos: a tiny Wan transformer trained from nothing on simulated rooms, so that the whole pipeline runs without
weights.

It becomes a *general* small video model that knows the 36-channel input, and nothing more: plain single-view clips (of either camera), to
be made from a first frame, from text, or from a degraded copy in the condition channels (kernels/degrade.py). It never sees two views
side by side, nor a rendered prior: exo→ego is what adapters are for. The driver is pretrain.py.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.degrade import degrade
from egomill.models.base import Recipe, flow_loss, make_transformer
from egomill.models.codec import PatchCodec, to_cells
from egomill.models.egox import cover_cells
from egomill.models.latents import encode_video
from egomill.models.layout import Layout
from egomill.scenes.views import Views, to_float
from egomill.tasks.training.pretrain import Kind, save_half

LAYOUT = Layout(channels=16, temporal=4, spatial=8, patch=2, inputs=36)  # of the base that is made here: Wan 2.1's


def task(rng: np.random.Generator, recipe: Recipe, video: Tensor) -> tuple[Tensor, Tensor, bool]:
    """What the condition channels hold for a video [F, 3, H, W]: a video, the validity [F, H, W] for the mask, and whether anything."""
    frames, _, height, width = video.shape
    kind = rng.random()
    if kind < recipe.first_image:
        given = torch.zeros_like(video)
        given[0] = video[0]
        valid = torch.zeros(frames, height, width, dtype=torch.bool)
        valid[0] = True
        return given, valid, True
    if kind < recipe.first_image + recipe.from_text:
        return torch.zeros_like(video), torch.zeros(frames, height, width, dtype=torch.bool), False
    given, valid = degrade(rng, video)
    return given, valid & bool(rng.random() >= recipe.no_mask), True


def make_batch(recipe: Recipe, rng: np.random.Generator, views: Views, codec: Any) -> dict[str, Tensor]:
    """One step's samples: latents x, the 20 conditioning channels, text."""
    which = int(rng.choice(len(recipe.widths), p=recipe.odds))
    clean, given, cover, some, text = [], [], [], [], []
    for _ in range(recipe.batches[which]):
        video, words = views.draw(rng, recipe.widths[which])
        condition, valid, anything = task(rng, recipe, video)
        clean.append(video)
        given.append(condition)
        cover.append(valid)
        some.append(anything)
        text.append(words if rng.random() < 0.9 else torch.zeros_like(words))
    both = encode_video(codec, torch.stack(clean + given).transpose(1, 2))
    x, condition = both.chunk(2)
    condition = condition * torch.tensor(some).view(-1, 1, 1, 1, 1)
    return {"x": x, "condition": torch.cat([cover_cells(torch.stack(cover), LAYOUT), condition], dim=1), "text": torch.stack(text)}


def make_text_encoder(recipe: Recipe) -> tuple[Any, Any]:
    """A byte tokenizer and a tiny random frozen UMT5: texts that differ get embeddings that differ, which is all the base needs."""
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    torch.manual_seed(recipe.seed + 1)
    config = UMT5Config(
        vocab_size=384,
        d_model=recipe.text_dim,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        tie_word_embeddings=False,  # pyright: ignore[reportCallIssue]
    )
    return ByT5Tokenizer(), UMT5EncoderModel(config).eval().requires_grad_(False)


def fit_codec(recipe: Recipe, codec: Any, views: Views, rng: np.random.Generator, seconds: float) -> dict[str, float]:
    """Principal components of the cells, then the refining net by L2 in pixels until the seconds are over; PSNR on held-out clips."""
    pool = []
    for exo, ego in list(zip(views.exo, views.ego, strict=True))[:150]:
        for stored in (exo, ego):
            cells = to_cells(to_float(stored).transpose(0, 1)[None]).flatten(0, 3)
            pool.append(cells[torch.from_numpy(rng.permutation(len(cells))[:250])])
    codec.fit(torch.cat(pool))
    numbers = {f"{name}_pca": value for name, value in codec_quality(codec, views).items()}
    weights = [p for p in codec.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1e-4)
    start, steps = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / max(seconds, 1e-3)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (steps + 1) / 20) * (0.02 + 0.98 * (1 - progress))
        video = torch.stack([views.draw(rng, 128)[0] for _ in range(4)]).transpose(1, 2)
        loss = (codec(video) - video).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return numbers | codec_quality(codec, views) | {"codec_steps": steps}


@torch.no_grad()
def codec_quality(codec: PatchCodec, views: Views) -> dict[str, float]:
    """Mean PSNR in dB of the held-out clips, both views."""
    numbers = {}
    for name, stored in (("exo", [exo for exo, _, _ in views.held]), ("ego", [ego for _, ego, _ in views.held])):
        errors = []
        for one in stored:
            video = to_float(one).transpose(0, 1)[None]
            errors.append(-10 * ((codec(video).clamp(-1, 1) - video) / 2).square().mean().log10().item())
        numbers[f"codec_{name}_psnr"] = float(np.mean(errors)) if errors else float("nan")
    return numbers


def save_base(out: Path, transformer: Any, codec: PatchCodec, text: tuple[Any, Any]) -> None:
    """Write a folder in the diffusers layout, weights in float16."""
    from egomill.models.flow import make_scheduler

    tokenizer, encoder = text
    save_half(out, transformer=transformer, vae=codec, text_encoder=encoder)
    tokenizer.save_pretrained(out / "tokenizer")
    make_scheduler("unipc", 3.0).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "_diffusers_version": version("diffusers"),
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["egomill.models.codec", "PatchCodec"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "ByT5Tokenizer"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "image_encoder": [None, None],
        "image_processor": [None, None],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _levels(rng: Any, recipe: Recipe, count: int) -> Tensor:
    """Noise levels σ [count]: shifted, and a share of them 1."""
    u = torch.from_numpy(rng.random(count, dtype=np.float32))
    sigma = recipe.shift * u / (1 + (recipe.shift - 1) * u)
    return torch.where(torch.from_numpy(rng.random(count) < recipe.pure), torch.ones(count), sigma)


def loss(recipe: Recipe, model: Any, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
    """Of every sample [B], at levels and noise of the moment."""
    return flow_loss(model, batch, _levels(rng, recipe, len(batch["x"])), torch.randn(batch["x"].shape))


def loss_at(model: Any, batch: dict[str, Tensor], level: float, noise: Tensor) -> Tensor:
    """Of every sample [B], at one level."""
    return flow_loss(model, batch, torch.full((len(noise),), level), noise)


KIND = Kind(
    module=__name__,
    recipe=Recipe(),
    make_text=make_text_encoder,
    make_codec=lambda _: PatchCodec(),
    load_codec=lambda folder: PatchCodec.from_pretrained(folder).float(),
    fit_codec=fit_codec,
    make_model=make_transformer,
    make_batch=make_batch,
    loss=loss,
    loss_at=loss_at,
    save=save_base,
)
