"""Where the hands are before the wearer, as a regressor guesses from the exo picture alone (GenEgo's φ_ego; models/ego_hands.py).

The regressor is a weight of these rows: its digest is part of their key, and another training of it makes others.
"""

from __future__ import annotations

from functools import partial

import torch

from egomill.models import ego_hands
from egomill.schemas.config import Profile
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.training import regressor


def stage(profile: Profile) -> Stage | None:
    """Ego hands of every clip that has hands; none without a regressor."""
    if "predicted" not in profile.genego.sources or not profile.genego.regressor:
        return None
    known = regressor.revision(profile.genego.regressor)
    constants = {"regressor": known}
    return Stage(
        "ego_hands", {"hands": ("picture", "joints_exo")}, {}, partial(Predictor, profile), known, constants, also=(ego_hands.__name__,)
    )


class Predictor:
    """Holds the regressor; a clip's pictures in, the wearer's joints out."""

    def __init__(self, profile: Profile) -> None:
        self.net = regressor.load(profile.genego.regressor)

    @torch.no_grad()
    def __call__(self, row: dict) -> dict:
        picture, exo = (torch.from_numpy(unpack(row["hands"][name]).copy()) for name in ("picture", "joints_exo"))
        joints = self.net.joints(picture, exo)
        return {"joints_ego": pack(joints.numpy())}
