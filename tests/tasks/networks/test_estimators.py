"""Depth networks: classes and folders are the real ones, weights are random and small."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from egomill.kernels.cameras import Camera, gopro
from egomill.tasks.networks import estimators

CAMERA = gopro(98, 56)
FRAMES = np.random.default_rng(0).integers(0, 255, (5, 56, 98, 3), dtype=np.uint8)


def tiny_depth_anything(folder, kind):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(0)
    stages = [f"stage{i}" for i in range(1, 5)]
    sizes: dict = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56}
    sizes |= {"out_features": stages, "reshape_hidden_states": False}
    backbone = Dinov2Config(**sizes)
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        depth_estimation_type=kind,
        max_depth=20,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)
    return str(folder)


def tiny_depth_pro(folder):
    from transformers import DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor

    torch.manual_seed(0)
    encoder = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = DepthProConfig(
        fusion_hidden_size=8,
        patch_size=32,
        intermediate_hook_ids=[3, 1],
        intermediate_feature_dims=[4, 4],
        scaled_images_feature_dims=[8, 8, 8],
        image_model_config=encoder,
        patch_model_config=encoder,
        fov_model_config=encoder,
    )
    DepthProForDepthEstimation(config).save_pretrained(folder)
    DepthProImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return str(folder)


def test_metric_depth_anything_gives_range_along_the_ray(tmp_path):
    network = estimators.load(tiny_depth_anything(tmp_path, "metric"))
    depth = network(FRAMES, CAMERA)
    assert depth.shape == FRAMES.shape[:3]
    assert depth.dtype == np.float32
    assert np.isfinite(depth).all()
    middle, rim = depth[:, 28, 49].mean(), depth[:, 28, 2].mean()
    assert 5 < middle < 15
    assert rim == pytest.approx(middle, rel=1e-4)  # through a fisheye, a flat answer is a flat range; behind a pinhole it is a wall
    pinhole = Camera("pinhole", CAMERA.params[:4], CAMERA.width, CAMERA.height)
    wall = network(FRAMES, pinhole)
    assert wall[:, 28, 2].mean() > 1.2 * wall[:, 28, 49].mean()


def test_relative_depth_serves_as_temporal_estimate_only(tmp_path):
    name = tiny_depth_anything(tmp_path, "relative")
    with pytest.raises(ValueError, match="relative depth, not metres"):
        estimators.load(name)
    depth = estimators.load(name, metric=False)(FRAMES, CAMERA)
    assert depth.shape == FRAMES.shape[:3]
    assert np.isfinite(depth).all()


def test_depth_pro_is_told_the_field_of_view(tmp_path):
    network = estimators.load(tiny_depth_pro(tmp_path))
    narrow = Camera("pinhole", (200, 200, 48.5, 27.5), 98, 56)
    wide = Camera("pinhole", (100, 100, 48.5, 27.5), 98, 56)
    a, b = (network(FRAMES[:1], camera)[0, 28, 49] for camera in (narrow, wide))
    assert 0 < b < 1e4
    assert a == pytest.approx(2 * b, rel=0.05)


def test_moge_and_video_depth_anything_through_their_packages(tmp_path, monkeypatch):
    """The packages are not installed here: stand-ins with the published signatures check how they are called."""

    class MoGeModel(torch.nn.Module):
        def __init__(self, encoder, neck, points_head):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def infer(self, image, fov_x, use_fp16):
            assert image.shape[1] == 3
            assert image.max() <= 1
            assert 90 < fov_x < 96
            return {"depth": torch.where(image[:, 0] > 0.5, self.scale, torch.inf)}

    class VideoDepthAnything(torch.nn.Module):
        def __init__(self, encoder, features, out_channels):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def infer_video_depth(self, frames, target_fps, input_size, device):
            return np.full(frames.shape[:3], float(self.scale), np.float32), target_fps

    for module, cls in (("moge.model.v2", MoGeModel), ("video_depth_anything.video_depth", VideoDepthAnything)):
        stand_in = ModuleType(module)
        setattr(stand_in, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, module, stand_in)
    save_file({"scale": torch.tensor(4.0)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"encoder": {}, "neck": {}, "points_head": {}}))
    depth = estimators.load(str(tmp_path))(FRAMES, CAMERA)
    known = FRAMES[..., 0] > 127
    assert (depth[known] >= 4.0).all()
    assert (depth[~known] == 0).all()
    (tmp_path / "config.json").write_text(json.dumps({"encoder": "vits", "features": 64, "out_channels": [1]}))
    with pytest.raises(ValueError, match="knows no metres"):
        estimators.load(str(tmp_path))
    assert np.allclose(estimators.load(str(tmp_path), metric=False)(FRAMES, CAMERA), 0.25)


@pytest.mark.parametrize(
    ("config", "package"),
    [
        ({"encoder": {}, "neck": {}, "points_head": {}}, "moge"),
        ({"encoder": "vits", "features": 64, "out_channels": [1]}, "video_depth_anything"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, config, package):
    monkeypatch.setitem(sys.modules, package, None)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"'{package}'"):
        estimators.load(str(tmp_path), metric=False)


def test_a_revision_is_a_digest_or_a_commit(tmp_path):
    with pytest.raises(ValueError, match="pin a revision"):
        estimators.revision("somebody/some-network")
    with pytest.raises(ValueError, match="pin a revision"):
        estimators.revision("somebody/some-network", "main")
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert estimators.revision("somebody/some-network", commit) == f"somebody/some-network@{commit}"
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no safetensors"):
        estimators.revision(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    first = estimators.revision(str(tmp_path))
    assert first.startswith("sha256:")
    assert estimators.revision(str(tmp_path), first) == first
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert estimators.revision(str(tmp_path)) != first
    with pytest.raises(ValueError, match="not the pinned"):
        estimators.revision(str(tmp_path), first)


def test_an_unknown_network_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no depth network known"):
        estimators.load(str(tmp_path))


def test_inverse_depth_without_end_is_unknown_and_takes_nothing_else_with_it():
    inverse = torch.tensor([0.5, 2.0, torch.inf, torch.nan, 0.0, -1.0])
    assert estimators._inverted(inverse).tolist() == [2.0, 0.5, 0, 0, 0, 0]
