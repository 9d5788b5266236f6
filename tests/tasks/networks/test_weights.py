"""Bases: the shipped one, and a tiny folder of stock classes, load by the same call; what is not a base is refused by name."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from egomill.models.latents import decode_video, encode_video
from egomill.schemas.config import Profile
from egomill.tasks.networks import bases
from egomill.tasks.networks.configs import EMBEDDED
from egomill.tasks.networks.weights import Base, digest, load_parts
from egomill.tasks.stages import generations, latents
from tests.tasks import tiny_lake


def test_the_shipped_base():
    parts = load_parts()
    assert sum(f.stat().st_size for f in EMBEDDED["embedded"].rglob("*") if f.is_file()) < 20e6
    assert (parts.transformer.config.in_channels, parts.transformer.config.out_channels) == (36, 16)
    assert len(parts.revision) == 64
    assert parts.image_encoder is None
    assert parts.encode_image(torch.zeros(1, 16, 16, 3, dtype=torch.uint8)) is None
    text = parts.encode_text(["A person lifts a cup.", ""], 16)
    assert text.shape == (2, 16, parts.transformer.config.text_dim)
    assert not torch.equal(text[0], text[1])
    video = torch.zeros(1, 3, 9, 32, 32) + torch.linspace(-0.5, 0.5, 32)
    error = (decode_video(parts.vae, encode_video(parts.vae, video)) - video).square().mean()
    assert error < 1e-3
    record = json.loads((EMBEDDED["embedded"] / "record.json").read_text())
    assert record["seeds"][0][0] >= 100_000


def test_a_folder_of_stock_classes(tmp_path):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import ByT5Tokenizer, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **sizes)
    parts = {
        "transformer": WanTransformer3DModel(
            in_channels=36, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=16, text_dim=8, freq_dim=16
        ),
        "vae": AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "text_encoder": UMT5EncoderModel(UMT5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
        "tokenizer": ByT5Tokenizer(),
        "scheduler": UniPCMultistepScheduler(flow_shift=3.0),
        "image_encoder": CLIPVisionModel(vision),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }
    home = {"tokenizer": "transformers", "text_encoder": "transformers", "image_encoder": "transformers", "image_processor": "transformers"}
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    index = {name: [home.get(name, "diffusers"), type(part).__name__] for name, part in parts.items()}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = load_parts(str(tmp_path))
    assert type(found.vae) is AutoencoderKLWan
    assert encode_video(found.vae, torch.zeros(1, 3, 9, 16, 16)).shape == (1, 16, 3, 2, 2)
    image = found.encode_image(torch.zeros(2, 20, 40, 3, dtype=torch.uint8))
    assert image is not None
    assert image.shape == (2, 5, 16)
    assert not any(p.requires_grad for p in found.transformer.parameters())
    before = digest(tmp_path)
    (tmp_path / "README.md").write_text("words do not count")
    assert digest(tmp_path) == before == found.revision
    torch.nn.init.ones_(parts["transformer"].proj_out.weight)
    parts["transformer"].save_pretrained(tmp_path / "transformer")
    assert digest(tmp_path) != before


def test_what_is_not_a_base_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        load_parts(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "NoSuchThing"]}))
    with pytest.raises(ValueError, match="NoSuchThing"):
        Base(str(tmp_path)).part("vae")


def test_text_tokens_that_an_image_branch_does_not_take_are_refused_by_every_stage_of_the_base(tmp_path):
    base = tiny_lake.base(tmp_path)
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_dim": 32, "added_kv_proj_dim": 32}))
    settings = [f"model.base='{base}'"]
    for stage in (latents.stage, partial(generations.stage, adapter="base")):
        with pytest.raises(
            ValueError, match=rf"model\.text_tokens is 64, and the base {base} has an image branch.*set model\.text_tokens=512"
        ):
            stage(Profile.load("local", settings))
        assert stage(Profile.load("local", [*settings, "model.text_tokens=512"])).weights == digest(base)[:16]
    assert len(bases.revision(Profile.load("local").model)) == 16  # the shipped base has none
