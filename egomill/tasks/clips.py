"""Which windows of which cameras become clips, and why.

Geometry first: every exo camera is ranked by how much of the wearer's view it can see, before anything is decoded. Only the best
ones' frames are then read, small, for motion, sharpness, exposure and for openings in which somebody holds a separator before the
lens. Every candidate becomes a row, taken or not, with the reason; `selected` then applies the recipe's quotas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from egomill.kernels import quality
from egomill.kernels.cameras import Camera
from egomill.schemas.config import Clips, Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks import video, views
from egomill.tasks.lake import Lake
from egomill.tasks.stage import Stage
from egomill.tasks.watch import lasts

SPLITS = ("train", "test", "unseen")
READS = ("take_uid take_name root split fps frames ego_video ego_camera T_world_ego exo files task descriptions").split()  # noqa: SIM905
LOOK = 112  # rows of the pictures that are judged
OPENING_SECONDS = 6.0  # how far into a take its opening may reach
NEAR_SHARE = 0.05  # a camera whose picture the workspace fills less than this is too far away to show it well


def stage(profile: Profile) -> Stage:
    """Candidate windows of every take, at the profile's sizes. Quotas are no part of it: they choose among rows."""
    recipe = profile.clips.model_dump(exclude={"train", "test", "unseen"})
    return Stage("clips", {"takes": tuple(READS)}, recipe, partial(Windows, profile.clips))


class Windows:
    """A take in, its candidate clips out."""

    def __init__(self, recipe: Clips) -> None:
        self.recipe = recipe

    def __call__(self, row: dict) -> list[dict] | Rejected:
        take, recipe = row["takes"], self.recipe
        lasts(take["frames"] / take["fps"])
        stride = stride_of(take["fps"], recipe)
        span = (recipe.frames - 1) * stride + 1
        hop = max(1, round(recipe.hop * take["fps"]))
        starts = range(0, take["frames"] - span + 1, hop)
        if not starts:
            return Rejected("too_short", f"{take['frames']} frames, a window spans {span}")
        take = {
            **take,
            "T_world_ego": torch.from_numpy(unpack(take["T_world_ego"])),
            "ego_camera": Camera.from_dict(json.loads(take["ego_camera"])).rescale(recipe.ego_size, recipe.ego_size),
            "views": [exo_view(recipe, name, exo, json.loads(take["files"])) for name, exo in json.loads(take["exo"]).items()],
            "descriptions": json.loads(take["descriptions"]),
        }
        rows = [clip for start in starts for clip in self._window(take, start, stride)]
        try:
            self._judge(take, rows)
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        self._limit(rows)
        if not any(clip["chosen"] for clip in rows):
            return Rejected("no_window", "; ".join(sorted({clip["why"] for clip in rows})))
        return rows

    def _window(self, take: dict, start: int, stride: int) -> list[dict]:
        """The best exo views of one window, from geometry alone."""
        recipe = self.recipe
        numbers = start + stride * np.arange(recipe.frames)
        T_world_ego = take["T_world_ego"][numbers]
        known = torch.isfinite(T_world_ego).all(dim=-1).all(dim=-1)
        window = {
            "start": start,
            "stride": stride,
            "frames": recipe.frames,
            "fps": take["fps"] / stride,
            "split": split_of(take["split"], take["take_uid"], start, recipe),
            "ego_camera": json.dumps(take["ego_camera"].to_dict()),
            "T_world_ego": pack(T_world_ego.numpy()),
            "pose_coverage": float(known.double().mean()),
            "description": _described(take["descriptions"], start / take["fps"], (numbers[-1] + 1) / take["fps"]),
            **{name: take[name] for name in ("take_uid", "take_name", "root", "ego_video", "task")},
        }
        sha256 = {path: file["sha256"] for path, file in json.loads(take["files"]).items()}
        ranked = []
        for view in take["views"]:
            camera, T_world_exo = view["camera"], view["T_world_exo"]
            overlap = rank = 0.0
            if bool(known.any()):
                seen, facing = quality.overlap(camera, T_world_exo, take["ego_camera"], T_world_ego[known])
                share = quality.workspace_share(camera, T_world_exo, T_world_ego[known]).mean()
                overlap = float(seen.mean())
                rank = overlap * float((3 + facing.mean()) / 4) * min(1.0, float(share) / NEAR_SHARE)
            name = view["columns"]["exo_cam"]
            clip = {"clip_id": f"{take['take_uid']}.{name}.{start:06d}", **window, **view["columns"], "overlap": overlap}
            clip["videos"] = digest([sha256[clip["exo_video"]], sha256[clip["ego_video"]]])
            ranked.append((-rank, name, clip))
        ranked.sort(key=lambda view: view[:2])
        return [clip for _, _, clip in ranked[: recipe.exo_cameras]]

    def _judge(self, take: dict, rows: list[dict]) -> None:
        """Read what the geometry left, small, and say of every candidate whether it is taken and why."""
        for clip in rows:
            clip |= {"motion": None, "blur": None, "exposure": None, "why": self._geometry(clip)}
        for name in sorted({clip["exo_cam"] for clip in rows if not clip["why"]}):
            mine = [clip for clip in rows if clip["exo_cam"] == name and not clip["why"]]
            reader = video.Reader(Path(take["root"]) / mine[0]["exo_video"])
            opening = self._opening(reader, take) if self.recipe.skip_opening else 0
            for clip in mine:
                crop = clip["exo_crop"]
                size = (round(LOOK * crop[2] / crop[3]), LOOK)
                frames = torch.from_numpy(reader.read(views.frame_numbers(clip).tolist(), size, crop))
                dark, blown = quality.exposure(frames)
                clip["motion"] = float(quality.motion(frames).mean())
                clip["blur"] = float(quality.sharpness(frames).median())
                clip["exposure"] = float((dark + blown).max())
                clip["why"] = self._pictures(clip, opening)
        for clip in rows:
            clip["chosen"] = clip["why"] == "chosen"
        _keep_apart(rows)

    def _opening(self, reader: video.Reader, take: dict) -> int:
        """First frame of a view that nothing covers."""
        step = max(1, round(take["fps"] / 10))
        numbers = list(range(0, min(len(reader), round(OPENING_SECONDS * take["fps"])), step))
        return step * quality.opening_disturbance(torch.from_numpy(reader.read(numbers, (100, 56))))

    def _geometry(self, clip: dict) -> str:
        """Why a window is not worth decoding, or ""."""
        if clip["pose_coverage"] < 1:
            return f"no ego pose for {round((1 - clip['pose_coverage']) * clip['frames'])} of {clip['frames']} frames"
        if clip["overlap"] < self.recipe.min_overlap:
            return f"overlap {clip['overlap']:.2f} < {self.recipe.min_overlap}"
        return ""

    def _pictures(self, clip: dict, opening: int) -> str:
        recipe = self.recipe
        if clip["start"] < opening:
            return f"opening: something covers the lens until frame {opening}"
        if clip["motion"] < recipe.min_motion:
            return f"motion {clip['motion']:.4f} < {recipe.min_motion}"
        if clip["blur"] < recipe.min_sharpness:
            return f"sharpness {clip['blur']:.4f} < {recipe.min_sharpness}"
        if clip["exposure"] > recipe.max_bad_exposure:
            return f"dark or blown {clip['exposure']:.2f} > {recipe.max_bad_exposure}"
        return "chosen"

    def _limit(self, rows: list[dict]) -> None:
        chosen = sorted((clip for clip in rows if clip["chosen"]), key=lambda clip: (-clip["overlap"], clip["clip_id"]))
        for clip in chosen[self.recipe.max_per_take :] if self.recipe.max_per_take else []:
            clip["chosen"], clip["why"] = False, f"the take gives {self.recipe.max_per_take} clips, with more overlap"


def stride_of(fps: float, recipe: Clips) -> int:
    """Frames of a source of that rate for one of the clip."""
    return max(1, round(fps / recipe.fps))


def exo_view(recipe: Clips, name: str, exo: dict, files: dict) -> dict:
    """An exo camera of a take at the recipe's size: {camera, T_world_exo, columns that all of its windows share}."""
    source = Camera.from_dict(exo["camera"])
    crop = _centre_crop(source.width, source.height, *recipe.exo_size)
    camera = source.crop(*crop).rescale(*recipe.exo_size)
    if recipe.undistort:
        camera, crop = _pinhole_like(camera), (0, 0, source.width, source.height)
    T_world_exo = torch.tensor(exo["T_world_exo"], dtype=torch.float64)
    depth = {path: file["sha256"] for path, file in files.items() if exo["depth"] and _under(path, exo["depth"])}
    columns = {
        "exo_cam": name,
        "exo_video": exo["video"],
        "exo_camera": json.dumps(camera.to_dict()),
        "exo_crop": list(crop),
        "exo_lens": json.dumps(source.to_dict()) if recipe.undistort else "",
        "T_world_exo": pack(T_world_exo.numpy()),
        "depth_path": exo["depth"] or "",
        "depth_kind": exo["depth_kind"] or "",
        "depth_focal": exo["depth_focal"],
        "depth_files": digest(depth) if depth else "",
    }
    return {"camera": camera, "T_world_exo": T_world_exo, "columns": columns}


def split_of(official: str, take_uid: str, start: int, recipe: Clips) -> str:
    """train, test (a held-out window of a training take) or unseen (a window of a held-out take). Official splits stand; where there is
    none, takes are held out by hash. Stable: other takes or clips change nothing. All cameras' views of a window fall on one side, since
    they share the true ego video.
    """
    held_out = official in ("val", "test", "held-out") if official else _share(recipe.split_seed, take_uid) < recipe.unseen_fraction
    if held_out:
        return "unseen"
    return "test" if _share(recipe.split_seed, f"{take_uid}@{start}") < recipe.test_fraction else "train"


def _keep_apart(rows: list[dict]) -> None:
    """Where windows overlap (hop shorter than a clip), no training window shares frames with a held-out one."""
    spans = {(c["start"], c["start"] + (c["frames"] - 1) * c["stride"]) for c in rows if c["split"] == "test" and c["chosen"]}
    for clip in rows:
        if clip["split"] == "train" and clip["chosen"]:
            first, last = clip["start"], clip["start"] + (clip["frames"] - 1) * clip["stride"]
            if any(a <= last and first <= b for a, b in spans):
                clip["chosen"], clip["why"] = False, "shares frames with a held-out window"


def selected(lake: Lake, recipe: Clips, splits: Sequence[str] = SPLITS) -> list[str]:
    """The chosen clips of these splits within the recipe's quotas (0: all), by a hash of their ids: the same ones on every day."""
    rows = lake.read("clips", ["clip_id", "split"], "chosen")
    ids, names = rows["clip_id"].to_pylist(), rows["split"].to_pylist()
    found: list[str] = []
    for split in splits:
        mine = sorted(i for i, name in zip(ids, names, strict=True) if name == split)
        quota = getattr(recipe, split)
        found += sorted(mine, key=lambda i: _share(recipe.split_seed, i))[:quota] if quota else mine
    return found


def _share(seed: int, name: str) -> float:
    """A number in 0..1 that belongs to a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) / 2**64


def _centre_crop(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """The largest middle rectangle (left, top, width, height) of that aspect, in whole pixels."""
    wide, high = min(width, round(height * to_width / to_height)), min(height, round(width * to_height / to_width))
    return (width - wide) // 2, (height - high) // 2, wide, high


def _pinhole_like(camera: Camera) -> Camera:
    """A pinhole camera of the same picture size and focal length, principal point in the middle."""
    fx, fy = camera.params[:2]
    return Camera("pinhole", (fx, fy, (camera.width - 1) / 2, (camera.height - 1) / 2), camera.width, camera.height)


def _under(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _described(descriptions: list[dict], begin: float, end: float) -> str:
    """What annotators wrote for these seconds of the take; where nothing falls inside, the last sentence before."""
    inside = [d["text"].strip() for d in descriptions if begin <= d["timestamp"] < end]
    before = [d["text"].strip() for d in descriptions if d["timestamp"] < begin]
    return " ".join(inside or before[-1:])
