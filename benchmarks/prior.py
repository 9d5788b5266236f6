"""Our priors beside the shipped ones on the real EgoX clips, from the same depth: how much of the ego disc they cover, and how well
they match the true view.

    EGOMILL_REAL_DATA=... python benchmarks/prior.py [--page OUT.png] [--every 6] [--landmarks] [--json]

Colours: the exo and the ego camera differ in exposure and white balance, so that per clip and channel a gain and an offset are fitted
on the pixels that both priors cover, for each prior by itself. PSNR is taken there. A shipped prior has no mask; what is darker than
luma 16 counts as empty. `head_scale` is the depth of the head over its distance; with --landmarks the room is brought to what the true
view shows at rest first (`depth.scale = "landmarks"`), by the factor `room_scale`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from egomill.kernels.background import accumulate, background_mask
from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.depth import at_head, metric_scale, pinhole_z_to_range
from egomill.kernels.exo_lens import exo_lens
from egomill.kernels.landmarks import follow, triangulate
from egomill.kernels.poses import from_rt, inverse
from egomill.kernels.prior import coverage, render_cloud, room_cloud
from egomill.tasks.media import video

EXO_COEFFICIENTS = (0.036902, 0.057131, -0.057154, 0.018458)
FRAMES = 49


class Clip(NamedTuple):
    """One clip of the EgoX layout: videos uint8, range [F, H, W] in metres, cameras and poses."""

    name: str
    exo: Tensor
    range: Tensor
    camera: Camera
    T_world_exo: Tensor
    T_world_ego: Tensor
    truth: Tensor
    shipped: Tensor


def read(path: Path) -> Tensor:
    return torch.from_numpy(video.read(path, range(FRAMES)))


def clips(root: Path) -> Iterator[Clip]:
    for entry in json.loads((root / "meta.json").read_text())["test_datasets"]:
        name = Path(entry["exo_path"]).parent.name
        lens = exo_lens(entry["camera_intrinsics"], EXO_COEFFICIENTS)
        camera = lens.rescale(796, 448).crop(6, 0, 784, 448)  # the clip is the middle of the 796 px
        files = sorted((root / "depth_maps" / name).glob("*.npy"))[:FRAMES]
        z = torch.from_numpy(np.stack([np.load(file, allow_pickle=False) for file in files]))[..., 6:790]
        yield Clip(
            name,
            read(root / entry["exo_path"]),
            pinhole_z_to_range(z, camera, entry["camera_intrinsics"][0][0] / lens.params[0]),
            camera,
            inverse(from_rt(torch.tensor(entry["camera_extrinsics"], dtype=torch.float64))),
            inverse(from_rt(torch.tensor(entry["ego_extrinsics"], dtype=torch.float64))),
            read(root / entry["ego_gt_path"]),
            read(root / entry["ego_prior_path"]),
        )


def matched(picture: Tensor, truth: Tensor, region: Tensor) -> tuple[Tensor, float]:
    """The picture with each channel's gain and offset fitted to the truth on the region, and its PSNR there in dB."""
    out = picture.float()
    for channel in range(3):
        x, y = picture[..., channel][region].double(), truth[..., channel][region].double()
        gain = ((x - x.mean()) * (y - y.mean())).mean() / x.var().clamp_min(1e-6)
        out[..., channel] = (gain * (out[..., channel] - x.mean()) + y.mean()).clamp(0, 255)
    error = ((out - truth.float())[region] / 255).square().mean()
    return out, float(-10 * torch.log10(error))


def measure(clip: Clip, every: int, landmarks: bool = False) -> tuple[dict, Tensor]:
    ego, frames = aria_rgb(), slice(0, FRAMES, every)
    start = time.perf_counter()
    static = ~background_mask(clip.exo)
    room = accumulate(clip.exo, clip.range, static)
    head, scale = at_head(clip.range, static, clip.camera, inverse(clip.T_world_exo) @ clip.T_world_ego), 1.0
    if landmarks:
        points = triangulate(torch.from_numpy(follow(clip.truth.numpy(), ego.rays()[1].numpy())), ego, clip.T_world_ego)
        scale, _ = metric_scale(room.depth.double(), clip.camera, clip.T_world_exo, points)
        room = room._replace(depth=scale * room.depth)
    cloud = room_cloud(room, clip.camera, clip.T_world_exo)
    prepared = time.perf_counter()
    prior, valid = render_cloud(cloud, ego, clip.T_world_ego[frames])
    rendered = time.perf_counter()
    truth, shipped, disc = clip.truth[frames], clip.shipped[frames], ego.rays()[1]
    theirs = (shipped.float().mean(dim=-1) > 16) & disc
    both = valid & theirs
    fitted, psnr = matched(prior, truth, both)
    fitted_shipped, psnr_shipped = matched(shipped, truth, both)
    found = {
        "clip": clip.name,
        "head_scale": head.scale * scale if head else None,
        "room_scale": scale,
        "coverage": float(coverage(valid, disc).mean()),
        "coverage_shipped": float(coverage(theirs, disc).mean()),
        "psnr_common": psnr,
        "psnr_common_shipped": psnr_shipped,
        "points": len(cloud.points),
        "seconds_room": prepared - start,
        "seconds_per_frame": (rendered - prepared) / len(prior),
    }
    pick = [0, len(prior) // 2, len(prior) - 1]
    exo = clip.exo[frames][pick][:, ::2, 168:616:2]  # the middle square, halved
    shown = [exo, *(x[pick][:, ::2, ::2] for x in (fitted_shipped * theirs[..., None], fitted * valid[..., None], truth))]
    page = torch.cat([torch.cat([x.float() for x in row], dim=1) for row in zip(*shown, strict=True)], dim=0)
    return found, page.round().to(torch.uint8)


def main(
    page: Annotated[Path | None, typer.Option(help="Write exo, shipped prior, ours and the truth side by side to this PNG.")] = None,
    every: Annotated[int, typer.Option(help="Render every n-th frame.")] = 6,
    landmarks: Annotated[bool, typer.Option(help="Bring the room to points at rest of the true view first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    root = Path(os.environ.get("EGOMILL_REAL_DATA", "")) / "egox"
    if not (root / "meta.json").is_file():
        raise typer.BadParameter("EGOMILL_REAL_DATA does not name a folder with egox/meta.json")
    torch.set_num_threads(1)
    rows, pages = zip(*(measure(clip, every, landmarks) for clip in clips(root)), strict=True)
    if page is not None:
        from PIL import Image

        Image.fromarray(torch.cat(pages).numpy()).save(page)
    names = ("coverage", "coverage_shipped", "psnr_common", "psnr_common_shipped")
    found = {name: sum(row[name] for row in rows) / len(rows) for name in names} | {"clips": list(rows)}
    if as_json:
        print(json.dumps(found))
        return
    for row in [*rows, {"clip": "mean", **{name: found[name] for name in names}}]:
        print(" ".join(f"{name} {value if isinstance(value, str | int) else f'{value:.3f}'}" for name, value in row.items()))


if __name__ == "__main__":
    typer.run(main)
