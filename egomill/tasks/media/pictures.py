"""Videos that are folders of numbered PNG pictures, as some data sets come, beside files: `reader` opens either, by what is there.

Frame i is the picture of that number; all of them are there, from 0 on, of one size. Folders know no clock: who reads a data set knows its
rate.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from egomill.tasks.media import video
from egomill.tasks.media.untrusted import opened
from egomill.tasks.media.video import Frames, Rect, Size, VideoError, VideoInfo, resize

NUMBERED = re.compile(r"(\d{1,9})\.png")
RATE = 30.0  # frames a second, where nobody says another
HEADER = struct.Struct(">8s4x4sIIBB")  # PNG: signature, IHDR, width, height, bits a channel, kind of colour
END = b"\0\0\0\0IEND\xaeB`\x82"
FILE_LIMIT = 256 << 20  # bytes of one picture


def reader(path: Path | str) -> video.Reader | Pictures:
    """A video's frames by number, whether it is a file or a folder, or a single picture. Errors: VideoError."""
    return Pictures(path) if Path(path).is_dir() or still(path) else video.Reader(path)


def still(path: Path | str) -> bool:
    """Whether a file is a single picture, by its name."""
    return Path(path).suffix.lower() == ".png"


def read(path: Path | str, indices: Frames, size: Size | None = None, crop: Rect | None = None) -> np.ndarray:
    """`reader(path).read(indices, size, crop)`: uint8 RGB [F, H, W, 3], frame-exact. Errors: VideoError."""
    return reader(path).read(indices, size, crop)


def inspect(path: Path | str) -> VideoInfo:
    """What a video says of itself, when its first, middle and last frame can be read as stages will read them. Errors: VideoError, also
    where these are one picture."""
    found = reader(path)
    if isinstance(found, Pictures):
        found.check()
    frames = found.read(sorted({0, len(found) // 2, len(found) - 1}))
    if len(frames) > 1 and np.percentile(np.ptp(frames, axis=0), 99.9) <= video.STILL:
        raise VideoError(f"{found.name}: the first, middle and last frame are one picture", "video_frozen")
    return found.info


class Pictures:
    """The frames of a folder by number, or of a single picture, as `video.Reader` has a file's. Errors: VideoError."""

    def __init__(self, folder: Path | str, rate: float = RATE) -> None:
        self.path = Path(folder)
        self.name = "/".join(self.path.parts[-2:])
        self.files = [self.path] if still(self.path) else numbered(self.path)
        width, height, *_ = self._head(0)
        self.info = VideoInfo(width, height, rate, len(self.files), np.arange(len(self.files)) / rate)

    def __len__(self) -> int:
        return len(self.files)

    def check(self) -> None:
        """That every picture is one of that size, and whole. Errors: VideoError."""
        for number, path in enumerate(self.files):
            self._of_size(number, _bytes(path, HEADER.size))
            if _bytes(path, tail=len(END)) != END:
                raise VideoError(f"{self.name}: frame {number} is cut short")

    def read(self, indices: Frames, size: Size | None = None, crop: Rect | None = None) -> np.ndarray:
        """See `video.Reader.read`."""
        order, back = np.unique(np.asarray(indices, int), return_inverse=True)
        return np.stack([resize(frame[None], size, crop)[0] for frame in self.pictures(order)])[back]

    def pictures(self, ascending: Frames) -> Iterator[np.ndarray]:
        """See `video.Reader.pictures`."""
        for number in map(int, ascending):
            if not 0 <= number < len(self):
                raise VideoError(f"{self.name}: frame {number} asked of {len(self)}")
            data = _bytes(self.files[number])
            self._of_size(number, data)
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if found is None:
                raise VideoError(f"{self.name}: frame {number} is damaged")
            yield cv2.cvtColor(found, cv2.COLOR_BGR2RGB)

    def _of_size(self, number: int, data: bytes) -> None:
        if self._head(number, data)[:2] != (self.info.width, self.info.height):
            raise VideoError(f"{self.name}: frame {number} is not of {self.info.width}x{self.info.height}", "video_geometry")

    def _head(self, number: int, data: bytes = b"") -> tuple[int, int, int, int]:
        head = header(self.files[number], data)
        if head[0] * head[1] > video.MAX_PIXELS:
            raise VideoError(f"{self.name}: {head[0]}x{head[1]} is more than {video.MAX_PIXELS} pixels", "video_too_large")
        return head


def numbered(folder: Path) -> list[Path]:
    """A folder's pictures by number. VideoError where there is none, one is missing, or two have one number."""
    name = "/".join(folder.parts[-2:])
    try:
        found = sorted((int(match[1]), entry) for entry in os.listdir(folder) if (match := NUMBERED.fullmatch(entry)))
    except OSError as error:
        raise VideoError(f"{name}: {error.strerror}") from None
    if not found:
        raise VideoError(f"{name}: no numbered .png in it")
    for place, (number, entry) in enumerate(found):
        if number != place:
            raise VideoError(f"{name}: {entry} where the picture of number {place} was due", "video_timing")
    return [folder / entry for _, entry in found]


def header(path: Path, data: bytes = b"") -> tuple[int, int, int, int]:
    """(width, height, bits a channel, kind of colour) of a PNG, of which `data` may be read already. VideoError where it is none."""
    try:
        signature, kind, width, height, bits, colour = HEADER.unpack((data or _bytes(path, HEADER.size))[: HEADER.size])
    except struct.error:
        signature, kind, width, height, bits, colour = b"", b"", 0, 0, 0, 0
    if signature != b"\x89PNG\r\n\x1a\n" or kind != b"IHDR" or not width or not height:
        raise VideoError(f"{path.parent.name}/{path.name}: no PNG picture")
    return width, height, bits, colour


def millimetres(path: Path) -> np.ndarray:
    """A 16-bit depth picture in metres, float32 [H, W], 0 unknown. VideoError where it is none."""
    data = _bytes(path)
    width, height, bits, colour = header(path, data)
    if (bits, colour) != (16, 0) or width * height > video.MAX_PIXELS:
        raise VideoError(f"{path.parent.name}/{path.name}: {width}x{height} of {bits} bits; depth is one channel of 16 bits")
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.shape != (height, width):
        raise VideoError(f"{path.parent.name}/{path.name}: damaged")
    return found.astype(np.float32) / 1000


def _bytes(path: Path, count: int = -1, tail: int = 0) -> bytes:
    """A file's bytes, so many of its beginning, or of its end."""
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_LIMIT:
                raise VideoError(f"{path.name}: more than {FILE_LIMIT} bytes", "video_too_large")
            if tail:
                file.seek(max(0, size - tail))
            return file.read(count)
    except OSError as error:
        raise VideoError(f"{path.parent.name}/{path.name}: {error.strerror or error}") from None
