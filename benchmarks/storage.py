"""What one real 49-frame clip takes on disk at full resolution, beside the layout in which EgoX released it, and how long one is to read.

    EGOMILL_REAL_DATA=... python benchmarks/storage.py [--clip 0] [--rows 1000] [--json]

Depth is the released float32 files as they are, through `pack_depth`; directions are what the stages' workers make of the clip. One clip is
read by its key out of a lake of many (the same bytes under other keys), unpacked; beside it, the 49 files of the released layout. Both are
read again and again, so from memory: what is compared is the work, not the disk. Times are medians on one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from egomill.schemas.config import Profile
from egomill.schemas.tensors import pack_depth, unpack_depth
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.media import sources
from egomill.tasks.stages import clips, depth, directions, takes

SETTINGS = [
    *("clips.frames=49", "clips.fps=30", "clips.exo_size=[784,448]", "clips.ego_size=448", "clips.hop=2.0", "clips.min_overlap=0.0"),
    *("depth.height=448", "depth.monocular=sidecar", "depth.mask=background"),
]
# The released cache, float32: directions of the points of 13 key frames from the centres of 13 query frames on a 56 x 98 grid, the points
# themselves, and the rays of the ego picture on 56 x 56 for 49 frames and for the 13.
RELEASED = ((13, 13, 56, 98, 3), (13, 56, 98, 3), (49, 56, 56, 3), (13, 56, 56, 3))


def made(stage: Stage, row: dict) -> Any:
    found = stage.worker()(row)
    if not isinstance(found, (dict, list)):
        raise typer.BadParameter(f"{stage.name}: {found.reason} {found.detail}")
    return found


def directions_bytes(root: Path, clip: int) -> int:
    """Bytes of the clip's row of `directions`, made by the stages' own workers."""
    profile = Profile.load("local", SETTINGS)
    take = made(takes.stage(profile), sources.discover([root])[clip].row)
    window = next(w for w in made(clips.stage(profile), {"takes": take}) if w["chosen"])
    row = made(directions.stage(profile), {"clips": window, "depth": made(depth.stage(profile), {"clips": window})})
    return sum(len(tensor["data"]) for tensor in row.values())


def median_ms(read: Callable[[], Any], times: int = 9) -> float:
    read()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main(
    clip: Annotated[int, typer.Option(help="Which of the clips of egox/meta.json.")] = 0,
    rows: Annotated[int, typer.Option(help="Clips in the lake that one is read from; about 3 MB each.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    root = Path(os.environ.get("EGOMILL_REAL_DATA", "")) / "egox"
    if not (root / "meta.json").is_file():
        raise typer.BadParameter("EGOMILL_REAL_DATA does not name a folder with egox/meta.json")
    torch.set_num_threads(1)
    folder = sorted((root / "depth_maps").iterdir())[clip]
    files = sorted(folder.glob("*.npy"))

    def read_npy() -> np.ndarray:
        return np.stack([np.load(file, allow_pickle=False) for file in files])

    truth = read_npy()
    packed = pack_depth(truth)
    error = float(np.abs(unpack_depth(packed) / truth.astype(np.float64) - 1)[truth > 0].max())
    with tempfile.TemporaryDirectory() as scratch:
        lake = Lake(scratch)
        for first in range(0, rows, 50):
            some = [{"clip_id": f"clip{i:06d}", "fingerprint": f"{i}", "depth": packed} for i in range(first, min(first + 50, rows))]
            lake.commit("depth", lake.write_fragments("depth", some))
        key = f"clip{rows // 2:06d}"

        def fetch() -> dict:
            return lake.rows("depth", [key], ["depth"])[0]["depth"]

        found = {
            "depth_mb": len(packed["data"]) / 1e6,
            "depth_rel_error": error,
            "directions_mb": directions_bytes(root, clip) / 1e6,
            "released_depth_mb": sum(file.stat().st_size for file in files) / 1e6,
            "released_directions_mb": sum(4 * int(np.prod(shape)) for shape in RELEASED) / 1e6,
            "read_one_ms": median_ms(lambda: unpack_depth(fetch())),
            "read_one_npy_ms": median_ms(read_npy),
            "fetch_one_ms": median_ms(fetch),
            "rows": rows,
            "clip": folder.name,
        }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    typer.run(main)
