"""Reading video: PyAV beside decord, the same windows of the same file, in processor seconds.

    python benchmarks/readers.py [FILE]

Without a file, one is made: 634 frames of 796x448, H.264. Each reader opens the file anew for each window, as the stages do; the walk
through the file, which both need, is counted apart.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from egomill.tasks.media import video

FRAMES, WINDOW, WINDOWS, TURNS = 634, 49, 12, 4


def film(folder: Path) -> Path:
    """A noisy picture that moves."""
    field = np.random.default_rng(0).integers(0, 255, (448 // 8, 2400 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    path = folder / "film.mp4"
    path.write_bytes(video.encode(np.stack([field[:, 2 * i : 2 * i + 796] for i in range(FRAMES)]), 30.0))
    return path


def seconds(reader: video.Reader, starts: np.ndarray, name: str) -> tuple[float, int]:
    """Processor time of all windows, and a sum over their pixels."""
    os.environ["EGOMILL_VIDEO_READER"] = name
    begin, total = time.process_time(), 0
    for start in starts:
        total += int(reader.read(range(start, start + WINDOW)).sum(dtype=np.int64))
    return time.process_time() - begin, total


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else film(Path(folder))
        begin = time.process_time()
        reader = video.Reader(path)
        walk = time.process_time() - begin
        starts = np.random.default_rng(1).integers(0, len(reader) - WINDOW, WINDOWS)
        best, sums = {"pyav": np.inf, "decord": np.inf}, set()
        for _ in range(TURNS):
            for name in best:
                took, total = seconds(reader, starts, name)
                best[name] = min(best[name], took)
                sums.add(total)
        assert len(sums) == 1, "the readers differ"
        print(json.dumps({"pyav_over_decord": best["pyav"] / best["decord"], **best, "walk": walk, "windows": WINDOWS, "frames": WINDOW}))


if __name__ == "__main__":
    main()
