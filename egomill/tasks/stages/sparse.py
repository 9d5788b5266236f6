"""What the ego camera would see of the exo view's points, and of the hands: GenEgo's sparse map and pose map, by one alignment each.

Everything is drawn, the wearer's arms and what is handled too (EgoX draws only what stands still): each frame from its own points, through
the lens. Points within reach of the head itself are left out, or the wearer's own face would lie over the view (our reading).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from egomill.kernels import hands
from egomill.kernels.background import Background
from egomill.kernels.poses import inverse
from egomill.kernels.prior import Cloud, coverage, render_cloud, room_cloud
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack, unpack_depth
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video, views

HEAD = 0.2  # m around the ego camera, in which nothing is drawn
COLUMNS = (*views.EXO_COLUMNS, "ego_camera", "fps")


def stage(profile: Profile, source: str) -> Stage | None:
    """Sparse and pose maps by the alignments of a source; none where there are none."""
    if source not in profile.genego.sources or (source == "predicted" and not profile.genego.regressor):
        return None
    scaled = profile.genego.scale == "hands"
    reads = {
        "alignments": ("T_ego_exo", "joints_ego"),
        "clips": COLUMNS,
        "depth": ("depth",),
        **({"scales": ("factor",)} if scaled else {}),
    }
    config = {"edge": profile.priors.edge, "min_coverage": profile.priors.min_coverage, "head": HEAD}
    return Stage("sparse", reads, config, partial(Drawing, profile), constants={"source": source}, where=f"source = '{source}'")


class Drawing:
    """A clip's rows in, its two maps out. Stateless."""

    def __init__(self, profile: Profile) -> None:
        self.recipe = profile.priors

    def __call__(self, row: dict) -> dict | Rejected:
        clip, found = row["clips"], row["alignments"]
        depth = torch.from_numpy(unpack_depth(row["depth"]["depth"]))
        if "scales" in row:
            depth = depth * row["scales"]["factor"]
        height, width = depth.shape[1:]
        exo, ego = views.exo_camera(clip).rescale(width, height), views.ego_camera(clip)
        try:
            frames = torch.from_numpy(views.read_exo(clip, (width, height)))
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        maps, seen = [], []
        T_exo_ego = inverse(torch.from_numpy(unpack(found["T_ego_exo"]))).float()
        for picture, metres, T in zip(frames, depth, T_exo_ego, strict=True):  # the exo camera's frame is the world
            cloud = room_cloud(Background(picture.float(), metres, torch.ones_like(metres)), exo, torch.eye(4), self.recipe.edge)
            far = (cloud.points - T[:3, 3]).norm(dim=-1) > HEAD
            drawn = render_cloud(Cloud(*(part[far] for part in cloud)), ego, T[None])
            maps.append(drawn[0])
            seen.append(drawn[1])
        sparse, valid = torch.cat(maps), torch.cat(seen)
        covered = float(coverage(valid, ego.rays()[1]).mean())
        if covered < self.recipe.min_coverage:
            return Rejected("prior_empty", f"{covered:.1%} of the lens' disc, {self.recipe.min_coverage:.1%} asked for")
        pose = np.stack([hands.pose_map(joints, ego) for joints in torch.from_numpy(unpack(found["joints_ego"]))])
        kept = {"video": sparse.numpy(), "pose": pose}
        encoded = {name: video.encode(pictures, clip["fps"], lossless=True) for name, pictures in kept.items()}
        return {**encoded, "valid": pack(valid.numpy()), "coverage": covered}
