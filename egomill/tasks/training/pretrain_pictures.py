"""The embedded base for pictures: what stands where Stable Diffusion inpainting stands when no weights are at hand.

It learns what that model knows, on single pictures of simulated rooms, of either camera: to fill holes of a picture, with a text beside it.
It never sees two views, nor hands drawn as lines, nor a sparse map: exo→ego is what adapters are for. The driver is pretrain.py.
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
from torch.nn import functional

from egomill.kernels.degrade import degrade
from egomill.models.picture_base import LAYOUT, SAMPLING, SCHEDULE, PictureRecipe, make_codec, make_unet, velocity_loss
from egomill.scenes.captions import caption
from egomill.scenes.views import FIRST_SEED, Views, to_float
from egomill.scenes.world import make_scene
from egomill.tasks.training.pretrain import Kind, save_half

SCENES = 150  # whose captions the tokenizer learns its words of
STEPS = SCHEDULE["num_train_timesteps"]


def make_text_encoder(recipe: PictureRecipe) -> tuple[Any, Any]:
    """CLIP's tokenizer with pairs of letters learnt from captions, and a tiny random frozen CLIP text model: texts that differ get
    embeddings that differ, which is all the base needs."""
    import tempfile

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = [caption(make_scene(FIRST_SEED + n, 4.0, (0.0, 1.0)), 0.0, 1.0).lower() for n in range(SCENES)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=len(letters) * 2 + recipe.merges, initial_alphabet=letters, end_of_word_suffix="</w>")
    learner.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    torch.manual_seed(recipe.seed + 1)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=recipe.text_dim,
        intermediate_size=2 * recipe.text_dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=recipe.text_tokens,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    encoder = CLIPTextModel(config).eval().requires_grad_(False)
    with torch.no_grad():  # as it starts all words are much alike
        for name, weight in encoder.named_parameters():
            if "token_embedding" in name:
                weight.normal_(0, 1)
    return tokenizer, encoder


def pictures(rng: np.random.Generator, recipe: PictureRecipe, views: Views, count: int) -> tuple[Tensor, Tensor]:
    """Single frames, augmented, [B, 3, S, S] in [-1, 1], and their texts [B, 77, c]."""
    drawn = [views.draw(rng, recipe.size) for _ in range(count)]
    return torch.stack([video[int(rng.integers(len(video)))] for video, _ in drawn]), torch.stack([text for _, text in drawn])


@torch.no_grad()
def encode(codec: Any, found: Tensor) -> Tensor:
    """Latents [B, 4, h, w] by the mode, scaled."""
    return codec.encode(found).latent_dist.mode() * codec.config.scaling_factor


def make_batch(recipe: PictureRecipe, rng: np.random.Generator, views: Views, codec: Any) -> dict[str, Tensor]:
    """One step's samples: latents x, the five conditioning channels (what to fill, the latent of what is there on grey), text."""
    found, text = pictures(rng, recipe, views, recipe.batch)
    given, holes = torch.zeros_like(found), torch.ones(len(found), 1, *found.shape[2:])
    for i, picture in enumerate(found):
        if rng.random() >= recipe.from_text:
            worse, valid = degrade(rng, picture[None])
            given[i], holes[i] = worse[0] * valid[0], ~valid
        if rng.random() < recipe.no_text:
            text[i] = 0
    x, there = encode(codec, torch.cat([found, given])).chunk(2)
    return {"x": x, "condition": torch.cat([functional.interpolate(holes, x.shape[2:]), there], dim=1), "text": text}


def fit_codec(recipe: PictureRecipe, codec: Any, views: Views, rng: np.random.Generator, seconds: float) -> dict[str, float]:
    """The autoencoder by L1 in pixels until the seconds are over, its scale from what it makes; PSNR on held-out pictures."""
    optimiser = torch.optim.AdamW(codec.parameters(), lr=2e-3, weight_decay=1e-4)
    start, steps = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / max(seconds, 1e-3)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (steps + 1) / 50) * (0.02 + 0.98 * (1 - progress))
        found, _ = pictures(rng, recipe, views, 4)
        latent = codec.encode(found).latent_dist.mode()
        loss = (codec.decode(latent).sample - found).abs().mean() + 1e-4 * latent.square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimiser.step()
        steps += 1
        if steps % 50 == 0:
            views.look()
    with torch.no_grad():
        spread = codec.encode(pictures(rng, recipe, views, 32)[0]).latent_dist.mode().std().item()
    codec.register_to_config(scaling_factor=1 / spread)
    return codec_quality(codec, views) | {"codec_steps": steps}


@torch.no_grad()
def codec_quality(codec: Any, views: Views) -> dict[str, float]:
    """Mean PSNR in dB of the middle frames of held-out clips, ego views."""
    errors = []
    for _, stored, _ in views.held:
        picture = to_float(stored)[len(stored) // 2][None]
        made = codec.decode(codec.encode(picture).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(-10 * ((made - picture) / 2).square().mean().log10().item())
    return {"codec_ego_psnr": float(np.mean(errors)) if errors else float("nan")}


def loss(recipe: PictureRecipe, model: Any, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
    """Of every sample [B], at time steps and noise of the moment; a share of them at the last one."""
    count = len(batch["x"])
    steps = np.where(rng.random(count) < recipe.pure, STEPS - 1, rng.integers(STEPS, size=count))
    return velocity_loss(model, batch, torch.from_numpy(steps), torch.randn(batch["x"].shape))


def loss_at(model: Any, batch: dict[str, Tensor], level: float, noise: Tensor) -> Tensor:
    """Of every sample [B], at one level."""
    return velocity_loss(model, batch, torch.full((len(noise),), round(level * (STEPS - 1))), noise)


def save_base(out: Path, unet: Any, codec: Any, text: tuple[Any, Any]) -> None:
    """Write a folder in the diffusers layout, weights in float16."""
    from diffusers import DDIMScheduler

    tokenizer, encoder = text
    save_half(out, unet=unet, vae=codec, text_encoder=encoder)
    tokenizer.save_pretrained(out / "tokenizer")
    DDIMScheduler(**SCHEDULE, **SAMPLING, prediction_type="v_prediction").save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": version("diffusers"),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_codec(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder).float()  # type: ignore[union-attr]


KIND = Kind(
    module=__name__,
    recipe=PictureRecipe(),
    make_text=make_text_encoder,
    make_codec=make_codec,
    load_codec=load_codec,
    fit_codec=fit_codec,
    make_model=make_unet,
    make_batch=make_batch,
    loss=loss,
    loss_at=loss_at,
    save=save_base,
)
assert LAYOUT.inputs == 2 * LAYOUT.channels + 1
