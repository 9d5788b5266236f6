"""Exo2EgoSyn on a folder of Wan 2.2 TI2V-5B's own classes: clips to latents, a step of each phase, an adapter's video."""

import pytest
import torch

from egomill.models import lora
from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.tasks.lake.tables import Lake
from egomill.tasks.media import video
from egomill.tasks.networks import bases, configs
from egomill.tasks.stages import generations, view_latents
from egomill.tasks.training import adapters, samples
from tests.tasks import tiny_lake
from tests.tasks.tiny_lake import run_here

SETTINGS = ["clips.exo_size=[64,64]", "clips.ego_size=64", "clips.frames=5", "clips.views=2", "train.rank=4", "generate.steps=2"]
SETTINGS += ["exo2egosyn.align_width=32", "exo2egosyn.align_heads=2", "exo2egosyn.align_depth=1", "exo2egosyn.ray_width=8"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_clips_to_an_adapter_s_video(tmp_path, dtype):
    lake = Lake(str(tmp_path / "lake"))
    keys = tiny_lake.build(lake, clips=2, takes=2, held_out=1)
    tiny_lake.square(lake, keys)
    base = tiny_lake.wan22(tmp_path / "base")
    profile = Profile.load("exo2egosyn", [*SETTINGS, f"model.base='{base}'", "model.revision=''", f"model.dtype={dtype}"])
    configs.check(profile)
    layout = configs.layout(profile.model)
    assert (layout.channels, layout.temporal, layout.spatial, layout.inputs) == (48, 4, 16, 48)
    made = {row["name"]: row["tensor"]["shape"] for row in run_here(lake, view_latents.stage(profile), keys)}
    assert (made["exo"], made["ego"], made["rays"]) == ([2, 48, 2, 4, 4], [48, 2, 4, 4], [49, 2, 4, 4])

    method, revision = of(profile), bases.revision(profile.model)
    parts = bases.load(profile.model, *method.parts)
    lora.add(parts.transformer, 4, 4, profile.train.targets)
    net = method.build(parts, profile)
    read = samples.Samples(lake, {t: lake.version(t) for t in method.reads}, revision, method.reads, keys)
    batch = method.batch(samples.stack(read.get([0, 1])), profile, torch.device("cpu"))
    for phase in method.phases:
        net.phase = phase.name
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = net(batch, [torch.Generator().manual_seed(i) for i in range(2)])
        assert loss.dtype == torch.float32
        loss.mean().backward()
    learnt = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0}
    for part in ("align.0.leave", "align.1.leave", "tokens.out", "rays.fuse", "transformer.blocks.0.attn2.to_v.lora_B"):
        assert any(name.startswith(part) for name in learnt), part

    tensors, metadata, own = adapters.state(net)
    adapters.save(tensors, metadata, own, tmp_path / "adapter", adapters.about(profile, revision, 1, "r1"))
    (row,) = run_here(lake, generations.stage(profile, "exo2egosyn@v1", str(tmp_path / "adapter")), keys[:1])
    assert video.decode(row["video"]).shape == (5, 64, 64, 3)
