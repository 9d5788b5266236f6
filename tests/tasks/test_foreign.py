"""A LoRA from elsewhere: what diffusers wrote acts as it did there, and what does not fit is refused by name."""

from __future__ import annotations

import json

import pytest
import tiny_lake
import torch
from diffusers import WanImageToVideoPipeline
from peft import LoraConfig
from safetensors.torch import save_file
from typer.testing import CliRunner

from egomill.flows.cli import app
from egomill.models import lora
from egomill.schemas.config import Profile
from egomill.tasks import adapters, bases, foreign, generate
from egomill.tasks.tracking import Tracker

RELEASED = ["model.mask=egox-released", "model.gga=egox-released", "model.lambda_g=3", "directions.geometry=egox-released"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Profile:
    return Profile.load("local", [f"model.base='{tiny_lake.base(tmp_path_factory.mktemp('base'))}'", *RELEASED])


@pytest.fixture(scope="module")
def elsewhere(profile):
    """A transformer with an adapter of rank 4 and alpha 8 that changes something, and the adapter's tensors."""
    transformer = bases.load(profile.model, "transformer").transformer
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    return transformer, lora.state(transformer)


@torch.no_grad()
def answer(transformer) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    video, text = torch.randn(1, 36, 2, 8, 12, generator=draw), torch.randn(1, 5, 32, generator=draw)
    return transformer(video, torch.tensor([500.0]), text, return_dict=False)[0]


@pytest.mark.parametrize("alpha", [8, None])
def test_it_acts_as_where_it_was_trained(profile, elsewhere, alpha, tmp_path):
    transformer, tensors = elsewhere
    more = {"transformer_lora_adapter_metadata": lora.config(transformer)} if alpha else {}
    WanImageToVideoPipeline.save_lora_weights(str(tmp_path), transformer_lora_layers=tensors, **more)
    (file,) = tmp_path.glob("*.safetensors")
    settings = [option for setting in (f"model.base='{profile.model.base}'", *RELEASED) for option in ("--set", setting)]
    said = CliRunner().invoke(app, ["register", str(file), "--lake", str(tmp_path / "lake"), *settings, "--json"])
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)

    adapter = Tracker.beside(str(tmp_path / "lake")).resolve(told["adapter"])
    assert adapter.spec == "egox@v1"
    about = adapters.describe(adapter.folder)
    kept = ("mask", "gga", "lambda_g", "geometry", "rank", "alpha", "file_sha256")
    conditioning = ("egox-released", "egox-released", 3.0, "egox-released", 4, alpha or 4, told["file_sha256"])
    assert tuple(about[k] for k in kept) == conditioning
    fresh = bases.load(profile.model, "transformer").transformer
    plain = answer(fresh)
    adapters.load(fresh, adapter.folder, bases.revision(profile.model))
    if alpha is None:  # unsaid, it is the rank
        for layer in fresh.modules():
            if hasattr(layer, "lora_A"):
                assert set(layer.scaling.values()) == {1.0}
    else:
        torch.testing.assert_close(answer(fresh), answer(transformer))
    assert not torch.allclose(answer(fresh), plain)
    assert generate.stage(profile, adapter.spec, adapter.folder).config["lambda_g"] == 3.0

    lineage = CliRunner().invoke(app, ["lineage", "egox@v1", "--lake", str(tmp_path / "lake"), "--json"])
    assert lineage.exit_code == 0, lineage.output
    found = json.loads(lineage.stdout)
    assert found["release"] is None
    assert found["adapter"]["tags"]["file_sha256"] == told["file_sha256"]


def test_names_without_the_prefix_are_the_same(profile, elsewhere, tmp_path):
    _, tensors = elsewhere
    save_file({f"transformer.{k}": v for k, v in tensors.items()}, tmp_path / "with.safetensors")
    save_file(dict(tensors), tmp_path / "without.safetensors")
    one, two = (foreign.read(tmp_path / f"{name}.safetensors", profile) for name in ("with", "without"))
    assert one[1:] == two[1:] == (4, 4.0)
    assert set(one[0]) == set(two[0]) == set(tensors)
    assert all(torch.equal(one[0][k], two[0][k]) for k in tensors)


LAYER = "blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {**t, f"{LAYER}.alpha": torch.ones(1)}, rf"{LAYER}\.alpha is no layer's lora_A\.weight or lora_B\.weight"),
        (lambda t: {k.replace("blocks.0", "blocks.7"): v for k, v in t.items()}, r"no linear layer blocks\.7\.attn1"),
        (lambda t: {k: v for k, v in t.items() if k != f"{LAYER}.lora_B.weight"}, rf"{LAYER} has {{'A': \(4, 32\)}}, not A"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(4, 5)}, rf"{LAYER} has {{'A': \(4, 5\), 'B': \(32, 4\)}}"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(2, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 2)}, "not A"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.tensor(1.0)}, rf"{LAYER} has {{'A': \(\)"),
        (lambda t: {}, "holds no tensor"),
    ],
    ids=["other words", "other base", "half missing", "other width", "other rank", "no matrix", "empty"],
)
def test_what_does_not_fit_the_base_is_refused_by_name(profile, elsewhere, change, why, tmp_path):
    save_file({k: v.contiguous() for k, v in change(dict(elsewhere[1])).items()}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=rf"odd\.safetensors.*{why}"):
        foreign.register(tmp_path / "odd.safetensors", profile, Tracker.beside(str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["odd.safetensors"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle", b"\xff" * 64], ids=["empty", "pickle", "noise"])
def test_what_is_no_safetensors_file_is_refused(profile, content, tmp_path):
    (tmp_path / "odd.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.bin: "):
        foreign.read(tmp_path / "odd.bin", profile)
    with pytest.raises(ValueError, match=r"absent\.bin: "):
        foreign.read(tmp_path / "absent.bin", profile)


def test_metadata_that_cannot_be_read_is_refused(profile, elsewhere, tmp_path):
    for told in ("{", "[]", '{"transformer.lora_alpha": "much"}'):
        save_file(dict(elsewhere[1]), tmp_path / "odd.safetensors", {"lora_adapter_metadata": told})
        with pytest.raises(ValueError, match=r"odd\.safetensors: lora_adapter_metadata cannot be read"):
            foreign.read(tmp_path / "odd.safetensors", profile)
