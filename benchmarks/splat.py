"""Our splatter beside PyTorch3D's rasteriser on CPU, at equal settings, in one run, in seconds of processor time on one thread.

    python benchmarks/splat.py [--points 350000] [--size 448] [--json]

By default a smaller cloud is drawn: PyTorch3D compares every pixel with every point and takes about two minutes at full size on one thread.
"""

from __future__ import annotations

import json
import time
from typing import Annotated

import torch
import typer
from torch import Tensor

from egomill.kernels.cameras import aria_rgb, gopro
from egomill.kernels.footprint import sample_extent
from egomill.kernels.splat import splat


def room() -> tuple[Tensor, Tensor, Tensor]:
    """Points, colours and extents of a furnished room seen by a 784 x 448 exo camera: floor, back wall, boxes; 351,232 points."""
    camera = gopro(784, 448)
    rays, _ = camera.rays()
    y, z = rays[..., 1], rays[..., 2]
    depth = torch.minimum(torch.where(y > 0, 1.5 / y.clamp_min(1e-3), torch.inf), 5 / z.clamp_min(1e-3)).clamp_max(12)
    depth[180:330, 300:420], depth[200:400, 520:600] = 2.6, 3.4
    points = (rays * depth[..., None]).reshape(-1, 3)
    waves = torch.sin(3 * points) * 0.5 + 0.5
    checks = ((points * 3 + 0.2).floor().sum(-1) % 2)[:, None] * 0.4
    return points, (0.6 * waves + checks).clamp(0, 1), sample_extent(depth, camera).flatten()


def main(
    points: Annotated[int, typer.Option(help="How many of the cloud's points to draw; 350000 for all.")] = 20_000,
    size: Annotated[int, typer.Option(help="Width and height of the ego picture in pixels.")] = 448,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    torch.set_num_threads(1)
    places, colours, extent = room()
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[: min(points, len(places))]
    scale = (len(places) / len(chosen)) ** 0.5  # fewer points stand for more surface each
    places, colours, extent = places[chosen], colours[chosen], extent[chosen] * scale
    camera, pose = aria_rgb(size), torch.eye(4)
    pose[2, 3] = 1.0
    splat(places[:100], colours[:100], camera, pose, extent=extent[:100])  # remembers the lens
    seconds = []
    for _ in range(5):
        start = time.process_time()
        ours = splat(places, colours, camera, pose, extent=extent)
        seconds.append(time.process_time() - start)
    start = time.process_time()
    theirs = splat(places, colours, camera, pose, extent=extent, backend="pytorch3d")
    reference = time.process_time() - start
    both = ours.valid & theirs.valid
    found = {
        "speedup_vs_pytorch3d_cpu": reference / min(seconds),
        "psnr_db": float(-10 * torch.log10((ours.image - theirs.image)[both].square().mean().clamp_min(1e-12))),
        "seconds": min(seconds),
        "seconds_pytorch3d": reference,
        "validity_agrees": float((ours.valid == theirs.valid).float().mean()),
        "points": len(places),
        "size": size,
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:26} {value:.4g}")


if __name__ == "__main__":
    typer.run(main)
