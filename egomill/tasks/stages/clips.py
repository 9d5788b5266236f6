"""Which windows of which cameras become clips, and why.

Geometry first: every exo camera is ranked by how much of the wearer's view it can see, before anything is decoded. Only the best ones'
frames are then read, small, in one pass a camera, for motion, sharpness, exposure and for what covers the lens: the take separator that
somebody holds before it, or somebody who passes. Every candidate becomes a row, taken or not, with the reason; `selected` then applies the
recipe's quotas.

A clip holds one exo view, or with `clips.views` several of the same moment, in the order of their azimuth around the wearer (our reading).
What is known when: a `Source` is the take, opened; a `Candidate` is a window with its views, as geometry has it; a `Look` is what pictures
say of one view; a row is all of it, judged; quotas and splits strike some out, last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egomill.kernels import quality
from egomill.kernels.cameras import Camera
from egomill.schemas.config import Clips, Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import VIEW
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.watch import lasts
from egomill.tasks.media import h2o, pictures, video, views

SPLITS = ("train", "test", "unseen")  # "": of neither
READS = ("take_uid take_name root split fps frames ego_video ego_camera T_world_ego exo files task descriptions hands").split()  # noqa: SIM905
LOOK = 112  # rows of the pictures that are judged
COVERED = (50, 28)  # width, height in px of the pictures on which it is seen whether something covers the lens
COVERED_RATE = 10.0  # of them a second; an hour of them is 150 MB
COVERED_SECONDS = 10.0  # the period over which a picture is a usual one; what covers the lens for over half of it is not noticed
NEAR_SHARE = 0.05  # a camera whose picture the workspace fills less than this is too far away to show it well
CHOSEN = "chosen"


def stage(profile: Profile) -> Stage:
    """Candidate windows of every take, at the profile's sizes. Quotas are no part of it: they choose among rows."""
    usual = {"views": 1, "splits": "official"}  # as it always was: rows that are there stay current
    unsaid = {name for name, value in usual.items() if getattr(profile.clips, name) == value}
    recipe = profile.clips.model_dump(exclude={"train", "test", "unseen", *unsaid})
    return Stage("clips", {"takes": tuple(READS)}, recipe, partial(Windows, profile.clips))


@dataclass(frozen=True)
class ExoView:
    """An exo camera of a take at the recipe's size, and the columns that all of its windows share."""

    camera: Camera
    T_world_exo: Tensor  # [4, 4] float64
    columns: dict[str, Any]  # of `VIEW`, but for what is judged

    @property
    def name(self) -> str:
        return self.columns["exo_cam"]


@dataclass(frozen=True)
class Source:
    """A take, opened."""

    facts: dict[str, Any]  # its row
    fps: float
    stride: int
    ego_camera: Camera
    T_world_ego: Tensor  # [frames, 4, 4] float64, NaN where unknown
    views: tuple[ExoView, ...]
    descriptions: list[dict]
    sha256: dict[str, str]  # of its files


@dataclass(frozen=True)
class Candidate:
    """A window with its exo views in their order, as geometry has it."""

    columns: dict[str, Any]  # of the window
    views: tuple[tuple[ExoView, float], ...]  # with the share of the ego frustum that each sees
    unseen: str  # why no view of it is worth decoding, or ""

    @property
    def start(self) -> int:
        return self.columns["start"]

    @property
    def frames(self) -> np.ndarray:
        return views.frame_numbers(self.columns)


@dataclass(frozen=True)
class Look:
    """What pictures say of one view of a window; None where none was decoded."""

    motion: float | None = None
    blur: float | None = None
    exposure: float | None = None
    why: str = ""


class Windows:
    """A take in, its candidate clips out."""

    def __init__(self, recipe: Clips) -> None:
        self.recipe = recipe

    def __call__(self, row: dict) -> list[dict] | Rejected:
        take, recipe = row["takes"], self.recipe
        lasts(take["frames"] / take["fps"])
        source = opened(take, recipe)
        span = (recipe.frames - 1) * source.stride + 1
        starts = range(0, take["frames"] - span + 1, max(1, round(recipe.hop * source.fps)))
        if not starts:
            return Rejected("too_short", f"{take['frames']} frames, a window spans {span}")
        candidates = [one for start in starts for one in self._window(source, start)]
        try:
            looks = self._judge(source, candidates)
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        rows = self._limit(_keep_apart([_row(source, one, looks) for one in candidates]))
        if not any(clip["chosen"] for clip in rows):
            return Rejected("no_window", "; ".join(sorted({clip["why"] for clip in rows})))
        return rows

    def _window(self, source: Source, start: int) -> list[Candidate]:
        """The best exo views of one window, from geometry alone: each a candidate, or together one."""
        recipe, take = self.recipe, source.facts
        numbers = start + source.stride * np.arange(recipe.frames)
        T_world_ego = source.T_world_ego[numbers]
        known = torch.isfinite(T_world_ego).all(dim=-1).all(dim=-1)
        coverage = float(known.double().mean())
        split = split_of(take["split"], take["take_uid"], start, recipe)
        if recipe.splits != "official":
            split = h2o.unseen(recipe.splits, take["take_name"], int(numbers[0]), int(numbers[-1]), take["frames"])
        window = {
            "start": start,
            "stride": source.stride,
            "frames": recipe.frames,
            "fps": source.fps / source.stride,
            "split": split,
            "ego_camera": json.dumps(source.ego_camera.to_dict()),
            "T_world_ego": pack(T_world_ego.numpy()),
            "pose_coverage": coverage,
            "description": _described(source.descriptions, start / source.fps, (numbers[-1] + 1) / source.fps),
            **{name: take[name] for name in ("take_uid", "take_name", "root", "ego_video", "task")},
        }
        ranked = []
        for view in source.views:
            overlap = rank = 0.0
            if bool(known.any()):
                seen, facing = quality.overlap(view.camera, view.T_world_exo, source.ego_camera, T_world_ego[known])
                share = quality.workspace_share(view.camera, view.T_world_exo, T_world_ego[known]).mean()
                overlap = float(seen.mean())
                rank = overlap * float((3 + facing.mean()) / 4) * min(1.0, float(share) / NEAR_SHARE)
            ranked.append((-rank, view.name, (view, overlap)))
        best = [view for *_, view in sorted(ranked, key=lambda one: one[:2])]
        unseen = "" if coverage == 1 else f"no ego pose for {round((1 - coverage) * recipe.frames)} of {recipe.frames} frames"
        unseen = unseen if split else f"no part of the split by {recipe.splits}"
        if recipe.views == 1:
            return [Candidate(window, (view,), unseen) for view in best[: recipe.exo_cameras]]
        together = best[: recipe.views]
        if bool(known.any()):
            first = T_world_ego[known][0]
            together.sort(key=lambda view: quality.azimuth(view[0].T_world_exo, first, source.ego_camera.turns))
        return [Candidate(window, tuple(together), unseen)] if together else []

    def _judge(self, source: Source, candidates: list[Candidate]) -> dict[tuple[str, int], Look]:
        """{(camera, first frame): look} of every view of every candidate. Only what geometry leaves is decoded, each camera in one pass."""
        looks = {(view.name, one.start): Look(why=self._geometry(one, overlap)) for one in candidates for view, overlap in one.views}
        for name in sorted({cam for (cam, _), look in looks.items() if not look.why}):
            mine = [one for one in candidates if any(view.name == name for view, _ in one.views) and not looks[name, one.start].why]
            looks |= {(name, start): look for start, look in self._look(source, name, mine).items()}
        return looks

    def _look(self, source: Source, name: str, windows: list[Candidate]) -> dict[int, Look]:
        """Judge one camera's windows, in the order of time, on one pass through its video."""
        view = next(view for view in source.views if view.name == name)
        reader = pictures.reader(Path(source.facts["root"]) / view.columns["exo_video"])
        crop = view.columns["exo_crop"]
        size = (round(LOOK * crop[2] / crop[3]), LOOK)
        step = max(1, round(source.fps / COVERED_RATE))
        watched = range(0, source.facts["frames"], step) if self.recipe.skip_covered else range(0)
        shown = {int(number) for one in windows for number in one.frames}
        order = sorted(shown.union(watched))
        small, covering, waiting, looks = {}, [], list(reversed(windows)), {}
        for number, picture in zip(order, reader.pictures(order), strict=True):
            if number in watched:
                covering.append(video.resize(picture[None], COVERED)[0])
            if number in shown:
                small[number] = video.resize(picture[None], size, crop)[0]
            if waiting and number == waiting[-1].frames[-1]:
                one = waiting.pop()
                looks[one.start] = _looked(np.stack([small[int(n)] for n in one.frames]))
                small = {n: kept for n, kept in small.items() if waiting and n >= waiting[-1].start}
        spans = _spans(np.stack(covering), step, source.fps) if covering else []
        return {one.start: replace(looks[one.start], why=self._pictures(looks[one.start], one.frames, spans)) for one in windows}

    def _geometry(self, one: Candidate, overlap: float) -> str:
        """Why a view of a window is not worth decoding, or ""."""
        return one.unseen or (f"overlap {overlap:.2f} < {self.recipe.min_overlap}" if overlap < self.recipe.min_overlap else "")

    def _pictures(self, look: Look, frames: np.ndarray, covered: list[tuple[int, int]]) -> str:
        recipe = self.recipe
        assert look.motion is not None
        assert look.blur is not None
        assert look.exposure is not None
        for a, b in covered:
            if frames[0] < b and a < frames[-1]:
                return f"something covers the lens after frame {a} until frame {b}"
        if look.motion < recipe.min_motion:
            return f"motion {look.motion:.4f} < {recipe.min_motion}"
        if look.blur < recipe.min_sharpness:
            return f"sharpness {look.blur:.4f} < {recipe.min_sharpness}"
        if look.exposure > recipe.max_bad_exposure:
            return f"dark or blown {look.exposure:.2f} > {recipe.max_bad_exposure}"
        return CHOSEN

    def _limit(self, rows: list[dict]) -> list[dict]:
        """The rows, with no more of a take chosen than the recipe lets be: those with most overlap."""
        most = self.recipe.max_per_take
        chosen = sorted((clip for clip in rows if clip["chosen"]), key=lambda clip: (-clip["overlap"], clip["clip_id"]))
        over = {clip["clip_id"] for clip in chosen[most:]} if most else set()
        return [_struck(clip, f"the take gives {most} clips, with more overlap") if clip["clip_id"] in over else clip for clip in rows]


def opened(take: dict, recipe: Clips) -> Source:
    """A row of `takes` at the recipe's sizes."""
    files = json.loads(take["files"])
    return Source(
        facts=take,
        fps=take["fps"],
        stride=stride_of(take["fps"], recipe),
        ego_camera=Camera.from_dict(json.loads(take["ego_camera"])).rescale(recipe.ego_size, recipe.ego_size),
        T_world_ego=torch.from_numpy(unpack(take["T_world_ego"])),
        views=tuple(exo_view(recipe, name, exo, files) for name, exo in json.loads(take["exo"]).items()),
        descriptions=json.loads(take["descriptions"]),
        sha256={path: file["sha256"] for path, file in files.items()},
    )


def stride_of(fps: float, recipe: Clips) -> int:
    """Frames of a source of that rate for one of the clip."""
    return max(1, round(fps / recipe.fps))


def exo_view(recipe: Clips, name: str, exo: dict, files: dict) -> ExoView:
    """An exo camera of a take (an entry of its `exo`) at the recipe's size."""
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
    return ExoView(camera, T_world_exo, columns)


def split_of(official: str, take_uid: str, start: int, recipe: Clips) -> str:
    """train, test (a held-out window of a training take) or unseen (a window of a held-out take). Official splits stand; where there is
    none, takes are held out by hash. Stable: other takes or clips change nothing. All cameras' views of a window fall on one side, since
    they share the true ego video.
    """
    held_out = official in ("val", "test", "held-out") if official else _share(recipe.split_seed, take_uid) < recipe.unseen_fraction
    if held_out:
        return "unseen"
    return "test" if _share(recipe.split_seed, f"{take_uid}@{start}") < recipe.test_fraction else "train"


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


def _looked(pictures: np.ndarray) -> Look:
    """What a window's pictures of one view, uint8 [F, H, W, 3], say."""
    frames = torch.from_numpy(pictures)
    dark, blown = quality.exposure(frames)
    return Look(float(quality.motion(frames).mean()), float(quality.sharpness(frames).median()), float((dark + blown).max()))


def _row(source: Source, one: Candidate, looks: dict[tuple[str, int], Look]) -> dict:
    """A candidate as a row: its views that can be used, the first of them as the clip's own columns; with none, the first at all."""
    told = []
    for view, overlap in one.views:
        look = looks[view.name, one.start]
        judged = {"overlap": overlap, "motion": look.motion, "blur": look.blur, "exposure": look.exposure, "why": look.why}
        told.append({**view.columns, **judged})
    usable = [view for view in told if view["why"] == CHOSEN]
    first, *others = usable or told[:1]
    reasons = [f"{view['exo_cam']}: {view['why']}" for view in told if view["why"] != CHOSEN]
    why = first["why"] if len(told) == 1 else "; ".join([*([CHOSEN] if usable else []), *reasons])
    take = one.columns["take_uid"]
    return {
        "clip_id": f"{take}.{first['exo_cam']}.{one.start:06d}",
        **one.columns,
        **first,
        "videos": digest([source.sha256[path] for path in (*(v["exo_video"] for v in (first, *others)), one.columns["ego_video"])]),
        "chosen": bool(usable),
        "why": why,
        "more_views": [{name: view[name] for name in VIEW} for view in others] or None,
        "hands": source.facts["hands"],
    }


def _struck(clip: dict, why: str) -> dict:
    return {**clip, "chosen": False, "why": why}


def _spans(pictures: np.ndarray, step: int, fps: float) -> list[tuple[int, int]]:
    """What covers the lens, each as the last frame before it (-1: none) and the first one after it (or the take's end).

    `pictures` [N, H, W, 3] are of every `step`-th frame.
    """
    period = round(COVERED_SECONDS * fps / step)
    edges = np.diff(quality.covered(torch.from_numpy(pictures), period).numpy().astype(int), prepend=0, append=0)
    begins, ends = (np.flatnonzero(edges == sign) * step for sign in (1, -1))
    return [(int(max(-1, a - step)), int(b)) for a, b in zip(begins, ends, strict=True)]


def _keep_apart(rows: list[dict]) -> list[dict]:
    """The rows, where windows overlap (hop shorter than a clip) with no training window that shares frames with a held-out one."""

    def span(clip: dict) -> tuple[int, int]:
        return clip["start"], clip["start"] + (clip["frames"] - 1) * clip["stride"]

    def shares(clip: dict) -> bool:
        first, last = span(clip)
        return clip["split"] == "train" and clip["chosen"] and any(a <= last and first <= b for a, b in held_out)

    held_out = {span(clip) for clip in rows if clip["split"] == "test" and clip["chosen"]}
    return [_struck(clip, "shares frames with a held-out window") if shares(clip) else clip for clip in rows]


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


def _described(descriptions: Iterable[dict], begin: float, end: float) -> str:
    """What annotators wrote for these seconds of the take; where nothing falls inside, the last sentence before."""
    inside = [d["text"].strip() for d in descriptions if begin <= d["timestamp"] < end]
    before = [d["text"].strip() for d in descriptions if d["timestamp"] < begin]
    return " ".join(inside or before[-1:])
