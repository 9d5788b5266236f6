"""How exact the cameras are, against projectaria-tools and OpenCV, beside the released EgoX formulas (re-derived from their description).

    python benchmarks/cameras.py [--json]

The Aria calibration of a real take is used where EGOMILL_REAL_DATA names a folder that has one, else a typical lens.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize

from egomill.kernels.cameras import ARIA_RGB_TYPICAL, Camera, aria_sensor_to_stored
from egomill.kernels.directions import ego_rays
from egomill.kernels.exo_lens import exo_lens

ANNOTATED = 1247.9745  # px at 3840: K of the annotations, of the undistorted picture
EXO_COEFFICIENTS = (0.036902, 0.057131, -0.057154, 0.018458)
# What the released code takes for the Aria lens (nearly that of a SLAM camera), in the order in which it hands the numbers over.
RELEASED = (-0.0234, 0.0939, -0.0609, 0.00533, 0.00334, -0.000636, 0.000509, -0.000475, -0.00113, -0.000257, 0.0000933, 0.0000942)


def degrees(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(2 * torch.asin(((normalize(a, dim=-1) - normalize(b, dim=-1)).norm(dim=-1) / 2).clamp_max(1)))


def aria() -> tuple[Camera, str]:
    """The RGB lens at 2880 px, and where it is from."""
    root = os.environ.get("EGOMILL_REAL_DATA", "")
    for path in sorted(Path(root).rglob("online_calibration.jsonl")) if root else []:
        with path.open() as lines:
            cameras = json.loads(next(lines))["CameraCalibrations"]
        f, *rest = next(c for c in cameras if c["Label"] == "camera-rgb")["Projection"]["Params"]
        return Camera("fisheye624", (f, f, *rest), 2880, 2880, max_theta=math.radians(75)), path.parents[1].name
    return replace(ARIA_RGB_TYPICAL, max_theta=math.radians(75)), "typical"


def scattered(camera: Camera, count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([camera.width, camera.height]) - 0.5


def projectaria(camera: Camera):
    from projectaria_tools.core import calibration
    from projectaria_tools.core.sophus import SE3

    numbers = np.array([camera.params[0], *camera.params[2:]])
    kind = calibration.CameraModelType.FISHEYE624
    return calibration.CameraCalibration("rgb", kind, numbers, SE3(), camera.width, camera.height, None, math.pi, "")


def released_ego_tokens() -> Tensor:
    """Ray directions [28, 28, 3] (sensor frame, portrait grid) as the released inference makes them.

    A virtual 512-px pinhole (150, 255.5) is scaled by 1/8 onto a 56-px grid that stands for 448 px, pixel centres at integers; its
    "distortion" is undone by OpenCV's rational model; the grid is averaged two by two and turned.
    """
    v, u = np.meshgrid(np.arange(56.0), np.arange(56.0), indexing="ij")
    K = np.array([[150 / 8, 0, 255.5 / 8], [0, 150 / 8, 255.5 / 8], [0, 0, 1]])
    plane = cv2.undistortPoints(np.stack([u, v], -1).reshape(-1, 1, 2), K, np.array(RELEASED)).reshape(56, 56, 2)
    rays = normalize(torch.from_numpy(np.dstack([plane, np.ones((56, 56))])), dim=-1)
    return torch.rot90(rays.reshape(28, 2, 28, 2, 3).mean(dim=(1, 3)), -1, (0, 1))


def measure() -> dict:
    lens, source = aria()
    pixels = scattered(lens)
    rays, valid = lens.unproject(pixels)
    back = lens.project(rays)[0]
    reference, few = projectaria(lens), slice(0, 3000)
    theirs = torch.from_numpy(np.array([reference.project_no_checks(ray) for ray in rays[few].numpy()]))

    stored = aria_sensor_to_stored(lens)
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    centres = torch.stack([16 * column + 7.5, 16 * row + 7.5], dim=-1).double()
    ours, inside = stored.unproject(centres)
    landscape = torch.stack([centres[..., 1], 447 - centres[..., 0]], dim=-1)  # portrait to sensor, at 448 px
    at_2880 = ((landscape + 0.5) / 448 * 1408 - 0.5 + 0.5) / 0.5 - 0.5 + 32
    truth = torch.from_numpy(np.array([reference.unproject_no_checks(p) for p in at_2880.reshape(-1, 2).numpy()])).reshape(28, 28, 3)
    tokens = ego_rays(stored, torch.eye(4, dtype=torch.float64)[None])[0][0]

    exo = exo_lens([[ANNOTATED, 0, 1920], [0, ANNOTATED, 1080], [0, 0, 1]], EXO_COEFFICIENTS)
    f, _, cx, cy, *k = exo.params
    K, places = np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]]), scattered(exo)
    exo_rays, exo_valid = exo.unproject(places)
    exo_valid = exo_valid & (exo_rays[:, 2] > 0.1)
    plane = (exo_rays[:, :2] / exo_rays[:, 2:])[exo_valid].numpy()[:, None]
    opencv = torch.from_numpy(cv2.fisheye.distortPoints(plane, K, np.array(k))[:, 0])
    spot = torch.tensor([[cx + 0.75 * cx, cy]], dtype=torch.float64)  # three quarters of the half-width
    undistorted = cv2.fisheye.undistortPoints(spot.numpy()[:, None], K, np.array(k))[0, 0]
    straight = torch.tensor([[0.75 * cx / ANNOTATED, 0.0, 1.0]], dtype=torch.float64)
    exo_ray = exo.unproject(spot)[0]
    return {
        "aria_roundtrip_px": float((back - pixels)[valid].abs().max()),
        "aria_vs_reference_px": float((lens.project(rays)[0][few] - theirs)[valid[few]].abs().max()),
        "kb_vs_reference_px": float((exo.project(exo_rays)[0][exo_valid] - opencv).abs().max()),
        "ego_ray_error_deg": float(degrees(ours, truth)[inside].max()),
        "exo_ray_error_deg": float(degrees(exo_ray, torch.tensor([[*undistorted, 1.0]], dtype=torch.float64))),
        "released_ego_ray_error_deg": float(degrees(released_ego_tokens(), tokens)[inside].mean()),
        "released_exo_ray_error_deg": float(degrees(straight, exo_ray)),
        "calibration": source,
    }


def main(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    torch.set_num_threads(1)
    found = measure()
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {value if isinstance(value, str) else f'{value:.3g}'}")


if __name__ == "__main__":
    typer.run(main)
