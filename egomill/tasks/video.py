"""Video in and out: the only decord and the only PyAV.

Reading is decord's (random access by frame number), everything else PyAV's. Decord has been seen to hang or crash on files that are not
videos, so a file is opened with PyAV before decord sees it; that costs a millisecond and buys a named error. One decoding thread each:
parallelism belongs to the stages.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import decord
import numpy as np
from av.video.stream import VideoStream

Size = tuple[int, int]  # width, height in px
Frames = Sequence[int] | np.ndarray  # frame numbers
Rect = Sequence[int]  # left, top, width, height in px


MAX_PIXELS = 4096 * 4096  # of a picture: the largest GoPro's, with room; whatever a file says, no more is allocated
RATES = 1.0, 240.0  # frames a second
STILL = 8  # grey levels by which one pixel in a thousand may differ in pictures of a stopped camera: compression (measured: to 5; in real
# views, from one frame to the next already 23)


class VideoError(Exception):
    """A video that cannot be used; stages turn it into Rejected("video_undecodable"), ingest, which looks first, into its `reason`."""

    def __init__(self, text: str, reason: str = "video_undecodable") -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    width: int
    height: int
    fps: float
    frames: int


def probe(path: Path | str) -> VideoInfo:
    """Size, rate and number of frames, by walking all packets: a file cut short says so here, whatever its header promises.

    The first frame is decoded too. Errors: VideoError, also where frame i is not shown at i / rate or pictures are not shown as they are
    stored: then numbers of frames mean other moments, and pixels other rays, than the rest believes.
    """
    name = Path(path).name
    if not Path(path).is_file():  # a pipe would be waited for
        raise VideoError(f"{name}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: no video stream in it")
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise VideoError(f"{name}: {stream.width}x{stream.height} is more than {MAX_PIXELS} pixels", "video_too_large")
            times = [None if p.is_discard or p.pts is None else float(p.pts * p.time_base) for p in container.demux(stream) if p.size]
            frames = len(times)
            if not frames or stream.width < 1 or stream.height < 1:
                raise VideoError(f"{name}: no frames")
            if frames < stream.frames:  # decord fails on such a file at whatever frame
                raise VideoError(f"{name}: cut short, {frames} of {stream.frames} frames")
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            wrong = _timing(times, fps)
            if wrong:
                raise VideoError(f"{name}: {wrong}", "video_timing")
            container.seek(0)
            turned, aspect = next(container.decode(stream)).rotation, float(stream.sample_aspect_ratio or 1)
            if turned or abs(aspect - 1) > 0.02:
                raise VideoError(f"{name}: to be shown turned by {turned} degrees, {aspect:.3f} as wide", "video_geometry")
            return VideoInfo(stream.width, stream.height, fps, frames)
    except (av.FFmpegError, IndexError, StopIteration, OSError) as error:
        raise VideoError(f"{name}: {error or type(error).__name__}") from error


def _timing(seconds: list[float | None], fps: float) -> str:
    """What is wrong with the times of frames, or ""."""
    if not RATES[0] <= fps <= RATES[1]:
        return f"{fps:.3g} frames a second"
    times = sorted(t for t in seconds if t is not None)
    if len(times) < len(seconds):
        return f"{len(seconds) - len(times)} of {len(seconds)} frames are hidden or have no time"
    if abs(times[0]) * fps > 1.5:
        return f"the first frame is shown at {times[0]:.3f} s"
    steps = np.diff(times) * fps
    odd = np.flatnonzero(np.abs(steps - 1) > 0.5)
    return f"frame {odd[0] + 1} comes {steps[odd[0]]:.2f} frames after the one before; {len(odd)} such in all" if len(odd) else ""


def inspect(path: Path | str) -> VideoInfo:
    """`probe`, and the first, middle and last frame as the stages will read them. Errors: VideoError, also where these are one picture."""
    reader = Reader(path)
    info = reader.info
    if len(reader) != info.frames:
        raise VideoError(f"{reader.name}: {info.frames} frames stored, {len(reader)} decodable")
    frames = reader.read(sorted({0, info.frames // 2, info.frames - 1}))
    if frames.shape[1:3] != (info.height, info.width):
        raise VideoError(f"{reader.name}: {info.width}x{info.height} decodes to {frames.shape[2]}x{frames.shape[1]}", "video_geometry")
    if len(frames) > 1 and np.percentile(np.ptp(frames, axis=0), 99.9) <= STILL:
        raise VideoError(f"{reader.name}: the first, middle and last frame are one picture", "video_frozen")
    return info


class Reader:
    """One open video, for many small reads. `len(reader)` frames; `read` as below."""

    def __init__(self, path: Path | str) -> None:
        self.path, self.name = path, Path(path).name
        self.info = probe(path)
        try:
            self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"{self.name}: {_first_line(error)}") from error

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: Frames, size: Size | None = None, crop: Rect | None = None) -> np.ndarray:
        """The frames of these numbers, uint8 RGB [F, H, W, 3]; cropped, then resized by area, in that order.

        Errors: VideoError where a frame is not there or cannot be decoded.
        """
        wanted = [int(i) for i in indices]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise VideoError(f"{self.name}: frames {min(wanted)}..{max(wanted)} asked of {len(self)}")
        order, back = np.unique(wanted, return_inverse=True)  # forward through the file: no seek back to a key frame
        try:
            frames = self._reader.get_batch(order.tolist()).asnumpy()
        except (decord.DECORDError, RuntimeError):
            frames = _forward(self.path, order.tolist())
        return resize(frames, size, crop)[back]


def _forward(path: Path | str, wanted: list[int]) -> np.ndarray:
    """The frames of these ascending numbers by decoding from the start."""
    found: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number == wanted[len(found)]:
                    found.append(frame.to_ndarray(format="rgb24"))
                    if len(found) == len(wanted):
                        return np.stack(found)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{Path(path).name}: frame {wanted[len(found)]}: {error}") from error
    raise VideoError(f"{Path(path).name}: no frame {wanted[len(found)]}")


def read(path: Path | str, indices: Frames, size: Size | None = None, crop: Rect | None = None) -> np.ndarray:
    """`Reader(path).read(indices, size, crop)`: uint8 RGB [F, H, W, 3], frame-exact. Errors: VideoError."""
    return Reader(path).read(indices, size, crop)


def resize(frames: np.ndarray, size: Size | None, crop: Rect | None = None) -> np.ndarray:
    """Frames [F, H, W, 3] cropped, then resized by area averaging (INTER_AREA keeps the half-pixel convention of `Camera.rescale`)."""
    if crop is not None:
        left, top, width, height = crop
        if left < 0 or top < 0 or left + width > frames.shape[2] or top + height > frames.shape[1]:
            raise ValueError(f"crop {tuple(crop)} is not inside {frames.shape[2]}x{frames.shape[1]}")
        frames = frames[:, top : top + height, left : left + width]
    if size is not None and (frames.shape[2], frames.shape[1]) != tuple(size):
        return np.stack([cv2.resize(frame, tuple(size), interpolation=cv2.INTER_AREA) for frame in frames])
    return np.ascontiguousarray(frames)


def encode(frames: np.ndarray, fps: float, lossless: bool = False) -> bytes:
    """H.264 in mp4 from uint8 RGB [F, H, W, 3]; equal frames give equal bytes.

    Lossless is RGB at crf 0 (decodes to the same frames, plays in no browser); else 4:2:0 at crf 16, for even sides.
    """
    if lossless:
        return _encode(frames, fps, "libx264rgb", "rgb24", {"crf": "0"})
    return _encode(frames, fps, "libx264", "yuv420p", {"crf": "16"})


def for_browser(frames: np.ndarray, fps: float) -> bytes:
    """What every browser plays: 4:2:0, index first, moderate size."""
    return _encode(frames, fps, "libx264", "yuv420p", {"crf": "20", "profile": "high"}, {"movflags": "+faststart"})


def decode(data: bytes) -> np.ndarray:
    """All frames of an encoded video, uint8 RGB [F, H, W, 3]. Errors: VideoError."""
    try:
        with av.open(io.BytesIO(data), "r") as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoError(f"{len(data)} bytes that are no video: {error}") from error


def _encode(frames: np.ndarray, fps: float, codec: str, pixels: str, options: dict, container: dict | None = None) -> bytes:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"encode takes uint8 [F, H, W, 3], not {frames.dtype} {frames.shape}")
    if pixels == "yuv420p" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(f"4:2:0 video has even sides, not {frames.shape[2]}x{frames.shape[1]}")
    options = {**options, "x264-params": "mbtree=0"}  # mbtree's vector code reads past its rows: bytes vary from run to run
    with tempfile.NamedTemporaryFile(suffix=".mp4") as out:  # a file with a name: the muxer reads it again to move the index
        with av.open(out.name, "w", format="mp4", container_options=container or {}) as file:
            stream = cast(VideoStream, file.add_stream(codec, rate=Fraction(fps).limit_denominator(60060), options=options))
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
            stream.codec_context.thread_count = 1
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            file.mux(stream.encode(None))
        return Path(out.name).read_bytes()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
