"""The embedded base model: a tiny Wan transformer trained from nothing on simulated rooms, so that the whole pipeline runs without weights.

It becomes a *general* small video model that knows the 36-channel input, and nothing more: plain single-view clips (of either camera), to
be made from a first frame, from text, or from a degraded copy in the condition channels (kernels/degrade.py). It never sees two views
side by side, nor a rendered prior: exo→ego is what adapters are for.

It can be stopped at any moment: a usable model (the moving average) and the state to go on from are written every few minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.degrade import degrade
from egomill.models.base import Recipe, flow_loss, learning_rate, make_transformer
from egomill.models.codec import PatchCodec, to_cells
from egomill.models.egox import cover_cells
from egomill.models.latents import encode_video
from egomill.models.layout import Layout
from egomill.scenes.views import FIRST_SEED, HELD_OUT, Views, render_clip, to_float
from egomill.schemas.fingerprint import code_of
from egomill.tasks.networks.weights import encode_text

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


def make_batch(rng: np.random.Generator, recipe: Recipe, views: Views, codec: PatchCodec) -> dict[str, Tensor]:
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


def fit_codec(codec: PatchCodec, views: Views, rng: np.random.Generator, seconds: float) -> dict[str, float]:
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


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as runs [first, last], both in."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def save_base(out: Path, transformer: Any, codec: PatchCodec, text: tuple[Any, Any], record: dict[str, Any]) -> None:
    """Write a folder in the diffusers layout, weights in float16; the record last."""
    import copy

    import diffusers

    from egomill.models.flow import make_scheduler

    tokenizer, encoder = text
    out.mkdir(parents=True, exist_ok=True)
    for name, model in (("transformer", transformer), ("vae", codec), ("text_encoder", encoder)):
        copy.deepcopy(model).half().save_pretrained(out / name, safe_serialization=True)
    tokenizer.save_pretrained(out / "tokenizer")
    make_scheduler("unipc", 3.0).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["egomill.models.codec", "PatchCodec"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "ByT5Tokenizer"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "image_encoder": [None, None],
        "image_processor": [None, None],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n")


def pretrain(
    out: str | Path,
    seeds: int = 2000,
    minutes: float = 60.0,
    recipe: Recipe | None = None,
    clips: str | Path | None = None,
    workers: int = 1,
    save_every: float = 240.0,
    log: Any = print,
) -> dict[str, Any]:
    """Train a base for `minutes` of wall clock and write it to `out`; returns its record. Goes on where `OUT-state.safetensors` stopped.

    seeds: how many simulated clips (seeds FIRST_SEED…); they are rendered by `workers` processes into `clips` while the training runs (0:
    only what lies there is used). One thread of torch; run it with nice.
    """
    recipe = recipe or Recipe()
    out = Path(out)
    folder = Path(clips) if clips else out.parent / f"{out.name}-clips"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rng = np.random.default_rng([recipe.seed, os.getpid()])
    text = make_text_encoder(recipe)
    views = Views(folder, lambda words: encode_text(*text, [words], recipe.text_tokens)[0], seeds)
    begun = time.monotonic()
    pool = ProcessPoolExecutor(workers) if workers else None
    try:
        if pool:
            for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                pool.submit(render_clip, str(folder), seed)
        while views.look() < min(100, seeds - HELD_OUT):
            if not pool:
                raise ValueError(f"{folder} holds too few clips")
            time.sleep(2)
        return _train(out, recipe, views, text, rng, begun, minutes, save_every, log)
    finally:
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def _train(
    out: Path, recipe: Recipe, views: Views, text: Any, rng: Any, begun: float, minutes: float, save_every: float, log: Any
) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    state = out.parent / f"{out.name}-state.safetensors"
    codec, model = PatchCodec(), make_transformer(recipe)
    average = make_transformer(recipe).requires_grad_(False)
    if state.exists() and (out / "vae").is_dir():
        record = json.loads((out / "record.json").read_text())
        codec = PatchCodec.from_pretrained(out / "vae").float()
        saved = load_file(state)
        model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
        average.load_state_dict({k[8:]: v for k, v in saved.items() if k.startswith("average.")})
    else:
        record = {"steps": 0, "minutes": 0.0, "losses": [], "codec": fit_codec(codec, views, rng, minutes * 60 * recipe.codec_share)}
        log(json.dumps(record["codec"]))
    codec.requires_grad_(False)
    done, spent, saved_at, running = record["steps"], record["minutes"], time.monotonic(), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)
    trial = held_out(recipe, views, codec)
    while True:
        elapsed = (time.monotonic() - begun) / 60
        last = elapsed >= minutes
        if last or time.monotonic() - saved_at > save_every:
            views.look()
            record |= {
                "steps": done,
                "minutes": round(spent + elapsed, 2),
                "clips": len(views.ego),
                "seeds": runs(int(name.split(".")[0]) for name in views.seen),
                "held_out_seeds": runs(range(FIRST_SEED, FIRST_SEED + HELD_OUT)),
                "code": code_of("egomill.tasks.training.pretrain"),
                "held_out": {k: round(v, 4) for k, v in evaluate(average, trial).items()},
                "recipe": asdict(recipe),
                "parameters": sum(p.numel() for p in model.parameters()),
                "versions": {"torch": torch.__version__, "diffusers": __import__("diffusers").__version__},
            }
            record["losses"].append([done, round(float(np.mean(running or [float("nan")])), 4)])
            running = []
            save_base(out, average, codec, text, record)
            named = (("model", model), ("average", average))
            save_file({f"{name}.{k}": v.clone() for name, m in named for k, v in m.state_dict().items()}, state)
            log(json.dumps({k: record[k] for k in ("steps", "minutes", "clips", "held_out")} | {"loss": record["losses"][-1][1]}))
            saved_at = time.monotonic()
            if last:
                return record
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, done, elapsed / minutes)
        batch = make_batch(rng, recipe, views, codec)
        loss = flow_loss(model, batch, _levels(rng, recipe, len(batch["x"])), torch.randn(batch["x"].shape)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        running.append(loss.item())
        done += 1
        decay = min(recipe.ema, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _levels(rng: Any, recipe: Recipe, count: int) -> Tensor:
    """Noise levels σ [count]: shifted, and a share of them 1."""
    u = torch.from_numpy(rng.random(count, dtype=np.float32))
    sigma = recipe.shift * u / (1 + (recipe.shift - 1) * u)
    return torch.where(torch.from_numpy(rng.random(count) < recipe.pure), torch.ones(count), sigma)


def held_out(recipe: Recipe, views: Views, codec: PatchCodec) -> list[dict[str, Tensor]]:
    """Fixed batches of clips that are never trained on, one of each task mix."""
    rng = np.random.default_rng([recipe.seed, 7])
    unseen = Views(views.folder, views.embed, 0)
    unseen.exo, unseen.ego, unseen.text = (list(column) for column in zip(*views.held, strict=True))
    return [make_batch(rng, recipe, unseen, codec) | {"noise": torch.tensor(rng.integers(1 << 31))} for _ in range(12)]


@torch.no_grad()
def evaluate(model: Any, trial: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean loss of the fixed batches at two noise levels, with fixed noise."""
    numbers = {}
    for level in (1.0, 0.6):
        losses = []
        for batch in trial:
            noise = torch.randn(batch["x"].shape, generator=torch.Generator().manual_seed(int(batch["noise"])))
            losses.append(flow_loss(model, batch, torch.full((len(noise),), level), noise))
        numbers[f"loss_{level}"] = float(torch.cat(losses).mean())
    return numbers
