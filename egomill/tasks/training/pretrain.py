"""Embedded base models, trained from nothing on simulated rooms, so that the whole pipeline runs without weights.

What is learnt is told by a `Kind`, a value that pretrain_videos.py and pretrain_pictures.py have one of each: the driver here knows clips,
clock, moving average and files. It can be stopped at any moment: a usable model (the moving average) and the state to go on from are
written every few minutes.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from egomill.models.base import learning_rate
from egomill.scenes.views import FIRST_SEED, HELD_OUT, Views, render_clip
from egomill.schemas.fingerprint import code_of

LEVELS = 1.0, 0.6  # of noise, at which the held-out loss is told


@dataclass(frozen=True)
class Kind:
    """What is learnt. A recipe says at least seed, text_tokens, rate, warmup, weight_decay, ema and codec_share; `model` is whatever
    `make_model` makes of it, a batch whatever `make_batch` makes of the rendered views."""

    module: str
    recipe: Any
    make_text: Callable[[Any], tuple[Any, Any]]  # recipe: tokenizer, encoder
    make_codec: Callable[[Any], Any]  # recipe
    load_codec: Callable[[Path], Any]
    fit_codec: Callable[
        [Any, Any, Views, np.random.Generator, float], dict[str, float]
    ]  # recipe, codec, views, rng, seconds: what it is like
    make_model: Callable[[Any], Any]  # recipe
    make_batch: Callable[[Any, np.random.Generator, Views, Any], dict[str, Tensor]]  # recipe, rng, views, codec; latents are "x"
    loss: Callable[[Any, Any, dict[str, Tensor], np.random.Generator], Tensor]  # recipe, model, batch, rng: of every sample
    loss_at: Callable[[Any, dict[str, Tensor], float, Tensor], Tensor]  # model, batch, noise level 0 to 1, noise
    save: Callable[[Path, Any, Any, tuple[Any, Any]], None]  # folder, model, codec, text: a folder in the diffusers layout


def of_method(name: str) -> Kind:
    """What the embedded base of a method learns."""
    from egomill.models.method import named

    return import_module(f"{__package__}.{named(name).pretraining}").KIND


def save_half(out: Path, **parts: Any) -> None:
    """Parts of a base by name, in float16."""
    out.mkdir(parents=True, exist_ok=True)
    for name, model in parts.items():
        copy.deepcopy(model).half().save_pretrained(out / name, safe_serialization=True)


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as runs [first, last], both in."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def pretrain(
    out: str | Path,
    kind: Kind,
    seeds: int = 2000,
    minutes: float = 60.0,
    clips: str | Path | None = None,
    workers: int = 1,
    save_every: float = 240.0,
    log: Any = print,
) -> dict[str, Any]:
    """Train a base for `minutes` of wall clock and write it to `out`; returns its record. Goes on where `OUT-state.safetensors` stopped.

    seeds: how many simulated clips (seeds FIRST_SEED…); they are rendered by `workers` processes into `clips` while the training runs (0:
    only what lies there is used). One thread of torch; run it with nice.
    """
    from egomill.tasks.networks.weights import encode_text

    out = Path(out)
    folder = Path(clips) if clips else out.parent / f"{out.name}-clips"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rng = np.random.default_rng([kind.recipe.seed, os.getpid()])
    text = kind.make_text(kind.recipe)
    views = Views(folder, lambda words: encode_text(*text, [words], kind.recipe.text_tokens)[0], seeds)
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
        return _train(out, kind, views, text, rng, begun, minutes, save_every, log)
    finally:
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def _train(out: Path, kind: Kind, views: Views, text: Any, rng: Any, begun: float, minutes: float, save_every: float, log: Any) -> dict:
    recipe, state = kind.recipe, out.parent / f"{out.name}-state.safetensors"
    model, average = kind.make_model(recipe), kind.make_model(recipe).requires_grad_(False)
    if state.exists() and (out / "vae").is_dir():
        record = json.loads((out / "record.json").read_text())
        codec = kind.load_codec(out / "vae")
        saved = load_file(state)
        model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
        average.load_state_dict({k[8:]: v for k, v in saved.items() if k.startswith("average.")})
    else:
        codec = kind.make_codec(recipe)
        found = kind.fit_codec(recipe, codec, views, rng, minutes * 60 * recipe.codec_share)
        record = {"steps": 0, "minutes": 0.0, "losses": [], "codec": found}
        log(json.dumps(record["codec"]))
    codec.requires_grad_(False)
    done, spent, saved_at, running = record["steps"], record["minutes"], time.monotonic(), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)
    trial = held_out(kind, views, codec)
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
                "code": code_of(kind.module),
                "held_out": {k: round(v, 4) for k, v in evaluate(kind, average, trial).items()},
                "recipe": asdict(recipe),
                "parameters": sum(p.numel() for p in model.parameters()),
                "versions": {"torch": torch.__version__, "diffusers": version("diffusers")},
            }
            record["losses"].append([done, round(float(np.mean(running or [float("nan")])), 4)])
            running = []
            kind.save(out, average, codec, text)
            (out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
            named = (("model", model), ("average", average))
            save_file({f"{name}.{k}": v.clone() for name, m in named for k, v in m.state_dict().items()}, state)
            log(json.dumps({k: record[k] for k in ("steps", "minutes", "clips", "held_out")} | {"loss": record["losses"][-1][1]}))
            saved_at = time.monotonic()
            if last:
                return record
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, done, elapsed / minutes)
        batch = kind.make_batch(recipe, rng, views, codec)
        loss = kind.loss(recipe, model, batch, rng).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        running.append(loss.item())
        done += 1
        decay = min(recipe.ema, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def held_out(kind: Kind, views: Views, codec: Any) -> list[dict[str, Tensor]]:
    """Fixed batches of clips that are never trained on."""
    rng = np.random.default_rng([kind.recipe.seed, 7])
    unseen = Views(views.folder, views.embed, 0)
    unseen.exo, unseen.ego, unseen.text = (list(column) for column in zip(*views.held, strict=True))
    return [kind.make_batch(kind.recipe, rng, unseen, codec) | {"noise": torch.tensor(rng.integers(1 << 31))} for _ in range(12)]


@torch.no_grad()
def evaluate(kind: Kind, model: Any, trial: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean loss of the fixed batches at two noise levels, with fixed noise."""
    numbers = {}
    for level in LEVELS:
        losses = []
        for batch in trial:
            noise = torch.randn(batch["x"].shape, generator=torch.Generator().manual_seed(int(batch["noise"])))
            losses.append(kind.loss_at(model, batch, level, noise))
        numbers[f"loss_{level}"] = float(torch.cat(losses).mean())
    return numbers
