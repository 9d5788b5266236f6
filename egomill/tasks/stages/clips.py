"""Which windows of which cameras become clips, and why.

Geometry first: every exo camera is ranked by how much of the wearer's view it can see, before anything is decoded. Only the best ones'
frames are then read, small, in one pass a camera, for motion, sharpness, exposure and for what covers the lens: the take separator that
somebody holds before it, or somebody who passes. Every candidate becomes a row, taken or not, with the reason; `selected` then applies the
recipe's quotas.
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
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.watch import lasts
from egomill.tasks.media import video, views

SPLITS = ("train", "test", "unseen")
READS = ("take_uid take_name root split fps frames ego_video ego_camera T_world_ego exo files task descriptions").split()  # noqa: SIM905
LOOK = 112  # rows of the pictures that are judged
COVERED = (50, 28)  # width, height in px of the pictures on which it is seen whether something covers the lens
COVERED_RATE = 10.0  # of them a second; an hour of them is 150 MB
COVERED_SECONDS = 10.0  # the period over which a picture is a usual one; what covers the lens for over half of it is not noticed
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
            self._look(take, [clip for clip in rows if clip["exo_cam"] == name and not clip["why"]])
        for clip in rows:
            clip["chosen"] = clip["why"] == "chosen"
        _keep_apart(rows)

    def _look(self, take: dict, windows: list[dict]) -> None:
        """Judge one camera's windows, in the order of time, on one pass through its video."""
        reader = video.Reader(Path(take["root"]) / windows[0]["exo_video"])
        crop = windows[0]["exo_crop"]
        size = (round(LOOK * crop[2] / crop[3]), LOOK)
        step = max(1, round(take["fps"] / COVERED_RATE))
        watched = range(0, take["frames"], step) if self.recipe.skip_covered else range(0)
        shown = {int(number) for clip in windows for number in views.frame_numbers(clip)}
        order = sorted(shown.union(watched))
        small, covering, waiting = {}, [], list(reversed(windows))
        for number, picture in zip(order, reader.pictures(order), strict=True):
            if number in watched:
                covering.append(video.resize(picture[None], COVERED)[0])
            if number in shown:
                small[number] = video.resize(picture[None], size, crop)[0]
            if waiting and number == views.frame_numbers(waiting[-1])[-1]:
                clip = waiting.pop()
                frames = torch.from_numpy(np.stack([small[int(n)] for n in views.frame_numbers(clip)]))
                dark, blown = quality.exposure(frames)
                clip["motion"] = float(quality.motion(frames).mean())
                clip["blur"] = float(quality.sharpness(frames).median())
                clip["exposure"] = float((dark + blown).max())
                small = {n: kept for n, kept in small.items() if waiting and n >= waiting[-1]["start"]}
        spans = _spans(np.stack(covering), step, take["fps"]) if covering else []
        for clip in windows:
            clip["why"] = self._pictures(clip, spans)

    def _geometry(self, clip: dict) -> str:
        """Why a window is not worth decoding, or ""."""
        if clip["pose_coverage"] < 1:
            return f"no ego pose for {round((1 - clip['pose_coverage']) * clip['frames'])} of {clip['frames']} frames"
        if clip["overlap"] < self.recipe.min_overlap:
            return f"overlap {clip['overlap']:.2f} < {self.recipe.min_overlap}"
        return ""

    def _pictures(self, clip: dict, covered: list[tuple[int, int]]) -> str:
        recipe = self.recipe
        last = views.frame_numbers(clip)[-1]
        for a, b in covered:
            if clip["start"] < b and a < last:
                return f"something covers the lens after frame {a} until frame {b}"
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


def _spans(pictures: np.ndarray, step: int, fps: float) -> list[tuple[int, int]]:
    """What covers the lens, each as the last frame before it (-1: none) and the first one after it (or the take's end).

    `pictures` [N, H, W, 3] are of every `step`-th frame.
    """
    period = round(COVERED_SECONDS * fps / step)
    edges = np.diff(quality.covered(torch.from_numpy(pictures), period).numpy().astype(int), prepend=0, append=0)
    begins, ends = (np.flatnonzero(edges == sign) * step for sign in (1, -1))
    return [(int(max(-1, a - step)), int(b)) for a, b in zip(begins, ends, strict=True)]


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
