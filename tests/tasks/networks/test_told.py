"""Scores against what a clip is told of: hands and text; and what is said where they cannot be computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from egomill.kernels.alignment import pa_mpjpe
from egomill.schemas.config import Evaluate
from egomill.tasks.networks import landmarks, perceptual, told
from tests.kernels import hands

NAMES = ("fid", "clip_score", "pa_mpjpe")
FRAMES = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), dtype=np.uint8)


def test_what_has_no_weights_says_so_by_name(tmp_path):
    measures, missing = told.load(Evaluate(), NAMES)
    assert measures == {}
    assert missing == dict.fromkeys(NAMES, perceptual.NO_WEIGHTS)
    measures, missing = told.load(Evaluate(fid="x", clip_score=str(tmp_path), hands=str(tmp_path)), NAMES)
    assert measures == {}
    assert missing["fid"] == told.NO_INCEPTION
    assert "no file" in missing["pa_mpjpe"]
    assert missing["clip_score"].startswith("not computed: ")
    assert told.load(Evaluate(), ()) == ({}, {})


def test_a_similarity_does_not_count_and_what_remains_is_the_mean_distance():
    true = hands.two()
    T = hands.motion(3)
    moved = 1.3 * true @ T[:3, :3].T + T[:3, 3]
    assert pa_mpjpe(moved, true).max() < 1e-9
    bent = true.clone()
    bent[0, 8, 2] += 0.05
    assert 0.001 < pa_mpjpe(bent, true)[0] < 0.05 / 21 * 3
    assert pa_mpjpe(bent, true)[1] < 1e-9
    known = true.clone()
    known[1, 2:] = torch.nan
    found = pa_mpjpe(moved, known)
    assert found[0] < 1e-9
    assert found[1].isnan()


def test_hands_are_compared_with_the_true_ones_of_their_side(monkeypatch, tmp_path):
    true = hands.two()[None].repeat(2, 1, 1, 1)

    class Network:
        def __init__(self, settings) -> None:
            self.settings = settings

        def hands(self, picture):
            return [landmarks.Hand(np.zeros((21, 2)), (true[0, 1] - true[0, 1].mean(dim=0)).numpy(), 1, 1.0)]

    monkeypatch.setattr(landmarks, "Network", Network)
    measure = told.hand_error(tmp_path)
    assert measure(FRAMES, "", true.float()) == pytest.approx(0, abs=1e-3)
    assert measure(FRAMES, "", true.flip(1).float()) > 1  # another hand
    assert measure(FRAMES, "", None) is None
    assert measure(FRAMES, "", torch.full_like(true, torch.nan)) is None


def test_clip_score_is_the_cosine_of_picture_and_text(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [chr(c) for c in range(97, 123)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}))
    CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**width, "vocab_size": len(pieces), "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**width, "image_size": 32, "patch_size": 16}, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    processor.save_pretrained(tmp_path)
    settings = Evaluate(clip_score=str(tmp_path))
    measures, _ = told.load(settings, NAMES)
    score = measures["clip_score"](FRAMES, "hands hold a cup and many more words than fit", None)
    assert -1 <= score <= 1
    assert score != measures["clip_score"](FRAMES, "a bowl", None)
    assert measures["clip_score"](FRAMES, "", None) is None
    assert told.weights_digest(settings, NAMES)
    assert told.weights_digest(Evaluate(), NAMES) == ""
