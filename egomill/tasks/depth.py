"""Depth of a clip's exo view: a monocular estimate in metres, steadied over time by an affine fit to a temporal one (EgoX eq. 1).

Where the exo camera is fixed, the temporal estimate needs no second network: the median over time of what stands still. Whatever moves
keeps its own monocular depth, brought to the clip's scale. Which estimators, weights and mask made a row is part of the row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.background import temporal_static
from egomill.kernels.cameras import Camera
from egomill.kernels.depth import Alignment, AtHead, align, at_head
from egomill.kernels.poses import inverse
from egomill.schemas.config import Depth, Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, pack_depth, unpack
from egomill.tasks import estimators, masks, sidecar, video, views
from egomill.tasks.stage import Stage

SIDECAR = "sidecar"
WITHOUT_NETWORK = ("static-median", "none")
INVERTED = 1.2  # what surrounds a head lies behind it, by 1.6 and more in simulated and real clips
UNITS = {1000.0: "millimetres", 100.0: "centimetres", 39.37: "inches", 3.281: "feet", 1e-3: "kilometres"}
COLUMNS = (*views.EXO_COLUMNS, "T_world_exo", "T_world_ego", "exo_cam", "depth_path", "depth_kind", "depth_focal", "depth_files")


def stage(profile: Profile) -> Stage:
    """Depth of every chosen clip. ValueError where a network is named without a revision that says what its weights are."""
    recipe = profile.depth
    revisions = Revisions.of(recipe)
    settings = recipe.model_dump(exclude={"monocular", "monocular_revision", "temporal", "temporal_revision"})
    return Stage(
        name="depth",
        reads={"clips": COLUMNS},
        config={**settings, "mask": revisions.mask or recipe.mask},
        worker=partial(Estimation, recipe, revisions),
        weights=json.dumps(revisions.__dict__, sort_keys=True),
        where="chosen",
    )


@dataclass(frozen=True)
class Revisions:
    """What stands for the weights: a digest or id@commit for networks, the name for what has none."""

    monocular: str
    temporal: str
    mask: str

    @staticmethod
    def of(recipe: Depth) -> Revisions:
        mono, temporal = recipe.monocular, recipe.temporal
        return Revisions(
            mono if mono == SIDECAR else estimators.revision(mono, recipe.monocular_revision),
            temporal if temporal in WITHOUT_NETWORK else estimators.revision(temporal, recipe.temporal_revision),
            masks.revision(recipe.mask),
        )


class Estimation:
    """Holds the networks; a clip's row in, its depth out."""

    def __init__(self, recipe: Depth, revisions: Revisions) -> None:
        self.recipe, self.revisions = recipe, revisions
        mono, temporal = recipe.monocular, recipe.temporal
        self.monocular = None if mono == SIDECAR else estimators.load(mono, recipe.monocular_revision, metric=True)
        self.temporal = None if temporal in WITHOUT_NETWORK else estimators.load(temporal, recipe.temporal_revision, metric=False)
        self.masker = masks.Masker(recipe.mask)

    def __call__(self, row: dict) -> dict | Rejected:
        clip = row["clips"]
        camera = at_height(views.exo_camera(clip), self.recipe.height)
        if self.monocular is None and not clip["depth_path"]:
            return Rejected("no_depth_estimator", f"no depth on disk for {clip['exo_cam']}, and depth.monocular names no network")
        stored = sidecar.read(clip, camera)
        if isinstance(stored, Rejected) and self.monocular is None:
            return stored
        found = stored if isinstance(stored, sidecar.Sidecar) else None
        try:
            frames = views.read_exo(clip, (camera.width, camera.height))
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        dynamic, masked_by = self.masker(frames, found.dynamic if found else None)
        static = torch.from_numpy(~dynamic)
        if self.monocular is not None:
            mono = torch.from_numpy(self.monocular(frames, camera))
        else:
            assert found is not None
            mono = torch.from_numpy(found.depth)
        head = at_head(mono, static, camera, _T_exo_ego(clip))
        if wrong := self.off(head):
            return Rejected("depth_scale", wrong)
        try:
            fused = self.fuse(mono, frames, camera, static)
        except ValueError as error:
            return Rejected("alignment_failed", str(error))
        if not (fused.alpha.isfinite() & (fused.alpha > 0)).all():
            return Rejected("alignment_failed", f"scale {fused.alpha.min():.3g} is not positive")
        known = float((fused.depth > 0).float().mean())
        if known < self.recipe.min_known:
            return Rejected("depth_empty", f"{known:.1%} of the pixels have depth, {self.recipe.min_known:.1%} asked for")
        return {
            "depth": pack_depth(fused.depth.numpy(), self.recipe.relative_error),
            "static": pack(~dynamic),
            "alpha": pack(fused.alpha.numpy().astype(np.float32)),
            "beta": pack(fused.beta.numpy().astype(np.float32)),
            "inliers": pack(fused.inliers.numpy().astype(np.float32)),
            "estimator": json.dumps(self.named(clip, masked_by), sort_keys=True),
            "known": known,
            "head_scale": head.scale if head and (head.moving or head.scale >= self.recipe.min_head_scale) else None,
        }

    def off(self, head: AtHead | None) -> str:
        """What is wrong with the scale of depth at the head, or "". A head that may be hidden says nothing of depth that is too near."""
        low, high = self.recipe.min_head_scale, self.recipe.max_head_scale
        if head is None:
            return ""
        measured = f"the wearer's head has {head.scale:.3g} times its known distance (median of {head.frames} frames)"
        if head.around < 1 / INVERTED:
            return f"{measured}, and what surrounds it lies before it: this looks like inverse depth (disparity); metres are asked for"
        if (low <= head.scale or not head.moving) and head.scale <= high:
            return ""
        unit = next((f", as in {name}" for factor, name in UNITS.items() if 0.7 < head.scale / factor < 1.43), "")
        return f"{measured}{unit}; {low:g} to {high:g} are accepted, and metres asked for"

    def fuse(self, mono: Tensor, frames: np.ndarray, camera: Camera, static: Tensor) -> Alignment:
        """Dm [F, h, w] steadied. ValueError where there is nothing static to fit."""
        if self.recipe.temporal == "none":
            one = torch.ones(len(mono))
            return Alignment(mono, one, 0 * one, one, 0 * one)
        if self.temporal is None:
            steady = temporal_static(mono, static, fill_dynamic=False)
        else:
            steady = torch.from_numpy(self.temporal(frames, camera))
        return align(mono, steady, static, self.recipe.mode, self.recipe.momentum)

    def named(self, clip: dict, masked_by: str) -> dict:
        """Who made the row: names and revisions."""
        if self.monocular is None:
            monocular = {"name": SIDECAR, "kind": clip["depth_kind"], "revision": clip["depth_files"]}
        else:
            monocular = {"name": self.recipe.monocular, "revision": self.revisions.monocular}
        return {
            "monocular": monocular,
            "temporal": {"name": self.recipe.temporal, "revision": self.revisions.temporal if self.temporal else ""},
            "mask": {"name": masked_by, "revision": self.revisions.mask if masked_by == self.recipe.mask else ""},
            "alignment": self.recipe.mode if self.recipe.temporal != "none" else "none",
        }


def _T_exo_ego(clip: dict) -> Tensor:
    """[F, 4, 4] float64."""
    T_world_exo, T_world_ego = (torch.from_numpy(unpack(clip[name])) for name in ("T_world_exo", "T_world_ego"))
    return inverse(T_world_exo) @ T_world_ego


def at_height(exo_camera: Camera, height: int) -> Camera:
    """The clip's exo camera at the depth recipe's height; the width follows the picture."""
    return exo_camera.rescale(round(exo_camera.width * height / exo_camera.height), height)
