"""Depth that lies on disk beside an exo video, brought to a clip's frames, rectangle and size.

Two kinds are known. "range" is what the simulator writes: an .npz with `static_depth` [H, W] and `dynamic_depth` [N, H, W] (inf where nothing
moves), metres along the ray; it brings the true dynamic mask. "pinhole-z" is EgoX's: a folder with one .npy a frame, z-depth that networks
estimated as if the picture were a pinhole's.

Depth is sampled at the nearest pixel: an average over an edge is the depth of nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from egomill.kernels.cameras import Camera
from egomill.kernels.depth import pinhole_z_to_range
from egomill.schemas.outcome import Rejected
from egomill.tasks import video

KINDS = ("range", "pinhole-z")
# EgoX gave its networks the intrinsics of Ego-Exo4D's undistorted frames, whose focal length is 0.7 of the lens'.
PINHOLE_FOCAL = 0.7


class Sidecar(NamedTuple):
    """Depth float32 [F, h, w], metres along the ray (0 unknown); dynamic bool [F, h, w], or None where the files do not say."""

    depth: ndarray
    dynamic: ndarray | None


class _Bad(Exception):
    """A file is not what its kind promises."""


def read(clip: dict, camera: Camera) -> Sidecar | Rejected | None:
    """The clip's depth at the exo `camera`'s size (the clip's exo camera, rescaled). None where no depth lies on disk.

    Rejected: depth_sidecar_invalid (kind, shape, dtype, missing frames, NaN or negative numbers), depth_empty (nothing known).
    """
    if not clip["depth_path"]:
        return None
    path = Path(clip["root"]) / clip["depth_path"]
    numbers = clip["start"] + clip["stride"] * np.arange(clip["frames"])
    try:
        info = video.probe(Path(clip["root"]) / clip["exo_video"])
        window = Window((info.width, info.height), tuple(clip["exo_crop"]), (camera.width, camera.height))
        if clip["depth_kind"] == "range":
            found = _range(path, numbers, window)
        elif clip["depth_kind"] == "pinhole-z":
            z = torch.from_numpy(_pinhole(path, numbers, window))
            found = Sidecar(pinhole_z_to_range(z, camera, PINHOLE_FOCAL).numpy(), None)
        else:
            raise _Bad(f"kind {clip['depth_kind']!r} is none of {', '.join(KINDS)}")
    except video.VideoError as error:
        return Rejected("video_undecodable", str(error))
    except (_Bad, OSError, ValueError, KeyError, EOFError) as error:
        return Rejected("depth_sidecar_invalid", f"{clip['depth_path']}: {error}")
    if not (found.depth > 0).any():
        return Rejected("depth_empty", f"{clip['depth_path']}: no known depth in frames {numbers[0]}..{numbers[-1]}")
    return found


class Window(NamedTuple):
    """From the pixels of a picture of `size` (width, height) to those of a depth array: cut out `crop` and resize it to `out`."""

    source: tuple[int, int]
    crop: tuple[int, ...]
    out: tuple[int, int]

    def nearest(self, shape: tuple[int, int]) -> tuple[ndarray, ndarray]:
        """Rows and columns of a depth array of `shape` (height, width) that lie nearest to the output's pixels.

        The array has the source picture's size, or shows the same field smaller or larger, or is as high and wider: then the picture was cut
        out of its middle (EgoX: pictures of 784 px, depth of 796).
        """
        (width, height), (left, top, wide, high) = self.source, self.crop
        x = left + (np.arange(self.out[0]) + 0.5) * wide / self.out[0]
        y = top + (np.arange(self.out[1]) + 0.5) * high / self.out[1]
        if shape[0] == height and shape[1] >= width:
            x += (shape[1] - width) / 2
        elif abs(shape[1] * height / (shape[0] * width) - 1) < 0.01:
            x, y = x * shape[1] / width, y * shape[0] / height
        else:
            raise _Bad(f"depth {shape[1]}x{shape[0]} does not fit a video of {width}x{height}")
        return np.floor(y).astype(int).clip(0, shape[0] - 1), np.floor(x).astype(int).clip(0, shape[1] - 1)


def _range(path: Path, numbers: ndarray, window: Window) -> Sidecar:
    with np.load(path, allow_pickle=False) as arrays:
        static = _checked(arrays["static_depth"], "static_depth")
        moving = arrays["dynamic_depth"] if "dynamic_depth" in arrays.files else None
    rows, columns = window.nearest(static.shape)
    still = static[np.ix_(rows, columns)]
    depth = np.repeat(still[None], len(numbers), axis=0)
    if moving is None:
        return Sidecar(depth, None)
    if moving.ndim != 3 or moving.shape[1:] != static.shape or moving.dtype.kind != "f":
        raise _Bad(f"dynamic_depth is {moving.dtype} {moving.shape} beside a static depth of {static.shape}")
    if numbers[-1] >= len(moving):
        raise _Bad(f"frame {numbers[-1]} asked of {len(moving)}")
    near = moving[np.ix_(numbers, rows, columns)].astype(np.float32)
    if np.isnan(near).any() or (near < 0).any():
        raise _Bad("dynamic_depth holds NaN or negative numbers")
    dynamic = np.isfinite(near) & (near > 0) & ((near < depth) | (depth == 0))
    return Sidecar(np.where(dynamic, near, depth), dynamic)


def _pinhole(folder: Path, numbers: ndarray, window: Window) -> ndarray:
    frames = []
    for number in numbers:
        array = _checked(np.load(folder / f"{number:05d}.npy", allow_pickle=False), f"frame {number}")
        rows, columns = window.nearest(array.shape)
        frames.append(array[np.ix_(rows, columns)])
    return np.stack(frames)


def _checked(array: ndarray, name: str) -> ndarray:
    """One depth picture as float32. 0 is unknown; NaN, inf and negative depth are faults."""
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise _Bad(f"{name} is {array.dtype} {array.shape}, not a picture of depths")
    if not np.isfinite(array).all() or (array < 0).any():
        raise _Bad(f"{name} holds numbers that are not finite, or negative")
    return array.astype(np.float32)
