"""The egocentric prior of a clip: its exo view's static surface, drawn through the wearer's lens along the wearer's path."""

from __future__ import annotations

from functools import partial

import torch

from egomill.kernels.prior import coverage, render_prior
from egomill.schemas.config import Priors, Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack, unpack_depth
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video, views


def stage(profile: Profile) -> Stage:
    """Priors of every chosen clip."""
    return Stage(
        name="priors",
        reads={"clips": (*views.EXO_COLUMNS, "ego_camera", "T_world_exo", "T_world_ego", "fps"), "depth": ("depth", "static")},
        config=profile.priors.model_dump(),
        worker=partial(Rendering, profile.priors),
        where="chosen",
    )


class Rendering:
    """A clip's rows in, its prior out. Stateless."""

    def __init__(self, recipe: Priors) -> None:
        self.recipe = recipe

    def __call__(self, row: dict) -> dict | Rejected:
        clip = row["clips"]
        depth, static = torch.from_numpy(unpack_depth(row["depth"]["depth"])), torch.from_numpy(unpack(row["depth"]["static"]))
        height, width = depth.shape[1:]
        exo_camera = views.exo_camera(clip).rescale(width, height)
        ego_camera = views.ego_camera(clip)
        try:
            frames = torch.from_numpy(views.read_exo(clip, (width, height)))
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        T_world_exo = torch.from_numpy(unpack(clip["T_world_exo"])).float()
        T_world_ego = torch.from_numpy(unpack(clip["T_world_ego"])).float()
        view = (frames, depth, static, exo_camera, T_world_exo, ego_camera, T_world_ego)
        prior, valid = render_prior(*view, accumulated=self.recipe.accumulate, edge=self.recipe.edge)
        covered = float(coverage(valid, ego_camera.rays()[1]).mean())
        if covered < self.recipe.min_coverage:
            return Rejected("prior_empty", f"{covered:.1%} of the lens' disc, {self.recipe.min_coverage:.1%} asked for")
        return {"video": video.encode(prior.numpy(), clip["fps"], lossless=True), "valid": pack(valid.numpy()), "coverage": covered}
