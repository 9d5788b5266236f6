"""In-memory clips for pre-training: one call, one synthetic (exo, ego) clip with exact geometry, nothing written anywhere.

The pictures are cast on a half-pixel lattice and filtered, so that a 128-px clip looks like a video that was scaled down, not like one
that was rendered small; depth and masks are still those of the ray through each pixel's centre.
"""

from dataclasses import dataclass

import numpy as np

from egomill.kernels.cameras import ARIA_RGB_TYPICAL, GOPRO_TYPICAL, Camera, aria_sensor_to_stored
from egomill.scenes.captions import caption
from egomill.scenes.render import lattice, picture, render
from egomill.scenes.world import EXO, make_scene

DISC = 0.535  # radius of the head camera's vignette, in picture widths
HORIZON = 12.0  # seconds of plan that a clip is cut from


@dataclass(frozen=True)
class SceneClip:
    """F frames of an exo and the ego camera. Depth: metres along the ray, 0 where the lens sees nothing. Colours RGB."""

    exo: np.ndarray  # uint8 [F, H, W, 3]
    ego: np.ndarray  # uint8 [F, S, S, 3], portrait, vignetted
    exo_depth: np.ndarray  # float32 [F, H, W]
    exo_dynamic: np.ndarray  # bool [F, H, W]: the person, and what is handled in this clip
    ego_depth: np.ndarray  # float32 [F, S, S]; also below the vignette
    ego_dynamic: np.ndarray  # bool [F, S, S]
    exo_camera: Camera
    ego_camera: Camera
    T_world_exo: np.ndarray  # float64 [4, 4]
    T_world_ego: np.ndarray  # float64 [F, 4, 4], of the landscape sensor frame
    caption: str


def sample_clip(
    seed: int, frames: int = 9, fps: float = 10.0, exo_size: tuple[int, int] = (224, 128), ego_size: int = 128, exo_index: int = 0
) -> SceneClip:
    """The clip of a seed: some moment of that seed's scene, `frames` pictures at `fps`, seen by exo camera `exo_index` (0..3) and the head.

    exo_size: (width, height). Deterministic. ValueError on an unknown camera or an empty clip.
    """
    if not 0 <= exo_index < len(EXO) or frames < 1 or fps <= 0:
        raise ValueError(f"clip of seed {seed}: camera {exo_index} of {len(EXO)}, {frames} frames at {fps} fps")
    rng = np.random.default_rng([seed, 79])
    length = (frames - 1) / fps
    start = float(rng.uniform(0.0, max(HORIZON - length, 0.0)))
    times = start + np.arange(frames) / fps
    scene = make_scene(seed, max(HORIZON, length + 1.0), (start, start + length))
    focal = float(np.round(rng.uniform(1744, 1814)))
    exo_camera = Camera(GOPRO_TYPICAL.model, (focal, focal, *GOPRO_TYPICAL.params[2:]), 3840, 2160).rescale(*exo_size)
    ego_camera = aria_sensor_to_stored(ARIA_RGB_TYPICAL, ego_size)
    T_world_exo = scene.T_world_exo[EXO[exo_index]]
    exo_grid, ego_grid = lattice(exo_camera, True), lattice(ego_camera, True)
    base = render(scene, exo_grid, T_world_exo, None)
    moments = [scene.moment(float(t)) for t in times]
    exo = [picture(scene, exo_grid, render(scene, exo_grid, T_world_exo, moment, base)) for moment in moments]
    ego = [picture(scene, ego_grid, render(scene, ego_grid, moment.T_world_ego, moment, ego=True), DISC) for moment in moments]
    exo_rgb, exo_depth, exo_dynamic = (np.stack(column) for column in zip(*exo, strict=True))
    ego_rgb, ego_depth, ego_dynamic = (np.stack(column) for column in zip(*ego, strict=True))
    return SceneClip(
        exo_rgb,
        ego_rgb,
        exo_depth,
        exo_dynamic,
        ego_depth,
        ego_dynamic,
        exo_camera,
        ego_camera,
        T_world_exo,
        np.stack([moment.T_world_ego for moment in moments]),
        caption(scene, start, start + length),
    )
