"""Depth of a clip's exo view: a monocular estimate in metres, steadied over time by an affine fit to a temporal one (EgoX eq. 1).

Where the exo camera is fixed, the temporal estimate needs no second network: the median over time of what stands still. Whatever moves
keeps its own monocular depth, brought to the clip's scale. Which estimators, weights and mask made a row is part of the row.

Whether metres are metres is asked of the wearer's head, whose place is known in every clip: `head_scale`. A network is often less wrong
about the room than about a head close by, so that this value refuses and informs, and corrects nothing. With `scale = "landmarks"` the room
is brought to points at rest that the true ego frames show: in training clips alone. Those of a held-out clip are what is to be predicted,
and a request has none.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.background import masked_median, temporal_static
from egomill.kernels.cameras import Camera
from egomill.kernels.depth import STANDS_OUT, Alignment, AtHead, align, at_head, metric_scale
from egomill.kernels.landmarks import follow, triangulate
from egomill.kernels.poses import inverse
from egomill.schemas.config import Depth, Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, pack_depth, unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import sidecar, video, views
from egomill.tasks.networks import estimators, masks

SIDECAR = "sidecar"
WITHOUT_NETWORK = ("static-median", "none")
EGO = 448  # px: the release's own size of ego pictures, in which landmarks are looked for
UNITS = {1000.0: "millimetres", 100.0: "centimetres", 39.37: "inches", 3.281: "feet", 1e-3: "kilometres"}
DEPTH_COLUMNS = ("depth_path", "depth_kind", "depth_focal", "depth_files")
COLUMNS = (*views.EXO_COLUMNS, *views.EGO_COLUMNS, *DEPTH_COLUMNS, "split", "T_world_exo", "T_world_ego", "exo_cam")


def stage(profile: Profile) -> Stage:
    """Depth of every chosen clip. ValueError where a network is named without a revision that says what its weights are."""
    recipe = profile.depth
    revisions = Revisions.of(recipe)
    settings = recipe.model_dump(exclude={"monocular", "monocular_revision", "temporal", "temporal_revision"})
    return Stage(
        name="depth",
        reads={"clips": COLUMNS},
        config={**settings, "mask": revisions.mask or recipe.mask},
        worker=partial(Estimation, recipe, revisions, profile.ingest.allow),
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

    def __init__(self, recipe: Depth, revisions: Revisions, allow: tuple[str, ...] = ()) -> None:
        self.recipe, self.revisions, self.allow = recipe, revisions, allow
        mono, temporal = recipe.monocular, recipe.temporal
        self.monocular = None if mono == SIDECAR else estimators.load(mono, recipe.monocular_revision, metric=True)
        self.temporal = None if temporal in WITHOUT_NETWORK else estimators.load(temporal, recipe.temporal_revision, metric=False)
        self.masker = masks.Masker(recipe.mask)

    def __call__(self, row: dict) -> dict | Rejected:
        clip = row["clips"]
        camera = at_height(views.exo_camera(clip), self.recipe.height)
        if self.monocular is None and not clip["depth_path"]:
            return Rejected("no_depth_estimator", f"no depth on disk for {clip['exo_cam']}, and depth.monocular names no network")
        stored = sidecar.read(clip, camera, self.allow)
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
        if not (mono > 0).any():
            return Rejected("depth_empty", f"{self.recipe.monocular} knows no depth in any frame")
        head = at_head(mono, static, camera, _T_exo_ego(clip)) if clip["T_world_ego"] else None  # a request may know no path
        if wrong := self.off(head):
            return Rejected("depth_scale", wrong)
        factor, landmarks = 1.0, 0
        if self.recipe.scale == "landmarks" and clip["split"] == "train":
            try:
                factor, landmarks = landmark_scale(clip, masked_median(mono, static & (mono > 0)), camera)
            except video.VideoError as error:
                return Rejected("video_undecodable", str(error))
            mono, head = factor * mono, head and head._replace(scale=factor * head.scale)
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
            "estimator": json.dumps(self.named(clip, masked_by) | {"scale": {"factor": factor, "landmarks": landmarks}}, sort_keys=True),
            "known": known,
            "head_scale": None if head is None or hidden(head, self.recipe.min_head_scale) else head.scale,
        }

    def off(self, head: AtHead | None) -> str:
        """What is wrong with the scale of depth at the head, or ""."""
        low, high = self.recipe.min_head_scale, self.recipe.max_head_scale
        if head is None or hidden(head, low):
            return ""
        measured = f"the wearer's head has {head.scale:.4g} times its known distance (median of {head.frames} frames)"
        if low > 0 and head.around < 1 / STANDS_OUT:
            return f"{measured}, and what surrounds it lies before it: this looks like inverse depth; metres are asked for"
        if low <= head.scale <= high:
            return ""
        unit = min(UNITS, key=lambda factor: abs(math.log(head.scale / factor)))
        like = f", as in {UNITS[unit]}" if 0.67 < head.scale / unit < 1.5 else ""
        return f"{measured}{like}; {low:g} to {high:g} are accepted, and metres asked for"

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


def hidden(head: AtHead, low: float) -> bool:
    """Whether depth at the head may be that of something before it. At a tenth of the head's distance it is depth in another unit."""
    return not head.clear and 0.1 < head.scale < low and head.around > 1 / STANDS_OUT


def _T_exo_ego(clip: dict) -> Tensor:
    """[F, 4, 4] float64."""
    T_world_exo, T_world_ego = (torch.from_numpy(unpack(clip[name])) for name in ("T_world_exo", "T_world_ego"))
    return inverse(T_world_exo) @ T_world_ego


def landmark_scale(clip: dict, room: Tensor, camera: Camera) -> tuple[float, int]:
    """The factor that brings the room's depth [h, w] (NaN or 0 unknown) to what the true ego frames show at rest, and from how many points;
    (1.0, 0) where they are too few, or disagree. Errors: VideoError.
    """
    ego = views.ego_camera(clip).rescale(EGO, EGO)
    tracks = torch.from_numpy(follow(views.read_ego(clip, EGO), ego.rays()[1].numpy()))
    points = triangulate(tracks, ego, torch.from_numpy(unpack(clip["T_world_ego"])))
    return metric_scale(room.double(), camera, torch.from_numpy(unpack(clip["T_world_exo"])), points)


def at_height(exo_camera: Camera, height: int) -> Camera:
    """The clip's exo camera at the depth recipe's height; the width follows the picture."""
    return exo_camera.rescale(round(exo_camera.width * height / exo_camera.height), height)
