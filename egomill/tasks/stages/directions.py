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


def stage(profile: Profile) -> Stage:
    """Directions of every chosen clip, by the geometry that the profile names."""
    return Stage(
        name="directions",
        reads={"clips": ("exo_camera", "ego_camera", "T_world_exo", "T_world_ego"), "depth": ("depth",)},
        config=profile.directions.model_dump(),
        worker=partial(worker, profile.directions.geometry),
        where="chosen",
    )


def worker(geometry: str) -> Callable[[dict], dict]:
    """Stateless: the function below is the worker."""
    return partial(directions, geometry)


def directions(geometry: str, row: dict) -> dict:
    """A clip's cameras, poses and depth in; compact token geometry on the 4x16x16 grid out. Computed in world float32."""
    clip = row["clips"]
    exo_camera = views.exo_camera(clip)
    ego_camera = views.ego_camera(clip)
    T_world_exo = torch.from_numpy(unpack(clip["T_world_exo"])).float()
    T_world_ego = torch.from_numpy(unpack(clip["T_world_ego"])).float()
    depth = torch.from_numpy(_nearest(unpack_depth(row["depth"]["depth"]), exo_camera.width, exo_camera.height))
    if geometry == "calibrated":
        kernel, (rays, ego_valid) = calibrated, calibrated.ego_rays(ego_camera, T_world_ego)
    else:
        kernel, (rays, ego_valid) = released, released.ego_rays(ego_camera.width, T_world_ego)
    centres = kernel.latent_centres(T_world_ego)
    points, exo_valid = kernel.exo_points(depth, exo_camera, T_world_exo, centres)
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
