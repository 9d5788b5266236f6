"""The pretraining driver on a toy: it starts as a pass-through, writes a base that loads, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch

from egomill.models.base import Recipe, flow_loss, learning_rate, make_transformer
from egomill.scenes.views import FIRST_SEED, HELD_OUT
from egomill.tasks.networks.weights import load_parts
from egomill.tasks.training.pretrain import pretrain, runs
from egomill.tasks.training.pretrain_videos import KIND

TINY = Recipe(heads=5, head_dim=32, layers=1, ffn=16, widths=(128,), batches=(1,), odds=(1.0,), codec_share=0.05)


def test_the_start_passes_the_condition_through():
    model = make_transformer(TINY)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 3, 8, 8, generator=g)
    noise = torch.randn(x.shape, generator=g)
    batch = {"x": x, "condition": torch.cat([torch.ones(2, 4, 3, 8, 8), x], dim=1), "text": torch.zeros(2, 4, 32)}
    with torch.no_grad():
        loss = flow_loss(model, batch, torch.ones(2), noise)
    assert (loss < 0.25).all()  # of 2.0 for predicting nothing


def test_rate_warms_up_and_falls_with_the_clock():
    recipe = Recipe()
    assert learning_rate(recipe, 0, 0.0) < 0.01 * recipe.rate
    assert learning_rate(recipe, 10_000, 0.0) == recipe.rate
    assert learning_rate(recipe, 10_000, 2.0) < 0.03 * recipe.rate


def test_runs():
    assert runs([5, 1, 2, 3]) == [[1, 3], [5, 5]]


def test_writes_a_base_and_goes_on(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    rng = np.random.default_rng(0)
    for seed in (*range(FIRST_SEED, FIRST_SEED + 2), *range(FIRST_SEED + HELD_OUT, FIRST_SEED + HELD_OUT + 3)):
        coarse = rng.integers(0, 255, (9, 16, 28, 3), dtype=np.uint8)
        exo = coarse.repeat(8, axis=1).repeat(8, axis=2)
        np.savez(clips / f"{seed}.npz", exo=exo, ego=exo[:, :, :128], caption=np.array(f"clip {seed}"))
    out, quiet, kind = tmp_path / "base", [], replace(KIND, recipe=TINY)
    first = pretrain(out, kind, seeds=HELD_OUT + 3, minutes=0.1, clips=clips, workers=0, log=quiet.append)
    assert first["clips"] == 3
    assert first["steps"] > 0
    assert json.loads((out / "record.json").read_text())["steps"] == first["steps"]
    second = pretrain(out, kind, seeds=HELD_OUT + 3, minutes=0.05, clips=clips, workers=0, log=quiet.append)
    assert second["steps"] > first["steps"]
    assert second["minutes"] > first["minutes"]
    assert load_parts(str(out)).transformer.config.num_layers == 1
