"""Measures with trained networks: computed from local safetensors, or named as missing. The weights here are random."""

import pytest
import torch
from safetensors.torch import save_file

from egomill.schemas.config import Evaluate
from egomill.tasks.networks import perceptual

torch.manual_seed(0)
X = torch.rand(2, 3, 64, 64)
Y = (X + 0.2 * torch.randn_like(X)).clamp(0, 1)


def test_without_weights_nothing_is_claimed():
    measures, missing = perceptual.load(Evaluate())
    assert measures == {}
    assert missing == dict.fromkeys(("lpips", "clip_i", "fvd", "objects"), "not computed: no weights")


def test_lpips_from_a_folder(tmp_path):
    from torchvision.models import alexnet

    features = {f"features.{k}": v for k, v in alexnet(weights=None).features.state_dict().items()}
    save_file(features, tmp_path / "alexnet.safetensors")
    settings = Evaluate(lpips=str(tmp_path))
    measures, missing = perceptual.load(settings)
    assert "lpips" not in missing
    assert measures["lpips"](X, X) == pytest.approx(0, abs=1e-7)
    assert measures["lpips"](X, Y) > 0
    before = perceptual.weights_digest(settings)
    features["features.0.bias"] += 1
    save_file(features, tmp_path / "alexnet.safetensors")
    assert perceptual.weights_digest(settings) != before


def test_what_is_missing_is_named(tmp_path):
    measures, missing = perceptual.load(Evaluate(lpips=str(tmp_path), clip=str(tmp_path), fvd="x", objects="x"))
    assert measures == {}
    assert "features.0.weight" in missing["lpips"]
    assert all(why.startswith("not computed: ") and why != perceptual.NO_WEIGHTS for why in missing.values())


def test_clip_from_a_folder(tmp_path):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    width = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, patch_size=16, **width)).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    measures, _ = perceptual.load(Evaluate(clip=str(tmp_path)))
    assert measures["clip_i"](X, X) == pytest.approx(1, abs=1e-5)
    assert measures["clip_i"](X, Y) < 1
