"""A LoRA from elsewhere: what diffusers wrote acts as it did there, and what does not fit is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from peft import LoraConfig
from safetensors.torch import save_file
from typer.testing import CliRunner

from egomill.flows.cli import app
from egomill.models import egox, lora
from egomill.schemas.config import Profile
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.networks import bases
from egomill.tasks.stages import generations
from egomill.tasks.training import adapters, foreign
from tests.tasks import tiny_lake

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
    adapters.load(egox.Net(fresh, 1.0), adapter.folder, bases.revision(profile.model))
    if alpha is None:  # unsaid, it is the rank
        for layer in fresh.modules():
            if hasattr(layer, "lora_A"):
                assert set(layer.scaling.values()) == {1.0}
    else:
        torch.testing.assert_close(answer(fresh), answer(transformer))
    assert not torch.allclose(answer(fresh), plain)
    assert generations.stage(profile, adapter.spec, adapter.folder).config["lambda_g"] == 3.0

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


def alphas(tensors, value=4.0) -> dict[str, torch.Tensor]:
    return {k.replace("lora_A.weight", "alpha"): torch.tensor([value]) for k in tensors if "lora_A" in k}


def told(**more) -> dict[str, str]:
    """PEFT's description in a file's metadata, as diffusers writes it."""
    described = {"r": 4, "lora_alpha": 8, **more}
    return {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in described.items()})}


def ranked(tensors) -> dict[str, torch.Tensor]:
    """One layer at rank 2, the others at 4."""
    few = {"A": tensors[f"{LAYER}.lora_A.weight"][:2], "B": tensors[f"{LAYER}.lora_B.weight"][:, :2]}
    return tensors | {f"{LAYER}.lora_{half}.weight": tensor for half, tensor in few.items()}


WAN = [("attn1.", "self_attn."), ("attn2.", "cross_attn."), ("to_out.0", "o"), ("to_", "")]


def wan(name: str) -> str:
    """As Wan's own code names a layer of attention."""
    for ours, theirs in WAN:
        name = name.replace(ours, theirs)
    return name


def of_wan(tensors, a="lora_A", b="lora_B") -> dict[str, torch.Tensor]:
    return {f"diffusion_model.{wan(k).replace('lora_A', a).replace('lora_B', b)}": v for k, v in tensors.items()}


def of_kohya(tensors) -> dict[str, torch.Tensor]:
    """With a rank of its own and an alpha to each layer."""
    found = {}
    for key, tensor in (ranked(tensors) | alphas(tensors, 3.0)).items():
        layer, part = wan(key.removesuffix(".weight")).rsplit(".", 1)
        part = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}.get(part, part)
        found[f"lora_unet_{layer.replace('.', '_')}.{part}"] = tensor
    return found


HALF = {f"{LAYER}.alpha": torch.tensor([2.0])}
FORMS = {
    "rslora": (dict, told(use_rslora=True), 8 / 4**0.5, None),
    "no prefix in the description": (dict, {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 6.5, "bias": "none"}'}, 6.5 / 4, None),
    "alpha by layer": (dict, told(alpha_pattern={LAYER: 2}), 2.0, 0.5),
    "alpha by a layer's end": (dict, told(alpha_pattern={"^blocks.0.attn1.to_q": 2, "to_q": 8}, use_rslora=True), 4.0, 1.0),
    "rank by layer": (ranked, told(rank_pattern={LAYER: 2}), 2.0, 4.0),
    "rank by layer, rslora": (ranked, told(rank_pattern={LAYER: 2}, use_rslora=True), 4.0, 8 / 2**0.5),
    "alpha tensors": (lambda t: {**t, **alphas(t, 6.0)}, {}, 1.5, None),
    "alpha tensors that differ": (lambda t: {**t, **alphas(t, 6.0), **HALF}, {"ss_network_alpha": "6", "ss_network_dim": "4"}, 1.5, 0.5),
    "alpha tensors and the same in words": (lambda t: {**t, **alphas(t, 8.0)}, told(), 2.0, None),
    "kohya's metadata": (dict, {"ss_network_alpha": "2", "ss_network_args": '{"loraplus_lr_ratio": 4}', "ss_mode_scale": "1"}, 0.5, None),
    "Wan's names": (of_wan, {}, 1.0, None),
    "Wan's names, down and up, bfloat16": (
        lambda t: {k: v.bfloat16() for k, v in of_wan({**t, **alphas(t, 3.0)}, "lora_down", "lora_up").items()}, {}, 0.75, None),
    "Wan's names and PEFT's pattern of them": (of_wan, told(alpha_pattern={"blocks.0.self_attn.q": 4}), 2.0, 1.0),
    "an adapter's name": (lambda t: {f"pipe.dit.{k}": v for k, v in of_wan(t, "lora_A.default", "lora_B.default").items()}, {}, 1.0, None),
    "kohya's names": (of_kohya, {}, 0.75, 1.5),
    "float64": (lambda t: {k: v.double() for k, v in t.items()}, {}, 1.0, None),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_change_by_what_the_file_says(profile, elsewhere, form, tmp_path):
    """Every layer's, by scale · B A with the file's own scale."""
    change, metadata, scale, of_layer = FORMS[form]
    written = change(dict(elsewhere[1]))
    source = ranked(dict(elsewhere[1])) if change in (ranked, of_kohya) else elsewhere[1]
    save_file({k: v.contiguous() for k, v in written.items()}, tmp_path / "x.safetensors", metadata or None)
    check(profile, tmp_path / "x.safetensors", source, scale, of_layer, 1e-2 if "bfloat16" in form else 1e-6)


def check(profile, file, source, scale, of_layer, rtol=1e-6):
    tensors, rank, alpha = foreign.read(file, profile)
    layers = sorted({k.rsplit(".", 2)[0] for k in tensors})
    adapters.save(tensors, {"r": rank, "lora_alpha": alpha, "target_modules": layers}, {}, file.parent / "ours", {"base_revision": "x"})
    transformer = bases.load(profile.model, "transformer").transformer
    adapters.load(egox.Net(transformer, 1.0), file.parent / "ours", "x")
    assert len(layers) == 16
    for layer in layers:
        wanted = source[f"{layer}.lora_B.weight"].double() @ source[f"{layer}.lora_A.weight"].double()
        wanted *= scale if of_layer is None or layer != LAYER else of_layer
        (got,) = (m.get_delta_weight(name) for m in [transformer.get_submodule(layer)] for name in m.lora_A)
        torch.testing.assert_close(got.detach().double(), wanted, rtol=rtol, atol=rtol)


def test_peft_s_own_files_are_read_with_the_description_beside_them(profile, elsewhere, tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{k}": v for k, v in elsewhere[1].items()}, file)
    description = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["to_q"]).to_dict()
    (tmp_path / "adapter_config.json").write_text(json.dumps(description | {"target_modules": ["to_q"]}))
    check(profile, file, elsewhere[1], 1.5, None)
    (tmp_path / "adapter_config.json").write_text(json.dumps(description | {"target_modules": ["to_q"], "use_dora": True}))
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read: use_dora is True"):
        foreign.read(file, profile)


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (told(use_dora=True), "use_dora is True, which a plain LoRA has not"),
        (told(bias="all"), "bias is 'all'"),
        (told(lora_bias=True), "lora_bias is True"),
        (told(fan_in_fan_out=True), "fan_in_fan_out is True"),
        (told(modules_to_save=["proj_out"]), "modules_to_save"),
        (told(layer_replication=[[0, 1]]), "layer_replication"),
        (told(some_day=3), "some_day is 3"),
        (told(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4', which changed the base itself"),
        (told(peft_type="LOHA"), "peft_type is 'LOHA'"),
        (told(lora_alpha=float("nan")), "lora_alpha is nan, and is to be a number above 0"),
        (told(lora_alpha=0), "lora_alpha is 0"),
        (told(lora_alpha=-8), "lora_alpha is -8"),
        (told(lora_alpha=float("inf")), "lora_alpha is inf"),
        (told(lora_alpha=True), "lora_alpha is True"),
        (told(lora_alpha=10**400), "lora_alpha is 1000"),
        (told(lora_alpha=1e300), "more than 1000"),
        (told(use_rslora="yes"), "use_rslora is 'yes'"),
        (told(r=16), r"not A \(16, 32\)"),
        (told(r=16, rank_pattern={"to_q": 4}), r"not A \(16, 32\)"),
        (told(alpha_pattern={"ffn.net.2": 4}), "alpha_pattern says something of ffn.net.2, and no layer of the file is called so"),
        (told(alpha_pattern={"(a+)+": 4}), "only names of layers"),
        (told(alpha_pattern={"to_q": None}), "alpha_pattern of to_q is None"),
        (told(alpha_pattern=[4]), r"alpha_pattern is \[4\]"),
        ({"lora_adapter_metadata": '{"transformer.r": 4}'}, "says no lora_alpha"),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 4, "transformer.lora_alpha": 8}'}, "a name comes twice"),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 4, "lora_alpha": 8}'}, "a name comes twice"),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 4, "transformer_2.lora_alpha": 8}'}, r"transformer_2\.lora_alpha is 8"),
        ({"lora_adapter_metadata": "[" * 100_000}, "cannot be read"),
        (told() | {"ss_network_alpha": "2"}, "is scaled by 2 after PEFT's description, by 0.5 after ss_network_alpha"),
        ({"ss_network_alpha": "nan"}, "ss_network_alpha = 'nan', which is no number above 0"),
        ({"ss_network_alpha": "4", "ss_network_dim": "16"}, "ss_network_dim = 16, and its layers have rank 4"),
        ({"ss_network_args": '{"dora_wd": "True"}'}, "dora_wd = True, which is not understood"),
        ({"use_rslora": "true"}, "use_rslora = true, which is not understood"),
        ({"lora_scale": "0.5"}, "lora_scale = 0.5"),
    ],
)  # fmt: skip
def test_a_scaling_that_is_not_understood_is_refused_by_name(profile, elsewhere, metadata, why, tmp_path):
    save_file(dict(elsewhere[1]), tmp_path / "odd.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"odd\.safetensors: .*{why}"):
        foreign.read(tmp_path / "odd.safetensors", profile)


def test_alpha_tensors_and_words_that_contradict_each_other_are_refused(profile, elsewhere, tmp_path):
    for metadata in (told(), {"ss_network_alpha": "8"}):
        save_file({**elsewhere[1], **alphas(elsewhere[1])}, tmp_path / "odd.safetensors", metadata)
        with pytest.raises(ValueError, match="take out what is wrong"):
            foreign.read(tmp_path / "odd.safetensors", profile)


def test_every_layer_of_the_large_model_has_its_name_in_wan_s_code():
    assert set(foreign._elsewhere(40).values()) == set(foreign._layers(Profile.load("paper")))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {**t, f"{LAYER}.scale": torch.ones(1)}, rf"{LAYER}\.scale is no layer's lora_A\.weight or lora_B\.weight"),
        (lambda t: {**t, f"{LAYER}.lora_B.bias": torch.ones(32)}, rf"{LAYER}\.lora_B\.bias is no layer's"),
        (lambda t: {**t, f"{LAYER}.lora_magnitude_vector": torch.ones(32)}, "Only plain LoRA"),
        (lambda t: {**t, f"{LAYER}.dora_scale": torch.ones(32)}, "Only plain LoRA"),
        (lambda t: {**t, "diffusion_model.blocks.0.norm3.diff": torch.ones(32)}, r"norm3\.diff is no layer's"),
        (lambda t: {**t, f"{LAYER}.alpha": torch.ones(1)}, r"blocks\.0\.attn1\.to_k has no alpha, and other layers have one"),
        (lambda t: {**t, **alphas(t), "proj_out.alpha": torch.ones(1)}, "proj_out has an alpha and no LoRA"),
        (lambda t: {**t, **alphas(t, 0.0)}, r"alpha is to be one number above 0, not \[0\.0\]"),
        (lambda t: {**t, **alphas(t, -4.0)}, "one number above 0"),
        (lambda t: {**t, **alphas(t, float("inf"))}, "one number above 0"),
        (lambda t: {**t, **{k: v.repeat(2) for k, v in alphas(t).items()}}, "one number above 0"),
        (lambda t: {k.replace("blocks.0", "blocks.7"): v for k, v in t.items()}, r"no linear layer blocks\.7\.attn1"),
        (lambda t: {k: v for k, v in t.items() if k != f"{LAYER}.lora_B.weight"}, rf"{LAYER} has {{'A': \(4, 32\)}}, not A"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(4, 5)}, rf"{LAYER} has {{'A': \(4, 5\), 'B': \(32, 4\)}}"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(2, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 2)}, "not A"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.tensor(1.0)}, rf"{LAYER} has {{'A': \(\)"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(8, 32)}, rf"{LAYER} has {{'A': \(8, 32\), 'B': \(32, 4\)}}"),
        (lambda t: {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in t.items()}, "not A"),
        (lambda t: {}, "holds no tensor"),
        (lambda t: {**t, f"transformer.{LAYER}.lora_A.weight": t[f"{LAYER}.lora_A.weight"]}, "are of one layer"),
        (lambda t: {**t, "lora_unet_blocks_0_self_attn_q.lora_up.weight": t[f"{LAYER}.lora_B.weight"]}, "are of one layer"),
        (lambda t: {**t, "diffusion_model.blocks.0.self_attn.q.lora_A.default.weight": t[f"{LAYER}.lora_A.weight"]}, "are of one layer"),
        (lambda t: {k.replace("_A", "_A.one").replace("_B", "_B.two"): v for k, v in t.items()}, r"several adapters \(one, two\)"),
        (lambda t: {f"base_model.model.{k}": v for k, v in t.items()}, r"keeps the scaling in adapter_config\.json: put that beside it"),
        (lambda t: {f"lora_unet_blocks_0_attn_q.lora_{h}.weight": t[f"{LAYER}.lora_A.weight"] for h in ("up", "down")}, "no linear layer"),
        (
            lambda t: {**t, f"{LAYER}.lora_A.weight": torch.full((4, 32), float("nan"))},
            rf"{LAYER}.lora_A.weight holds numbers .* not finite",
        ),
        (lambda t: {**t, f"{LAYER}.lora_B.weight": torch.full((32, 4), float("-inf"))}, "not finite"),
        (lambda t: {k: (50 * v).to(torch.int8) for k, v in t.items()}, "holds int8, and is to hold floating-point numbers: dequantise it"),
        (lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}, "holds float8_e4m3fn"),
        (lambda t: {k: v.to(torch.complex64) for k, v in t.items()}, "holds complex64"),
        (lambda t: {k: 0 * v if "lora_B" in k else v for k, v in t.items()}, "it changes nothing"),
        (lambda t: {k: v * 1e-6 for k, v in t.items()}, "it changes nothing"),
        (
            lambda t: {**t, f"{LAYER}.lora_B.weight": t[f"{LAYER}.lora_B.weight"] * 1e6},
            rf"{LAYER} makes numbers of size 1 into ones of size",
        ),
        (lambda t: {k: v * 1e25 for k, v in t.items()}, "more than 1000: no LoRA does"),
    ],
)
def test_what_does_not_fit_the_base_is_refused_by_name(profile, elsewhere, change, why, tmp_path):
    save_file({k: v.clone().contiguous() for k, v in change(dict(elsewhere[1])).items()}, tmp_path / "odd.safetensors")
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
