"""Where hands are, as data sets and other programs wrote it down: 21 joints a hand (kernels/hands.py) for the frames of a clip.

    H2O            <cam>/hand_pose/000000.txt   [flag, 63 numbers] left, then right: m, in that camera's frame
    Ego-Exo4D      annotations/ego_pose/<split>/hand/{annotation,automatic}/<take_uid>.json   joints by name, m, in the take's world;
                   manual ones with the number of cameras that they were triangulated by
    files          hands/<take>/<camera>.npz   joints [frames, 2, 21, 3], m, in that exo camera's frame, NaN unknown: of another program

Which of them a take has stands in its column `hands` (hand_places.py). What is wrong with one is found when a clip is read, and keeps
nobody from the rest of the take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.hands import BONES, HANDS, JOINTS
from egomill.kernels.poses import inverse, transform
from egomill.schemas.config import Hands
from egomill.schemas.tensors import unpack
from egomill.tasks.media.h2o import EGO
from egomill.tasks.media.untrusted import Bad, below, inside, load_json, npz, numbers, read_numbers, regular

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
NAMES = ("wrist", *(f"{finger}_{n}" for finger in FINGERS for n in (1, 2, 3, 4)))
SIDES = ("left", "right")
KNUCKLE = 9  # the middle finger's
PALM = 0.03, 0.2  # m from the wrist to it, of any human being
BONE = 0.15  # m, the longest that is believed of any
REACH = 20.0  # m from a camera


@dataclass(frozen=True)
class Found:
    """Joints [F, 2, 21, 3] float32 in the exo camera's frame, and in the ego camera's (sensor) frame where they are known there."""

    exo: Tensor
    ego: Tensor | None
    said: str  # who said so


def read(clip: dict, frames: np.ndarray, settings: Hands, allow: tuple[str, ...] = ()) -> Found:
    """The hands of a clip's frames (numbers of the source videos) by its column `hands` and what the settings ask for.

    Bad("no_hands") where nothing of the kind is there, Bad("hands_invalid") where it is not as it should be.
    """
    told = json.loads(clip["hands"]) if clip["hands"] else {}
    if "fault" in told:
        raise Bad(*told["fault"])
    there = told.get("where", {})
    if settings.source == "files":
        if clip["exo_cam"] not in there.get("files", {}):
            raise Bad("no_hands", f"no hands/{clip.get('take_name')}/{clip['exo_cam']}.npz beside the take")
        path = there["files"][clip["exo_cam"]]
        return Found(_checked(_of_file(regular(Path(clip["root"]), path, allow), frames), path), None, "files")
    for kind, opening in KINDS.items():
        if kind in there:
            found = opening(clip, there[kind], frames, settings, allow)
            joints = {"exo": found.exo, **({} if found.ego is None else {"ego": found.ego})}
            for view, value in joints.items():
                _checked(value, f"{kind}, {view}")
            return found
    raise Bad("no_hands", "the data set has no hand annotations of this take: hands.source = files or landmarks finds them otherwise")


def _h2o(clip: dict, there: dict[str, str], frames: np.ndarray, settings: Hands, allow: tuple[str, ...]) -> Found:
    root = Path(clip["root"])
    ego = there.get(EGO)
    if clip["exo_cam"] not in there:
        raise Bad("no_hands", f"{clip['exo_cam']} has no hand_pose")
    exo = _of_texts(inside(root, there[clip["exo_cam"]], allow), root, frames, allow)
    return Found(exo, _of_texts(inside(root, ego, allow), root, frames, allow) if ego else None, "annotated (H2O)")


def _of_texts(folder: Path, root: Path, frames: np.ndarray, allow: tuple[str, ...]) -> Tensor:
    """H2O's files by frame; one that is missing knows nothing."""
    out = np.full((len(frames), HANDS, JOINTS, 3), np.nan, np.float32)
    for place, number in enumerate(frames):
        path = folder / f"{number:06d}.txt"
        if not os.path.lexists(path):
            continue
        if path.is_symlink():
            regular(root, below(root, path), allow)
        values = read_numbers(path, (2 * (1 + 3 * JOINTS),), "hands_invalid").reshape(HANDS, -1)
        if not np.isin(values[:, 0], (0, 1)).all():
            raise Bad("hands_invalid", f"{folder.name}/{path.name}: a flag is {values[:, 0].tolist()}, neither 0 nor 1")
        told = values[:, 0] == 1
        if (values[told, 1:] == 0).all(axis=1).any():
            raise Bad("hands_invalid", f"{folder.name}/{path.name}: a hand is said to be annotated, and all its numbers are zero")
        out[place, told] = values[told, 1:].reshape(-1, JOINTS, 3)
    return torch.from_numpy(out)


def _egoexo4d(clip: dict, there: dict[str, str], frames: np.ndarray, settings: Hands, allow: tuple[str, ...]) -> Found:
    root, kinds = Path(clip["root"]), [k for k in ("automatic", "manual") if settings.labels in (k, "both") and k in there]
    if not kinds:
        raise Bad("no_hands", f"no {settings.labels} hand annotation of this take")
    world = np.full((len(frames), HANDS, JOINTS, 3), np.nan)
    for kind in kinds:  # a manual joint goes before an automatic one
        found = _of_json(regular(root, there[kind], allow), frames, settings.min_views if kind == "manual" else 0)
        world = np.where(np.isnan(found), world, found)
    world[np.isnan(world[:, :, 0]).any(axis=-1)] = np.nan  # a hand without a wrist, as in the official reading
    joints = torch.from_numpy(world)
    T_exo_world, T_ego_world = (inverse(torch.from_numpy(unpack(clip[name]))) for name in ("T_world_exo", "T_world_ego"))
    return Found(
        transform(T_exo_world, joints).float(),
        transform(T_ego_world[:, None], joints).float(),
        f"annotated (Ego-Exo4D, {' and '.join(reversed(kinds))})",
    )


def _of_json(path: Path, frames: np.ndarray, min_views: int) -> np.ndarray:
    """World joints [F, 2, 21, 3] of an annotation of Ego-Exo4D: {frame: [{annotation3D: {name: {x, y, z, num_views_for_3d}}}]}."""
    by_frame = load_json(path, "hands_invalid")
    if not isinstance(by_frame, dict):
        raise Bad("hands_invalid", f"{path.name}: no dictionary by frame")
    places = {f"{side}_{name}": (h, j) for h, side in enumerate(SIDES) for j, name in enumerate(NAMES)}
    out = np.full((len(frames), HANDS, JOINTS, 3), np.nan)
    if odd := next((key for key in by_frame if not (key.isascii() and key.isdecimal())), None):
        raise Bad("hands_invalid", f"{path.name}: {odd[:50]!r} is no frame")
    for place, number in enumerate(frames):
        told = by_frame.get(str(number), [])
        if not isinstance(told, list) or not all(isinstance(one, dict) for one in told[:1]):
            raise Bad("hands_invalid", f"{path.name}, frame {number}: no list of annotations")
        joints = told[0].get("annotation3D") or {} if told else {}
        if not isinstance(joints, dict):
            raise Bad("hands_invalid", f"{path.name}, frame {number}: annotation3D is no dictionary of joints")
        for name, joint in joints.items():
            if name not in places:
                raise Bad("hands_invalid", f"{path.name}, frame {number}: {name[:50]!r} is no joint")
            if not isinstance(joint, dict):
                raise Bad("hands_invalid", f"{path.name}, frame {number}: {name} is no point")
            at = f"{path.name}, frame {number}, {name}"
            point = numbers([joint.get(axis) for axis in "xyz"], (3,), at, "hands_invalid")
            if min_views and numbers([joint.get("num_views_for_3d", 0)], (1,), at, "hands_invalid")[0] < min_views:
                continue
            out[(place, *places[name])] = point
    return out


KINDS: dict[str, Callable[[dict, dict[str, str], np.ndarray, Hands, tuple[str, ...]], Found]] = {"h2o": _h2o, "egoexo4d": _egoexo4d}


def _of_file(path: Path, frames: np.ndarray) -> Tensor:
    """`joints` of an .npz, by number of frame."""
    try:
        with npz(path, "joints") as arrays:
            if "joints" not in arrays.heads:
                raise ValueError("no array joints in it")
            shape, kind, *_ = arrays.heads["joints"]
            if kind.kind != "f":
                raise ValueError(f"joints are {kind}, and floats asked for")
            if shape[1:] == (HANDS, JOINTS, 3) and frames[-1] >= shape[0]:
                raise ValueError(f"{shape[0]} frames, and the clip ends with frame {frames[-1]}")
            found = arrays.items("joints", frames.tolist(), (HANDS, JOINTS, 3))
    except (OSError, ValueError) as error:
        raise Bad("hands_invalid", f"{path.name}: {error}") from None
    if np.isinf(found).any():
        raise Bad("hands_invalid", f"{path.name}: a joint is infinite")
    return torch.from_numpy(found.astype(np.float32))


def _checked(joints: Tensor, name: str) -> Tensor:
    """The joints. Bad where these are no hands in metres before a camera."""
    if joints.isinf().any() or (joints.abs() > REACH).any():
        raise Bad(
            "hands_invalid",
            f"{name}: a joint is {float(joints.nan_to_num().abs().max()):.4g} m away: metres in a camera's frame are asked for",
        )
    palm = (joints[:, :, KNUCKLE] - joints[:, :, 0]).norm(dim=-1)
    palm = palm[palm.isfinite()]
    if len(palm) and not PALM[0] <= float(palm.median()) <= PALM[1]:
        raise Bad(
            "hands_invalid", f"{name}: {float(palm.median()):.4g} m from wrist to middle knuckle, where hands have {PALM[0]} to {PALM[1]}"
        )
    bones = torch.stack([(joints[:, :, b] - joints[:, :, a]).norm(dim=-1) for a, b in BONES])
    bones = bones[bones.isfinite()]
    if len(bones) and float(bones.median()) > BONE / 2:
        raise Bad("hands_invalid", f"{name}: bones of {float(bones.median()):.4g} m: these are no 21 joints of a hand in the usual order")
    return joints


def seen(joints: Tensor) -> Any:
    """Frames [F] that show a hand: ten joints of one, as the official reading counts."""
    return (joints.isfinite().all(dim=-1).sum(dim=-1) >= 10).any(dim=-1)
