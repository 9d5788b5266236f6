from __future__ import annotations

import numpy as np
import pytest
import torch

from egomill.tasks.networks import masks

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def scene():
    """A square that walks before a still, textured wall: frames uint8 [9, 64, 112, 3] and where it is."""
    frames = np.repeat(RNG.integers(40, 90, (1, 64, 112, 3), dtype=np.uint8), 9, axis=0)
    truth = np.zeros(frames.shape[:3], bool)
    for k in range(9):
        truth[k, 20:40, 6 + 10 * k : 22 + 10 * k] = True
    frames[truth] = (230, 60, 40)
    return frames, truth


def tiny_sam2(folder):
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2Processor,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    torch.manual_seed(0)
    hiera = Sam2HieraDetConfig(
        hidden_size=12,
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[12, 24, 48, 96],
        window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[4],
        image_size=[128, 128],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=32, image_size=128)
    decoder = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32)
    Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)).save_pretrained(folder)
    picture = Sam2ImageProcessor(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32})
    Sam2Processor(picture, target_size=128).save_pretrained(folder)
    return str(folder)


def test_background_finds_what_walks(scene):
    frames, truth = scene
    found, made_by = masks.Masker("background")(frames)
    assert made_by == "background"
    assert found[truth].mean() > 0.95
    assert found[~truth].mean() < 0.1


def test_the_sidecar_mask_goes_first_and_is_grown(scene):
    frames, truth = scene
    found, made_by = masks.Masker("sidecar-or-background")(frames, truth)
    assert made_by == "sidecar"
    assert found[truth].all()
    assert truth.sum() < found.sum() < 1.5 * truth.sum()
    assert masks.Masker("sidecar-or-background")(frames)[1] == "background"
    assert not masks.Masker("none")(frames, truth)[0].any()


def test_blobs_are_boxes_without_specks():
    mask = np.zeros((64, 112), bool)
    mask[10:20, 30:50] = mask[40:60, 5:9] = mask[0, 0] = True
    assert masks.blobs(mask).tolist() == [[30, 10, 50, 20], [5, 40, 9, 60]]
    assert masks.blobs(np.zeros((64, 112), bool)).shape == (0, 4)


def test_sam2_answers_within_the_boxes_of_what_moves(scene, tmp_path):
    frames, _ = scene
    name = tiny_sam2(tmp_path)
    assert masks.revision(name).startswith("sha256:")
    assert masks.revision("background") == ""
    masker = masks.Masker(name)
    found, made_by = masker(frames[:9])
    assert made_by == name
    assert found.shape == frames.shape[:3]
    assert found.dtype == bool
    boxes = np.zeros_like(found)
    for k, moving in enumerate(masks.Masker("background")(frames)[0]):
        for left, top, right, bottom in masks.blobs(moving):
            boxes[k, top:bottom, left:right] = True
    assert not (found & ~masks.grow(boxes)).any()
    assert masker.network is not None
    assert not masker.network(frames[0], np.zeros((0, 4), int)).any()


def test_a_hub_id_needs_a_commit():
    with pytest.raises(ValueError, match="pin a revision"):
        masks.revision("facebook/sam2.1-hiera-tiny")
    commit = "a" * 40
    assert masks.revision(f"facebook/sam2.1-hiera-tiny@{commit}") == f"facebook/sam2.1-hiera-tiny@{commit}"
