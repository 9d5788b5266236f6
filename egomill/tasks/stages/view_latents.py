"""What Exo2EgoSyn is trained on and conditioned with, into table latents: all exo views' latents, rays, fold, and the ego's latents.

One row a tensor: `exo` [V, C, f, h, w] in the order of the clip's views, zero where there is none; `seen` [V] says which there are; `rays`
[6tV + 1, f, h, w] (kernels/rays.py), with zeros for missing views; `fold` [1], 0 or 1 by the take's name: the Align of that number never
learns from the take; `ego` [C, f, h, w] where there is an ego video.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from egomill.kernels import rays
from egomill.models.exo2egosyn import FOLDS
from egomill.models.latents import to_latent
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video, views
from egomill.tasks.networks import bases, configs

COLUMNS = (*views.EXO_COLUMNS, *views.EGO_COLUMNS, "take_uid", "T_world_exo", "T_world_ego", "more_views")


def stage(profile: Profile) -> Stage:
    """Latents of every chosen clip's views by the profile's base."""
    revision = bases.revision(profile.model)
    return Stage(
        name="latents",
        reads={"clips": tuple(dict.fromkeys(COLUMNS))},
        config={"views": profile.clips.views, "metres": profile.exo2egosyn.metres},
        worker=partial(Encoder, profile),
        weights=revision,
        constants={"model": revision},
        where="chosen",
    )


def fold(take_uid: str) -> int:
    """Which of the Aligns never learns from a take."""
    return int(digest("fold", take_uid)[:8], 16) % FOLDS


class Encoder:
    """Holds the codec; a clip in, its rows out."""

    def __init__(self, profile: Profile) -> None:
        self.views, self.metres, self.layout = profile.clips.views, profile.exo2egosyn.metres, configs.layout(profile.model)
        self.vae = bases.load(profile.model, "vae").vae

    def __call__(self, row: dict) -> list[dict] | Rejected:
        clip = row["clips"]
        found = views.of(clip)[: self.views]
        try:
            exo = torch.stack([to_latent(self.vae, views.read_exo(view)) for view in found])
            ego = to_latent(self.vae, views.read_ego(clip)) if clip["ego_video"] else None  # none where it is still to be made
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        T_world_exo = torch.stack([torch.from_numpy(unpack(view["T_world_exo"])) for view in found])
        cells = self.layout.spatial, self.layout.temporal, self.metres
        looks = rays.maps(views.ego_camera(clip), torch.from_numpy(unpack(clip["T_world_ego"])), T_world_exo, *cells)
        missing = self.views - len(found)
        of_missing = looks.new_zeros(missing * rays.CHANNELS * self.layout.temporal, *looks.shape[1:])
        made = {
            "exo": torch.cat([exo, exo.new_zeros(missing, *exo.shape[1:])]).half().numpy(),
            "seen": np.arange(self.views) < len(found),
            "rays": torch.cat([looks[:-1], of_missing, looks[-1:]]).half().numpy(),
            "fold": np.array([fold(clip["take_uid"])], np.uint8),
        }
        if ego is not None:
            made["ego"] = ego.half().numpy()
        broken = [name for name, tensor in made.items() if not np.isfinite(tensor).all()]
        if broken:
            raise ArithmeticError(f"clip {clip['clip_id']}: {', '.join(broken)} are not finite")
        return [{"clip_id": clip["clip_id"], "names": sorted(made), "name": name, "tensor": pack(tensor)} for name, tensor in made.items()]
