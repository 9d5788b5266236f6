"""What is counted on fake tensors is what a real step takes."""

import json
import os
import subprocess
import sys

import pytest

from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.tasks.training import sizes

WAN = {"patch_size": [1, 2, 2], "num_attention_heads": 6, "attention_head_dim": 64, "text_dim": 32, "freq_dim": 64, "ffn_dim": 1536}
WAN |= {"num_layers": 4, "rope_max_seq_len": 256}
BASES = {  # by profile: what config.json says of the transformer and of the codec
    "local": ({**WAN, "in_channels": 36, "out_channels": 16}, {}),
    "local-exo2egosyn": (
        {**WAN, "in_channels": 48, "out_channels": 48},
        {"z_dim": 48, "scale_factor_temporal": 4, "scale_factor_spatial": 16},
    ),
}
RECIPES = {
    "local": ["clips.exo_size=[448,256]", "clips.ego_size=256"],
    "local-exo2egosyn": ["clips.exo_size=[512,512]", "clips.ego_size=512"],
}
SMALL = ["clips.frames=17", "train.batch=1", "train.rank=16"]
MEASURE = """
import sys, torch
from torch.utils.flop_counter import FlopCounterMode
from diffusers import WanTransformer3DModel
from types import SimpleNamespace
from egomill.models import lora
from egomill.models.method import of
from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.tasks.training import sizes
torch.set_num_threads(1)
profile = Profile.load(*sys.argv[1:2], sys.argv[2:])
method = of(profile)
model = WanTransformer3DModel(**sizes.transformer_config(profile))
lora.add(model, profile.train.rank, profile.train.alpha, profile.train.targets)
net = method.build(SimpleNamespace(transformer=model, text_encoder=None, layout=sizes.layout(profile)), profile)
trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
def enter(phase):
    net.phase = phase.name
    for name, parameter in trainable.items():
        parameter.requires_grad_(name.startswith(phase.trains))
enter(method.phases[-1])
parameters = [p for p in net.parameters() if p.requires_grad]
if profile.train.gradient_checkpointing:
    model.enable_gradient_checkpointing()
model.train()
batch = method.blank(profile, sizes.layout(profile), model.config)
def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is of no interest
before = status("VmRSS")
net(batch, [torch.Generator()]).mean().backward()
gradients = sum(p.grad.numel() * 4 for p in parameters)
print((status("VmHWM") - before - gradients) / 2**30, sum(p.numel() for p in parameters))
for phase in method.phases:
    enter(phase)
    with FlopCounterMode(display=False, custom_mapping=sizes.ON_CPU) as counter:
        net(batch, [torch.Generator()]).mean().backward()
    print(counter.get_total_flops() / 1e12)
"""


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("profile", list(BASES))
def test_memory_and_arithmetic_of_a_real_step_are_as_counted(tmp_path, profile, checkpointing):
    for part, config in zip(("transformer", "vae"), BASES[profile], strict=True):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    settings = [*SMALL, *RECIPES[profile], f"model.base='{tmp_path}'", f"train.gradient_checkpointing={str(checkpointing).lower()}"]
    counted = sizes.step(Profile.load(profile, settings))
    heap = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once: the count knows no fragments
    command = [sys.executable, "-c", MEASURE, profile, *settings]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=heap).stdout
    activations, trained, *by_phase = map(float, out.split())
    assert counted["trained"] == trained
    assert counted["activations_gib"] == pytest.approx(activations, rel=0.15)
    asked = Profile.load(profile, [*settings, "train.steps=10"])
    phases = of(asked).phases
    assert [sizes.step(asked, phase)["tflop"] for phase in phases] == pytest.approx(by_phase, rel=0.02)
    total = sum(one * len(steps) for one, (_, steps) in zip(by_phase, of(asked).steps(10), strict=True))
    assert sizes.estimate(asked, tflop_per_second=1)["hours"] == pytest.approx(total / 3600, rel=0.02)


def test_the_paper_s_size_is_counted_without_weights():
    profile = Profile.load("paper")
    assert sizes.tokens(profile) == {"frames": 13, "exo": 17836, "ego": 10192, "all": 28028}
    found = sizes.estimate(profile, tflop_per_second=300)
    assert found["step"]["parameters"] == pytest.approx(16.4e9, rel=0.01)  # Wan 2.1 I2V 14B with its image branch
    assert found["step"]["trained"] == 40 * 8 * 2 * 256 * 5120
    # By hand, a layer: 17.3 TFLOP of linear layers, 16.1 of attention; forward twice (checkpointing), backward 1 and 2.5 times as much.
    plain = sizes.step(Profile.load("paper", ["model.gga=off"]))
    assert plain["tflop"] == pytest.approx(40 * (3 * 17.3 + 4.5 * 16.1), rel=0.05)
    assert found["memory_gib"] < 139  # fits an H200
    assert found["hours"] > 0


def test_exo2egosyn_is_counted_without_weights():
    profile = Profile.load("exo2egosyn")
    assert sizes.tokens(profile) == {"frames": 13, "exo": 10192, "ego": 2548, "all": 12740}
    found = sizes.estimate(profile)
    linear, rays = 30 * 64 * (8 * 2 * 3072 + 2 * (3072 + 14336)), 97 * 4 * 256 + 256 + (3072 + 256) * 3072 + 3072
    tokens = 48 * 4 * 3072 + 3072 + 4 * 3072 + 2 * 3072 + 3072**2 + 3072  # patch, views, norm, out, null
    assert found["step"]["trained"] == linear + rays + tokens
    # By hand, forward: 45.6 TFLOP. Once more in the backward pass (checkpointing), and about as much again and half for the gradients.
    assert found["step"]["tflop"] == pytest.approx(3.5 * 45.6, rel=0.1)


def test_genego_is_counted_without_weights():
    profile = Profile.load("genego")
    assert sizes.tokens(profile) == {"frames": 9, "all": 9 * 64 * 64}
    found = sizes.estimate(profile)
    assert found["step"]["parameters"] == 859_535_364  # Stable Diffusion 1.5 inpainting's U-Net
    # 18 pictures of 0.80 TFLOP (its 401 G multiplications): forward twice (checkpointing), once more for the gradients of a LoRA.
    assert found["step"]["tflop"] == pytest.approx(18 * 3 * 0.80, rel=0.1)


def test_sizes_that_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="not known"):
        sizes.estimate(Profile.load("paper", ["model.base=somebody/another-model"]))
