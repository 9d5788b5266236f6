"""Depth that lies on disk beside an exo video, brought to a clip's frames, rectangle and size.

Three kinds are known. "range" is what the simulator writes: an .npz with `static_depth` [H, W] and `dynamic_depth` [N, H, W] (inf where
nothing moves), metres along the ray; it brings the true dynamic mask. "pinhole-z" is EgoX's: a folder with one .npy a frame, z-depth that
networks estimated as if the picture were a pinhole's. "z-mm" is H2O's: a folder with one 16-bit PNG a frame, z-depth in millimetres.

Depth is sampled at the nearest pixel: an average over an edge is the depth of nothing. Unknown is 0 or infinity (MoGe writes that where
its mask ends, renderers where a ray leaves the scene). NaN is refused: some sensors mean "unknown" by it, but what networks and
conversions leave behind them when they break looks the same (our reading).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from egomill.kernels.cameras import Camera
from egomill.kernels.depth import pinhole_z_to_range
from egomill.schemas.outcome import Rejected
from egomill.tasks.media import pictures, video, views
from egomill.tasks.media.untrusted import Bad, inside, load_npy, npz

KINDS = ("range", "pinhole-z", "z-mm")


class Sidecar(NamedTuple):
    """Depth float32 [F, h, w], metres along the ray (0 unknown); dynamic bool [F, h, w], or None where the files do not say."""

    depth: ndarray
    dynamic: ndarray | None


class _Bad(Exception):
    """A file is not what its kind promises."""


def read(clip: dict, camera: Camera, allow: tuple[str, ...] = ()) -> Sidecar | Rejected | None:
    """The clip's depth at the exo `camera`'s size (the clip's exo camera, rescaled). None where no depth lies on disk. `allow`: folders
    outside of the data set that it may lie in.

    Rejected: depth_sidecar_invalid (kind, shape, dtype, missing frames, NaN or negative numbers), depth_empty (nothing known),
    depth_scale (what moves lies behind what stands still).
    """
    if not clip["depth_path"]:
        return None
    numbers = views.frame_numbers(clip)
    try:
        path = inside(Path(clip["root"]), clip["depth_path"], allow)
        info = pictures.reader(Path(clip["root"]) / clip["exo_video"]).info
        at = Nearest((info.width, info.height), *views.source_pixels(clip, camera))
        if clip["depth_kind"] == "range":
            found = _range(path, numbers, at)
        elif clip["depth_kind"] == "pinhole-z":
            found = Sidecar(_pinhole(path, numbers, at) * _stretch(clip, camera, at), None)
        elif clip["depth_kind"] == "z-mm":
            found = Sidecar(_millimetres(path, numbers, at) * _stretch(clip, camera, at), None)
        else:
            raise _Bad(f"kind {clip['depth_kind']!r} is none of {', '.join(KINDS)}")
    except Bad as bad:
        return bad.rejected
    except video.VideoError as error:
        return Rejected("video_undecodable", str(error))
    except (_Bad, OSError, ValueError) as error:
        return Rejected("depth_sidecar_invalid", f"{clip['depth_path']}: {error}")
    if not (found.depth > 0).any():
        return Rejected("depth_empty", f"{clip['depth_path']}: no known depth in frames {numbers[0]}..{numbers[-1]}")
    return found


class Nearest(NamedTuple):
    """Sampling of arrays that lie over a source video of `size` (width, height) at its pixels x, y [h, w]."""

    size: tuple[int, int]
    x: ndarray
    y: ndarray

    def __call__(self, array: ndarray) -> ndarray:
        """array [..., H, W] at the nearest pixels: [..., h, w]; 0 outside.

        The array has the video's size, or shows the same field smaller or larger, or is as high and wider: then the video was cut out of
        its middle (EgoX: video of 784 px, depth of 796).
        """
        (width, height), (rows, columns) = self.size, array.shape[-2:]
        x, y = self.x + 0.5, self.y + 0.5
        if rows == height and columns >= width:
            x = x + (columns - width) / 2
        elif abs(columns * height / (rows * width) - 1) < 0.01:
            x, y = x * columns / width, y * rows / height
        else:
            raise _Bad(f"depth {columns}x{rows} does not fit a video of {width}x{height}")
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        row, column = (np.where(inside, np.floor(v), 0).astype(int) for v in (y, x))
        return np.where(inside, array[..., row, column], array.dtype.type(0))


def _stretch(clip: dict, camera: Camera, at: Nearest) -> ndarray:
    """Range over z-depth [h, w], by the lens that the depth was estimated behind (the source's, where the recipe undistorts)."""
    lens = Camera.from_dict(json.loads(clip["exo_lens"])) if clip["exo_lens"] else camera
    stretch = pinhole_z_to_range(torch.ones(lens.height, lens.width), lens, clip["depth_focal"]).numpy()
    return at(stretch) if clip["exo_lens"] else stretch


def _range(path: Path, numbers: ndarray, at: Nearest) -> Sidecar:
    with npz(path, "static_depth", "dynamic_depth") as arrays:
        if "static_depth" not in arrays.heads:
            raise _Bad("no static_depth in it")
        static = _checked(arrays.pictures("static_depth", [0], video.MAX_PIXELS)[0], "static_depth")
        depth = np.repeat(at(static)[None], len(numbers), axis=0)
        head = arrays.heads.get("dynamic_depth")
        if head is None:
            return Sidecar(depth, None)
        if len(head.shape) != 3 or head.shape[1:] != static.shape or head.dtype.kind != "f":
            raise _Bad(f"dynamic_depth is {head.dtype} {head.shape} beside a static depth of {static.shape}")
        near = arrays.pictures("dynamic_depth", numbers, video.MAX_PIXELS, at).astype(np.float32)
    if np.isnan(near).any() or (near < 0).any():
        raise _Bad("dynamic_depth holds NaN or negative numbers")
    moving = np.isfinite(near) & (near > 0) & (depth > 0)
    if moving.any() and (near > 1.2 * depth)[moving].mean() > 0.9:
        raise Bad("depth_scale", f"{path.name}: what moves lies behind what stands still, as in inverse depth; metres are asked for")
    dynamic = np.isfinite(near) & (near > 0) & ((near < depth) | (depth == 0))
    return Sidecar(np.where(dynamic, near, depth), dynamic)


def _pinhole(folder: Path, numbers: ndarray, at: Nearest) -> ndarray:
    return np.stack([at(_checked(load_npy(folder / f"{n:05d}.npy", video.MAX_PIXELS), f"frame {n}")) for n in numbers])


def _millimetres(folder: Path, numbers: ndarray, at: Nearest) -> ndarray:
    files = pictures.numbered(folder)
    if numbers[-1] >= len(files):
        raise _Bad(f"{len(files)} pictures, and number {numbers[-1]} is asked for")
    return np.stack([at(pictures.millimetres(files[n])) for n in numbers])


def _checked(array: ndarray, name: str) -> ndarray:
    """One depth picture as float32, 0 where unknown (0 or infinite). NaN and negative depth are faults."""
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise _Bad(f"{name} is {array.dtype} {array.shape}, not a picture of depths")
    if np.isnan(array).any() or (array < 0).any():
        raise _Bad(f"{name} holds NaN or negative numbers; unknown depth is 0 or infinite")
    with np.errstate(over="ignore"):
        metres = array.astype(np.float32)
    return np.where(np.isinf(metres), np.float32(0), metres)
