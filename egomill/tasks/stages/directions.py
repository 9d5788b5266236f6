"""Where each token looks, for geometry-guided attention: world rays of ego tokens, world points of exo tokens, ego centres."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from egomill.kernels import directions as calibrated
from egomill.kernels import directions_released as released
from egomill.schemas.config import Profile
from egomill.schemas.tensors import pack, unpack, unpack_depth
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import views
from egomill.tasks.networks import configs

WAN = (4, 16, 16)  # frames, rows, columns of a token of Wan 2.1


def stage(profile: Profile) -> Stage:
    """Directions of every chosen clip, by the geometry that the profile names, on the grid of the base's tokens. ValueError where the
    released geometry is asked for another grid than that of its own base."""
    layout = configs.layout(profile.model)
    temporal, token, _ = cell = layout.cell
    if profile.directions.geometry == "egox-released" and cell != WAN:
        raise ValueError(f"directions.geometry 'egox-released' is of tokens of 4x16x16, and those of {profile.model.base} are of {cell}")
    grid = {} if cell == WAN else {"cell": cell}  # unsaid where it is what it always was: rows that are there stay current
    return Stage(
        name="directions",
        reads={"clips": ("exo_camera", "ego_camera", "T_world_exo", "T_world_ego"), "depth": ("depth",)},
        config={**profile.directions.model_dump(), **grid},
        worker=partial(worker, profile.directions.geometry, token, temporal),
        where="chosen",
    )


def worker(geometry: str, token: int = WAN[1], temporal: int = WAN[0]) -> Callable[[dict], dict]:
    """Stateless: the function below is the worker."""
    return partial(directions, geometry, token, temporal)


def directions(geometry: str, token: int, temporal: int, row: dict) -> dict:
    """A clip's cameras, poses and depth in; compact geometry of tokens of `token` px and `temporal` frames out. In world float32."""
    clip = row["clips"]
    exo_camera = views.exo_camera(clip)
    ego_camera = views.ego_camera(clip)
    T_world_exo = torch.from_numpy(unpack(clip["T_world_exo"])).float()
    T_world_ego = torch.from_numpy(unpack(clip["T_world_ego"])).float()
    depth = torch.from_numpy(_nearest(unpack_depth(row["depth"]["depth"]), exo_camera.width, exo_camera.height))
    if geometry == "calibrated":
        centres = calibrated.latent_centres(T_world_ego, temporal)
        rays, ego_valid = calibrated.ego_rays(ego_camera, T_world_ego, token, temporal)
        points, exo_valid = calibrated.exo_points(depth, exo_camera, T_world_exo, centres, token, temporal)
    else:
        centres = released.latent_centres(T_world_ego)
        rays, ego_valid = released.ego_rays(ego_camera.width, T_world_ego)
        points, exo_valid = released.exo_points(depth, exo_camera, T_world_exo, centres)
    return {
        "exo_points": pack(points.numpy().astype(np.float32)),
        "exo_valid": pack(exo_valid.numpy()),
        "ego_rays": pack(rays.numpy().astype(np.float16)),
        "ego_valid": pack(ego_valid.numpy()),
        "centres": pack(centres.numpy().astype(np.float32)),
    }


def _nearest(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Depth [F, h, w] at the token grid's picture size, without blending surfaces."""
    rows = ((np.arange(height) + 0.5) * depth.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * depth.shape[2] / width).astype(int)
    return depth[:, rows[:, None], columns]
