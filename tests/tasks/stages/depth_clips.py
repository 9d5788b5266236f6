"""Small clips on disk for the tests of depth and of what follows from it: a simulated scene, with its true depth as a sidecar."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from egomill.kernels.cameras import Camera
from egomill.scenes.clip import SceneClip, sample_clip
from egomill.schemas.tensors import pack
from egomill.tasks.media import video


def scene_row(folder: Path, seed: int = 3, frames: int = 5, ego_size: int = 128) -> tuple[dict, SceneClip]:
    """A row of `clips` whose videos and range sidecar lie in `folder`, and the scene's clip itself."""
    clip = sample_clip(seed, frames, fps=5.0, exo_size=(224, 128), ego_size=ego_size)
    (folder / "exo.mp4").write_bytes(video.encode(clip.exo, 5.0, lossless=True))
    (folder / "ego.mp4").write_bytes(video.encode(clip.ego, 5.0, lossless=True))
    static = np.where(clip.exo_dynamic, np.inf, clip.exo_depth).min(axis=0)
    static = np.where(np.isfinite(static), static, 0).astype(np.float32)
    moving = np.where(clip.exo_dynamic, clip.exo_depth, np.inf).astype(np.float16)
    np.savez_compressed(folder / "depth.npz", static_depth=static, dynamic_depth=moving)
    return row(folder, clip.exo_camera, clip.ego_camera, clip.T_world_exo, clip.T_world_ego), clip


def row(folder: Path, exo: Camera, ego: Camera, T_world_exo: np.ndarray, T_world_ego: np.ndarray) -> dict:
    return {
        "clip_id": "take.cam01.0",
        "root": str(folder),
        "split": "train",
        "exo_cam": "cam01",
        "exo_video": "exo.mp4",
        "ego_video": "ego.mp4",
        "exo_camera": json.dumps(exo.to_dict()),
        "ego_camera": json.dumps(ego.to_dict()),
        "exo_lens": "",
        "exo_crop": [0, 0, exo.width, exo.height],
        "start": 0,
        "stride": 1,
        "frames": len(T_world_ego),
        "fps": 5.0,
        "T_world_exo": pack(T_world_exo),
        "T_world_ego": pack(T_world_ego),
        "depth_path": "depth.npz",
        "depth_kind": "range",
        "depth_focal": 1.0,
        "depth_files": "digest",
    }
