"""The other reader of video: decord, where `EGOMILL_VIDEO_READER=decord` asks for it (extra `decord`; Linux on x86-64).

decord begins at what a container flags as a key frame, counts frames by itself, and shows damage as a picture. `Reader` therefore walks and
checks a file first, as always, and hands over only what decord reads as PyAV does, to the pixel (tests/tasks/media/test_video.py). Left are
damage inside a picture, which decord hides, and that it opens whatever its own FFmpeg takes a file for. It is for files that you made.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

AT_ONCE = 16  # frames decoded at a time


class Cannot(Exception):
    """A video that this reader does not read as the other one does."""


def chosen() -> bool:
    """Whether `EGOMILL_VIDEO_READER` asks for decord. Errors: ValueError where it names no reader that is here."""
    name = os.environ.get("EGOMILL_VIDEO_READER", "") or "pyav"
    if name not in ("pyav", "decord"):
        raise ValueError(f"EGOMILL_VIDEO_READER={name}: the readers are pyav and decord")
    if name == "decord" and not importlib.util.find_spec("decord"):
        raise ValueError("EGOMILL_VIDEO_READER=decord is not installed: pip install 'egomill[decord]', or unset it")
    return name == "decord"


@dataclass(frozen=True)
class Facts:
    """What the walk through a file found out."""

    container: str
    keys: int  # packets that are flagged as key frames
    starts: int  # of these, such as decoding may begin at
    pixels: str  # their format, by FFmpeg's name
    interlaced: bool

    def strange(self) -> str:
        """What decord does not read as PyAV does, or ""."""
        if not {"mp4", "matroska"} & set(self.container.split(",")):
            return f"a file of {self.container}"
        if not re.fullmatch("yuv4..p", self.pixels):  # yuv420p10le, yuvj420p
            return f"pictures of {self.pixels}"
        if self.interlaced:
            return "interlaced pictures"
        return f"key frames at {self.keys - self.starts} of {self.keys} of which decoding may not begin" if self.keys > self.starts else ""


def pictures(path: Path, numbers: list[int], times: np.ndarray, facts: Facts) -> Iterator[np.ndarray]:
    """The frames of these ascending numbers, uint8 RGB [H, W, 3]. `times` [frames] s: when each is shown, after the first.

    Errors: Cannot, also where decord counts or times the frames otherwise.
    """
    import decord

    if strange := facts.strange():
        raise Cannot(f"{strange}, which decord reads otherwise; unset EGOMILL_VIDEO_READER")
    try:
        reader = decord.VideoReader(str(path.resolve()), ctx=decord.cpu(0), num_threads=1)
        shown = np.array([reader.get_frame_timestamp(i)[0] for i in range(len(reader))])
        if len(shown) != len(times) or np.abs(shown - shown[0] - times).max() > 1e-3:
            raise Cannot(f"decord finds {len(shown)} frames of {len(times)}, or other times")
        for at in range(0, len(numbers), AT_ONCE):
            yield from reader.get_batch(numbers[at : at + AT_ONCE]).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise Cannot(f"decord cannot read it: {next(iter(str(error).splitlines()), '')}") from error
