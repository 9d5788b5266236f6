"""By which factor the hands' surface would bring a clip's depth to metres (EgoWorld's s*), and whether that can be believed.

A row informs; it is applied to the sparse map where genego.scale = "hands" (stages/sparse.py). Depth that is metric and calibrated is more
certain than the size of a hand, by which the surface is drawn (our reading).
"""

from __future__ import annotations

from functools import partial

import torch

from egomill.kernels import hands
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import unpack, unpack_depth
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import views

PIXELS = 30  # at least
SPREAD = 0.25  # of the logarithm of the ratio, quartile to quartile, at most


def stage(profile: Profile) -> Stage | None:
    """Scales of every chosen clip with depth and hands; none where genego.scale is "as-is"."""
    if profile.genego.scale == "as-is":
        return None
    reads = {"clips": ("clip_id", "exo_camera"), "depth": ("depth",), "hands": ("joints_exo",)}
    return Stage("scales", reads, {"pixels": PIXELS, "spread": SPREAD}, partial(Measure), where="chosen")


class Measure:
    """A clip's rows in, its scale out. Stateless."""

    def __call__(self, row: dict) -> dict | Rejected:
        depth = torch.from_numpy(unpack_depth(row["depth"]["depth"]))
        camera = views.exo_camera(row["clips"]).rescale(depth.shape[2], depth.shape[1])
        joints = torch.from_numpy(unpack(row["hands"]["joints_exo"]))
        found = hands.scale(torch.stack([hands.surface(one, camera) for one in joints]), depth)
        if found.pixels < PIXELS:
            return Rejected("scale_unreliable", f"{found.pixels} pixels of hands with depth, {PIXELS} asked for")
        if found.spread > SPREAD:
            return Rejected(
                "scale_unreliable", f"half of the ratios lie {found.spread:.2f} apart in logarithm, {SPREAD} at most is believed"
            )
        return {"factor": found.factor, "pixels": found.pixels, "spread": found.spread}
