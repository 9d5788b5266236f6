"""The motion from the exo to the ego camera, frame by frame, from one source each: they are never mixed.

    calibrated   the data set's cameras: what the others are measured by
    annotated    the data set's hands in both frames, through the solver (kernels/alignment.py): this checks the solver
    jittered     calibrated, and the hands with it, off by an error like the regressor's: what training sees (our reading)
    predicted    hands as seen and as the regressor guesses them: the method, which needs no ego pose

Frames whose fit is refused take their motion from their neighbours; a clip of which fewer than half are believed is rejected.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from egomill.kernels.alignment import REFUSED, align
from egomill.kernels.poses import from_rt, hold, inverse, smooth, transform
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.training import regressor

BELIEVED = 0.5  # of the frames, at least
SMOOTHED = 3  # frames, over which a fitted path is averaged: hands' errors come frame by frame, a head moves slowly


def stage(profile: Profile, source: str) -> Stage | None:
    """Alignments of a source; none where the profile does not ask for it, or has no regressor to predict by."""
    if source not in profile.genego.sources or (source == "predicted" and not profile.genego.regressor):
        return None
    constants, reads = {"source": source}, {"hands": ("joints_exo", "joints_ego"), "clips": ("T_world_exo", "T_world_ego")}
    config: dict = {"jitter": profile.genego.jitter} if source == "jittered" else {}
    if source == "predicted":
        config, where = {}, f"regressor = '{regressor.revision(profile.genego.regressor)}'"
        return Stage(
            "alignments", {"ego_hands": ("joints_ego",), **reads}, config, partial(Aligner, source), constants=constants, where=where
        )
    return Stage("alignments", reads, config, partial(Aligner, source, profile.genego.jitter), constants=constants)


class Aligner:
    """A clip's rows in, its motion out. Stateless."""

    def __init__(self, source: str, jitter: tuple[float, float] = (0.0, 0.0)) -> None:
        self.source, self.jitter = source, jitter

    def __call__(self, row: dict) -> dict | Rejected:
        clip, hands = row["clips"], row["hands"]
        joints = torch.from_numpy(unpack(hands["joints_exo"])).double()
        calibrated = None
        if clip["T_world_ego"]:
            calibrated = inverse(torch.from_numpy(unpack(clip["T_world_ego"]))) @ torch.from_numpy(unpack(clip["T_world_exo"]))
        if self.source in ("calibrated", "jittered"):
            if calibrated is None:
                raise ValueError(f"clip {clip['clip_id']} has no ego pose to calibrate by")
            return self._known(calibrated, joints, clip["clip_id"])
        told = row["ego_hands"]["joints_ego"] if self.source == "predicted" else hands["joints_ego"]
        if told is None:
            return Rejected("no_hands", "nobody annotated hands before the wearer")
        ego = torch.from_numpy(unpack(told)).double()
        found = align(joints, ego)
        why = Counter(reason for reason in found.refused if reason)
        if sum(why.values()) > (1 - BELIEVED) * len(joints):
            reasons = "; ".join(f"{n}: {REFUSED[reason]}" for reason, n in why.most_common())
            return Rejected("hands_unaligned", f"of {len(joints)} frames {reasons}")
        T = smooth(hold(found.T_b_a), SMOOTHED if self.source == "predicted" else 1)
        ego = ego.flip(1) if found.exchanged else ego
        return _row(T, ego, calibrated, found.residual, found.refused, found.weak, found.exchanged)

    def _known(self, T_ego_exo: Tensor, joints: Tensor, clip_id: str) -> dict:
        ego = transform(T_ego_exo[:, None], joints)
        if self.source == "jittered":
            off = _moved(ego, *self.jitter, int(digest("jitter", clip_id)[:8], 16))
            T_ego_exo, ego = off @ T_ego_exo, transform(off, ego.flatten(0, 2)).view_as(ego)
        nothing = torch.full((len(joints),), torch.nan)
        weak = joints.isfinite().all(dim=-1).any(dim=-1).sum(dim=-1) == 1
        calibrated = T_ego_exo if self.source == "calibrated" else inverse(off) @ T_ego_exo
        return _row(T_ego_exo, ego, calibrated, nothing, ("",) * len(joints), weak, False)


def _moved(ego: Tensor, metres: float, degrees: float, seed: int) -> Tensor:
    """A motion [4, 4] of the ego frame: a turn around the hands' middle, and a shift, one for the whole clip as a regressor's error is."""
    rng = np.random.default_rng(seed)
    R = torch.from_numpy(Rotation.from_rotvec(rng.normal(0, math.radians(degrees) / math.sqrt(3), 3)).as_matrix())
    middle = ego.flatten(0, 2)[ego.flatten(0, 2).isfinite().all(dim=-1)].mean(dim=0)
    shift = torch.from_numpy(rng.normal(0, metres / math.sqrt(3), 3))
    return from_rt(torch.cat([R, (middle - R @ middle + shift)[:, None]], dim=1))


def _row(T: Tensor, ego: Tensor, calibrated: Tensor | None, residual: Tensor, refused: tuple, weak: Tensor, exchanged: bool) -> dict:
    centimetres = degrees = None
    if calibrated is not None:
        apart = T @ inverse(calibrated)  # from where the ego camera is to where it is taken to be
        centimetres = 100 * float(inverse(apart)[:, :3, 3].norm(dim=-1).median())
        turned = [Rotation.from_matrix(R.numpy()).magnitude() for R in apart[:, :3, :3]]
        degrees = math.degrees(float(np.median(turned)))
    return {
        "T_ego_exo": pack(T.numpy()),
        "joints_ego": pack(ego.float().numpy()),
        "residual": pack(residual.float().numpy()),
        "refused": list(refused),
        "weak": pack(weak.numpy()),
        "exchanged": exchanged,
        "centimetres": centimetres,
        "degrees": degrees,
    }
