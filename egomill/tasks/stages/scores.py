"""How near a generated ego video comes to the true one: one row a metric, whole picture and by region, or why there is no number.

Regions. `all` is the whole picture, as papers report it. `hole` is what the prior left empty inside the lens's disc: there a model has to
invent. `hand` is around the true hands, where they are known: there a pose map has to tell. `moved` is where something that moves, seen by
the exo camera, falls into the ego view: its pixels with their depth, splatted through the ego lens and widened a little. That region is
made of the input alone: the truth has no say in what counts. Where a method is given its first frames they are scored apart, as `first`,
and those that follow as `after`.

Beside adapters references are scored under the same names: "prior" and "sparse", the push-pull filled prior or sparse map itself, and
"codec", the truth after encoding and decoding, above which no model of this codec can come. Variants of an adapter (models/method.py) are
scored as "egox@v3+NAME"; that which repeats the first frame is made here.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from egomill.kernels import similarity
from egomill.kernels.cameras import Camera
from egomill.kernels.footprint import depth_edges, sample_extent
from egomill.kernels.hands import pose_map
from egomill.kernels.poses import transform
from egomill.kernels.splat import splat
from egomill.models.latents import to_frames
from egomill.models.method import of, split
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import unpack, unpack_depth
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import one_of
from egomill.tasks.media import video, views
from egomill.tasks.networks import bases, perceptual, told

METRICS = {"psnr": similarity.psnr, "ssim": similarity.ssim, "haarpsi": similarity.haarpsi}
OF_REGIONS = {"depth": ("depth", "static"), "priors": ("video", "valid"), "hands": ("joints_ego",)}
FILLED = {"prior": "priors", "sparse": "sparse"}  # references that are a map with its holes filled, by table
SMALLEST = 64  # px in a whole clip; below that a region says nothing
REACH = 1 / 24  # of the ego picture's width: how far around its splatted pixels something counts as moving


def stage(profile: Profile, adapter: str) -> Stage:
    """Scores of `adapter`: a spec like "egox@v3", a variant of one, "base", or one of the method's references.

    What the method's stages do not make is not read, and its region is left out: `hole` is of priors, `moved` of depth.
    """
    method = of(profile)
    made, given = method.stages, {"given_frames": method.given_frames} if method.given_frames else {}
    inputs: dict[str, tuple[str, ...]] = {"clips": (*views.EGO_COLUMNS, "exo_camera", "T_world_exo", "T_world_ego")}
    inputs |= {table: names for table, names in OF_REGIONS.items() if table in made}
    inputs |= {"captions": ("text",)} if method.measured and "captions" in made else {}
    first, where, codec = {FILLED.get(adapter, ""): OF_REGIONS["priors"]}, "", ""
    if adapter == "sparse":
        where = one_of("source", [profile.genego.given])
    elif adapter == "codec":
        codec = bases.revision(profile.model)
        first, where = {"latents": ("ego",)}, f"model = '{codec}'"
    elif adapter not in FILLED:
        made_by = split(adapter)[0] if method.variant(adapter).still else adapter
        first, where = {"generations": ("video",)}, one_of("adapter", [made_by])
    return Stage(
        name="scores",
        reads=first | inputs,
        config={"smallest": SMALLEST, "reach": REACH, **given},
        worker=partial(Scorer, profile, adapter),
        weights=codec + perceptual.weights_digest(profile.evaluate) + told.weights_digest(profile.evaluate, method.measured),
        constants={"adapter": adapter},
        where=where,
    )


class Scorer:
    """A clip in, its rows out, one a metric."""

    def __init__(self, profile: Profile, adapter: str) -> None:
        method = of(profile)
        self.adapter, self.given, self.still = adapter, method.given_frames, method.variant(adapter).still
        self.measures, self.missing = perceptual.load(profile.evaluate)
        self.told, missing = told.load(profile.evaluate, method.measured)
        self.missing |= missing
        self.parts = bases.load(profile.model, "vae") if adapter == "codec" else None

    def __call__(self, row: dict) -> list[dict] | Rejected:
        clip = row["clips"]
        of_map = row.get(FILLED.get(self.adapter, "priors"))
        _, valid, filled = views.read_prior(clip, of_map) if of_map else (None, None, None)
        try:
            truth = views.read_ego(clip)
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        made = self._made(row, filled)
        if made is None or made.shape != truth.shape:
            found = None if made is None else made.shape
            raise ValueError(f"clip {clip['clip_id']}: {self.adapter} has frames {found}, the truth {truth.shape}")
        ego = Camera.from_dict(json.loads(clip["ego_camera"]))
        disc = torch.from_numpy(views.ego_disc(clip))
        regions: dict[str, Tensor | None] = {"all": None}
        if valid is not None:
            regions["hole"] = ~torch.from_numpy(valid) & disc
        if "depth" in row:
            depth, static = unpack_depth(row["depth"]["depth"]), unpack(row["depth"]["static"])
            regions["moved"] = moved(clip, depth, static, ego) & disc
        if "hands" in row and row["hands"]["joints_ego"]:
            regions["hand"] = near_hands(torch.from_numpy(unpack(row["hands"]["joints_ego"])), ego) & disc
        x, y = (torch.from_numpy(v).movedim(-1, 1).float() / 255 for v in (made, truth))
        rows = []
        for region, mask in regions.items():
            for name, metric in METRICS.items():
                value = None if mask is not None and int(mask.sum()) < SMALLEST else metric(x, y, mask)
                rows.append((f"{name}.{region}", value, "" if value is not None else f"nothing of the picture is {region}"))
        if self.given:
            parts = {"first": slice(self.given), "after": slice(self.given, None)}
            rows += [(f"{name}.{part}", metric(x[at], y[at], None), "") for part, at in parts.items() for name, metric in METRICS.items()]
        rows += [(name, measure(x, y), "") for name, measure in self.measures.items()]
        rows += self._told(made, row)
        rows += [(name, None, why) for name, why in self.missing.items()]
        return [{"clip_id": clip["clip_id"], "metric": m, "value": v, "why": w} for m, v, w in rows]

    def _told(self, made: np.ndarray, row: dict) -> list[tuple[str, float | None, str]]:
        joints, text = row.get("hands", {}).get("joints_ego"), row.get("captions", {}).get("text", "")
        given = text, None if joints is None else torch.from_numpy(unpack(joints))
        values = {name: measure(made, *given) for name, measure in self.told.items()}
        return [(name, value, "" if value is not None else told.NOTHING[name]) for name, value in values.items()]

    def _made(self, row: dict, filled: np.ndarray | None) -> np.ndarray | None:
        if self.adapter in FILLED:
            return filled
        if self.parts is not None:
            return to_frames(self.parts.vae, torch.from_numpy(unpack(row["latents"]["ego"])))
        made = video.decode(row["generations"]["video"])
        return np.repeat(made[:1], len(made), axis=0) if self.still else made


def near_hands(joints: Tensor, ego: Camera) -> Tensor:
    """Around the true hands [F, 2, 21, 3] in the ego camera's frame: bool [F, H, W]."""
    return _widened(torch.stack([torch.from_numpy(pose_map(one, ego)).any(dim=-1) for one in joints]))


def _widened(mask: Tensor) -> Tensor:
    reach = max(1, round(mask.shape[-1] * REACH))
    return functional.max_pool2d(mask[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0


def moved(clip: dict, depth: np.ndarray, static: np.ndarray, ego: Camera) -> Tensor:
    """Where moving things that the exo camera sees fall into the ego view: bool [F, H, W].

    depth [F, h, w] in metres along the exo camera's rays, static [F, h, w]; frames and poses are the clip's. Points on depth edges are left
    out (they hang between surfaces); what moves but is hidden from the exo camera is not found.
    """
    frames, height, width = depth.shape
    exo = Camera.from_dict(json.loads(clip["exo_camera"])).rescale(width, height)
    T_world_exo = torch.from_numpy(unpack(clip["T_world_exo"])).float()
    T_world_ego = torch.from_numpy(unpack(clip["T_world_ego"])).float()
    rays, inside = exo.rays()
    found = []
    for frame in range(frames):
        metres = torch.from_numpy(depth[frame])
        kept = inside & (metres > 0) & ~torch.from_numpy(static[frame]) & ~depth_edges(metres, window=3)
        points = transform(T_world_exo, rays[kept] * metres[kept][:, None])
        if len(points):
            seen = splat(points, torch.ones_like(points), ego, T_world_ego[frame], extent=sample_extent(metres, exo)[kept])
            found.append(seen.valid)
        else:
            found.append(torch.zeros(ego.height, ego.width, dtype=torch.bool))
    return _widened(torch.stack(found))
