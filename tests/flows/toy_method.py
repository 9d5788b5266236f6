"""A fourth method, for test_fourth_method.py: the ego latent as a linear map of the exo latent's channels, learnt in two phases."""

import torch
from torch import nn

from egomill.models.latents import to_latent
from egomill.models.method import Method, Phase
from egomill.schemas.tensors import pack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import views
from egomill.tasks.networks import bases


def stage(profile):
    revision = bases.revision(profile.model)
    reads = {"clips": tuple(dict.fromkeys((*views.EXO_COLUMNS, *views.EGO_COLUMNS)))}
    return Stage("latents", reads, {}, lambda: Encoder(profile.model), revision, {"model": revision}, "chosen")


class Encoder:
    def __init__(self, model):
        self.vae = bases.load(model, "vae").vae

    def __call__(self, row):
        both = torch.cat([to_latent(self.vae, read(row["clips"])) for read in (views.read_exo, views.read_ego)])
        return [{"clip_id": row["clips"]["clip_id"], "name": "both", "names": ["both"], "tensor": pack(both.half().numpy())}]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def ego(self, both):
        return self.linear(both[:, :16].movedim(1, -1)).movedim(-1, 1)

    def forward(self, both, generators):
        return (self.ego(both) - both[:, 16:]).square().flatten(1).mean(dim=1)


METHOD = Method(
    name="toy",
    module=__name__,
    stages=(__name__,),
    reads={"latents": ("both",)},
    truth=(),
    check=lambda profile, layout: None,
    build=lambda parts, profile: Net(),
    batch=lambda tensors, profile, device: tensors["both"].to(device).float(),
    sample=lambda net, both, generators, settings: net.ego(both),
    parts=(),
    phases=(Phase("map", 0.75, ("linear.weight",)), Phase("offset", 0.25, ("linear.bias",))),
)
