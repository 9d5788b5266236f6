"""The one reading path of a clip's two views: which frames, which rectangle, which size.

Everything that looks at a clip's pixels (depth, priors, latents, scores, the report) reads them here, through the transform that the clip's
cameras were carried through; so pictures, depth and rays cannot drift apart.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy import ndarray

from egomill.kernels.cameras import Camera
from egomill.kernels.fill import push_pull
from egomill.schemas.tensors import unpack
from egomill.tasks.media import pictures, video

_WINDOW = ("clip_id", "root", "start", "stride", "frames")
EXO_COLUMNS = (*_WINDOW, "exo_video", "exo_crop", "exo_camera", "exo_lens")
EGO_COLUMNS = (*_WINDOW, "ego_video", "ego_camera")


def of(clip: dict) -> list[dict]:
    """A clip's exo views in their order: each a clip of that view alone, which all that takes a clip's exo view takes."""
    return [clip, *({**clip, **view, "more_views": None} for view in clip.get("more_views") or ())]


def frame_numbers(clip: dict) -> ndarray:
    """The clip's frames as numbers of its source videos."""
    return clip["start"] + clip["stride"] * np.arange(clip["frames"])


def exo_camera(clip: dict) -> Camera:
    """The exo camera at the clip's exo size."""
    return Camera.from_dict(json.loads(clip["exo_camera"]))


def ego_camera(clip: dict) -> Camera:
    """The ego camera at the clip's ego size."""
    return Camera.from_dict(json.loads(clip["ego_camera"]))


def read_exo(clip: dict, size: tuple[int, int] | None = None) -> ndarray:
    """uint8 [F, H, W, 3] of the exo view at `size` (width, height; default the clip's). Errors: VideoError."""
    camera = exo_camera(clip)
    width, height = size or (camera.width, camera.height)
    path = Path(clip["root"]) / clip["exo_video"]
    if not clip["exo_lens"]:
        return pictures.read(path, frame_numbers(clip), (width, height), clip["exo_crop"])
    camera, lens = camera.rescale(width, height), Camera.from_dict(json.loads(clip["exo_lens"]))
    x, y = source_pixels(clip, camera)
    shrink = min(1.0, 1.5 * camera.params[0] / lens.params[0])  # by area first, as remapping alone would alias; the rim is stretched
    small = (round(lens.width * shrink), round(lens.height * shrink))
    x, y = (((v + 0.5) * n / full - 0.5).astype(np.float32) for v, n, full in zip((x, y), small, (lens.width, lens.height), strict=True))
    return np.stack([cv2.remap(frame, x, y, cv2.INTER_LINEAR) for frame in pictures.read(path, frame_numbers(clip), small)])


def read_ego(clip: dict, size: int | None = None) -> ndarray:
    """uint8 [F, H, W, 3] of the true ego view, portrait, at `size` px square. Errors: VideoError."""
    side = size or ego_camera(clip).width
    return pictures.read(Path(clip["root"]) / clip["ego_video"], frame_numbers(clip), (side, side))


def ego_disc(clip: dict) -> ndarray:
    """bool [H, W]: where the ego lens shows anything."""
    return ego_camera(clip).rays()[1].numpy()


def read_prior(clip: dict, prior: dict) -> tuple[ndarray, ndarray, ndarray]:
    """A row of `priors` opened: pictures with black holes uint8 [F, H, W, 3], validity [F, H, W], and the pictures with their holes filled
    (push-pull inside the lens' disc; outside it black, which is what a fisheye's corners are known to be).
    """
    holes, valid = video.decode(prior["video"]), unpack(prior["valid"])
    filled = push_pull(torch.from_numpy(holes), torch.from_numpy(valid)).numpy()
    return holes, valid, np.where(ego_disc(clip)[..., None], filled, 0).astype(np.uint8)


def source_pixels(clip: dict, camera: Camera) -> tuple[ndarray, ndarray]:
    """Where the pixels of the clip's exo view at `camera`'s size lie in the source video: x, y [h, w] (pixel centres at integers).

    A crop and a resize, or, where the recipe undistorts (`exo_lens` holds the video's own camera), through both lenses.
    """
    if clip["exo_lens"]:
        rays, _ = camera.rays(torch.float64)
        pixels, _ = Camera.from_dict(json.loads(clip["exo_lens"])).project(rays)
        return pixels[..., 0].numpy(), pixels[..., 1].numpy()
    left, top, width, height = clip["exo_crop"]
    x = left + (np.arange(camera.width) + 0.5) * width / camera.width - 0.5
    y = top + (np.arange(camera.height) + 0.5) * height / camera.height - 0.5
    return tuple(np.meshgrid(x, y))  # type: ignore[return-value]
