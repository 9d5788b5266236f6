"""Video in and out: the only PyAV (decord, where it is chosen, is handed what was checked here).

A frame is addressed by its time. All packets of a file are walked once for the times at which frames are shown; frame i is the i-th of
these. A read begins at a packet from which the codec promises right pictures, decodes forward, and takes each frame by its time; one that
does not come, or comes damaged, is an error and never another frame. What a container flags as a key frame is no such promise: pictures of
an open group or of an intra refresh carry the flag, too.

Files are opened by us and handed over open, and only as one of `FORMATS`: a playlist by a video's name leads nowhere. One decoding thread
each: parallelism belongs to the stages.
"""

from __future__ import annotations

import io
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from egomill.tasks.media import decord_reader

Size = tuple[int, int]  # width, height in px
Frames = Sequence[int] | np.ndarray  # frame numbers
Rect = Sequence[int]  # left, top, width, height in px

MAX_PIXELS = 4096 * 4096  # of a picture: the largest GoPro's, with room; whatever a file says, no more is allocated
RATES = 1.0, 240.0  # frames a second
STILL = 8  # grey levels by which one pixel in a thousand may differ in pictures of a stopped camera: compression (measured: to 5; in real
# views, from one frame to the next already 23)
FORMATS = "mov,matroska,avi,mpegts"  # none of these leads to other files
OFF = 0.5  # frames by which one may be shown before or after its turn
AHEAD = 12  # packets: a place to begin that lies no further ahead is reached by decoding on
REORDERED = 32  # frames that may come before their turn: codecs hold back 16 at most
ALONE = {"mjpeg", "prores", "dnxhd", "rawvideo"}  # codecs whose pictures are told without others


class VideoError(Exception):
    """A video that cannot be used; stages turn it into Rejected("video_undecodable"), ingest, which looks first, into its `reason`."""

    def __init__(self, text: str, reason: str = "video_undecodable") -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    width: int
    height: int
    fps: float  # of the even clock that fits all frames
    frames: int
    times: np.ndarray = field(compare=False, repr=False)  # [frames] float64, s: when each is shown, after the first


def probe(path: Path | str) -> VideoInfo:
    """`Reader(path).info`. Errors: VideoError."""
    return Reader(path).info


class Reader:
    """A video's frames by number: `len(reader)` of them, and `info`. No file stays open between reads.

    All packets are walked first: a file cut short says so here, whatever its header promises. The first frame is decoded too. Errors:
    VideoError, also where frame i is not shown at i / rate or pictures are not shown as they are stored: then numbers of frames mean other
    moments, and pixels other rays, than the rest believes.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.name = Path(path), Path(path).name
        with self._opened() as (container, stream):
            size, aspect = (stream.width, stream.height), float(stream.sample_aspect_ratio or 1)
            told = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
            pts, wrong = self._walk(container, stream)
            unit = stream.time_base or Fraction(1)
            late = Fraction(container.start_time or 0, 1_000_000) if "mpegts" in container.format.name else 0  # its zero means nothing
            times = np.sort([float(p * unit - late) for p in pts])
        fps, wrong = (0.0, wrong) if wrong else _clock(times, told)
        if wrong:
            rate = next(rate for rate in (fps, *told, 30.0) if RATES[0] <= rate <= RATES[1])
            raise VideoError(f"{self.name}: {wrong}; to write a constant rate: {self._ffmpeg(f'-vf fps={rate:.4g}')}", "video_timing")
        self._packet = {p: number for number, p in enumerate(pts)}  # the packet, in the file's order, of the frame that is shown then
        self._pts = sorted(pts)
        self.info = VideoInfo(*size, fps, len(pts), times - times[0])
        shown = next(self._decoded([0]))
        self._facts = decord_reader.Facts(*self._told, shown.format.name, shown.interlaced_frame)
        matrix = shown.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5] if matrix else (1, 0, 0, 0, 1)
        if b or c or a <= 0 or d <= 0:
            wrong = f"stored turned by {shown.rotation} degrees, or mirrored; upright: {self._ffmpeg('')}"
            raise VideoError(f"{self.name}: {wrong}", "video_geometry")
        if abs(aspect - 1) > 0.02:
            wrong = f"to be shown {aspect:.3f} as wide as stored; as shown: {self._ffmpeg('-vf scale=iw*sar:ih,setsar=1')}"
            raise VideoError(f"{self.name}: {wrong}", "video_geometry")

    def __len__(self) -> int:
        return self.info.frames

    def read(self, indices: Frames, size: Size | None = None, crop: Rect | None = None) -> np.ndarray:
        """The frames of these numbers, uint8 RGB [F, H, W, 3]; cropped, then resized by area, in that order.

        Errors: VideoError where a frame is not there or cannot be decoded.
        """
        order, back = np.unique(np.asarray(indices, int), return_inverse=True)
        return np.stack([resize(frame[None], size, crop)[0] for frame in self.pictures(order)])[back]

    def pictures(self, ascending: Frames) -> Iterator[np.ndarray]:
        """The frames of these numbers one by one, uint8 RGB [H, W, 3], in one pass through the file. Errors: as `read`."""
        numbers, rgb = [int(i) for i in ascending], VideoReformatter()
        if numbers and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise VideoError(f"{self.name}: frames {numbers[0]}..{numbers[-1]} asked of {len(self)}")
        if decord_reader.chosen():
            try:
                yield from decord_reader.pictures(self.path, numbers, self.info.times, self._facts)
                return
            except decord_reader.Cannot as error:
                raise VideoError(f"{self.name}: {error}") from error
        for frame in self._decoded(numbers):
            yield rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()

    # -- finding frames --------------------------------------------------------------------------------------------------

    def _walk(self, container: InputContainer, stream: VideoStream) -> tuple[list[int], str]:
        """When frames are shown, in the stream's units and the file's order; and what is wrong with it. Notes where decoding may begin."""
        codec, extra = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
        apart = not extra or extra.startswith((b"\0\0\0\1", b"\0\0\1"))  # as in MPEG-TS; else avcC or hvcC says how long lengths are
        length = 0 if apart else (extra[21 if codec == "hevc" else 4 :][:1] or b"\3")[0] % 4 + 1
        pts, found, hidden, held, keys, parameters = [], [], 0, 0, 0, False
        room = 4 * self.path.stat().st_size
        for packet in container.demux(stream):
            if not packet.size:
                continue
            held += packet.size
            if held > room:  # a few bytes of header can say one stretch of the file a thousand million times
                raise VideoError(f"{self.name}: its header lists more than the file holds")
            if packet.is_discard or packet.pts is None:
                hidden += 1
                continue
            may, sets = _begins(codec, length, bytes(packet))
            parameters |= sets
            if may or not pts:
                found.append(((len(pts), packet.pts, packet.pts if packet.dts is None else packet.dts), sets))
            pts.append(packet.pts)
            keys += packet.is_keyframe
        frames = len(pts) + hidden
        if not frames:
            raise VideoError(f"{self.name}: no frames")
        if frames < stream.frames:
            raise VideoError(f"{self.name}: cut short, {frames} of {stream.frames} frames")
        self._starts = [start for start, sets in found if sets or not parameters or not start[0]]  # else whose parameters would hold?
        self._told = container.format.name, keys, len(self._starts)
        if hidden:
            return pts, f"{hidden} of {frames} frames are hidden or have no time"
        if stream.codec_context.has_b_frames and container.format.name == "avi":
            return pts, "AVI does not tell when frames are shown that are stored in another order"
        return pts, ""

    def _start(self, number: int) -> tuple[int, int, int]:
        """(packet, pts, dts) at which to begin for this frame: the last one before it, in the file and in time."""
        pts = self._pts[number]
        before = self._starts[: bisect_right(self._starts, self._packet[pts], key=lambda start: start[0])]
        return next((start for start in reversed(before) if start[1] <= pts), self._starts[0])

    def _decoded(self, numbers: list[int]) -> Iterator[av.VideoFrame]:
        """The frames of these ascending numbers, each the one that is shown at its time, whole, and of the size that was promised."""
        frames, here, held = iter(()), -1, {}
        for number in numbers:
            pts, start = self._pts[number], self._start(number)
            if here < 0 or start[0] > here + AHEAD:
                frames, held = self._forward(*start), {}
            early = 0
            while pts not in held:
                frame = next(frames, None)
                if frame is None or early > REORDERED:
                    raise VideoError(f"{self.name}: frame {number} of {len(self._pts)} does not come when decoded")
                if frame.pts is not None and frame.pts >= pts:
                    held[frame.pts] = frame
                    early += 1
            frame, here = held.pop(pts), self._packet[pts]
            held = {p: f for p, f in held.items() if p > pts}
            if frame.is_corrupt:
                raise VideoError(f"{self.name}: frame {number} is damaged")
            if (frame.width, frame.height) != (self.info.width, self.info.height):
                sizes = f"{frame.width}x{frame.height}, the file says {self.info.width}x{self.info.height}"
                raise VideoError(f"{self.name}: frame {number} is of {sizes}", "video_geometry")
            yield frame

    def _forward(self, first: int, pts: int, dts: int) -> Iterator[av.VideoFrame]:
        """Decoded frames from this packet on, as they come. Packets that are not those that were walked are an error."""
        with self._opened() as (container, stream):
            if first:
                container.seek(dts, stream=stream)
            expected = None
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                number = None if packet.pts is None else self._packet.get(packet.pts)
                if expected is None:
                    if first and number is not None and number > first:  # the container took us too far
                        break
                    if number != first:
                        continue
                    expected = first
                if number != expected:
                    raise VideoError(f"{self.name}: packet {expected} is another when read again")
                expected += 1
                yield from stream.codec_context.decode(packet)
            if expected is not None:
                yield from stream.codec_context.decode(None)
                return
        if first:
            yield from self._forward(*self._starts[0])

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its video. What goes wrong in here is a VideoError."""
        if not self.path.is_file():  # a pipe would be waited for
            raise VideoError(f"{self.name}: no such file")
        try:
            with self.path.open("rb") as file, _open(file) as container:
                if not container.streams.video or container.streams.video[0].codec_context is None:
                    raise VideoError(f"{self.name}: no video stream in it" + " that we can decode" * bool(container.streams.video))
                stream = container.streams.video[0]
                if stream.width * stream.height > MAX_PIXELS:
                    raise VideoError(f"{self.name}: {stream.width}x{stream.height} is more than {MAX_PIXELS} pixels", "video_too_large")
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
                yield container, stream
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.name}: {error.strerror or type(error).__name__}") from error

    def _ffmpeg(self, filters: str) -> str:
        """The command that writes the video anew, to be read by people."""
        return " ".join(f"ffmpeg -i {self.name} {filters} -crf 16 {self.path.stem}-new.mp4".split())


def _clock(times: np.ndarray, told: list[float]) -> tuple[float, str]:
    """The rate of frames at these ascending times (s), and what is wrong with them, or "".

    The rate is that of the line through all of them; one that the container tells is believed where it comes out the same at the end.
    Where something is wrong: the rate of most.
    """
    count, steps = len(times), np.diff(times)
    step, usual = (np.polyfit(np.arange(count), times, 1)[0], float(np.median(steps))) if count > 1 else (0.0, 0.0)
    fps = 1 / step if step > 0 else 0.0
    fps = next((rate for rate in told if abs(rate * step - 1) * count <= OFF / 10), fps) if fps else (told or [0.0])[0]
    most = 1 / usual if usual > 0 else fps
    odd = np.flatnonzero(np.abs(steps * most - 1) > OFF)
    off = times * fps - np.arange(count)
    off = np.abs(off - np.median(off))
    worst = np.argmax(off)
    wrong = ""
    if not RATES[0] <= fps <= RATES[1]:
        wrong = f"{fps:.3g} frames a second"
    elif abs(times[0]) * fps > 1.5:
        wrong = f"the first frame is shown at {times[0]:.3f} s"
    elif len(odd):
        wrong = f"frame {odd[0] + 1} comes {steps[odd[0]] * most:.2f} frames after the one before; {len(odd)} such in all"
    elif off[worst] > OFF:
        wrong = f"the rate changes: frame {worst} is shown {off[worst] / fps:.3f} s from its turn at {fps:.4g} frames a second"
    return (most, wrong) if wrong else (fps, "")


def _begins(codec: str, length: int, data: bytes) -> tuple[bool, bool]:
    """Of a packet: whether all that is shown from its picture on can be decoded from here, and whether decoders' parameters are in it.

    H.264: at an IDR picture, not at a recovery point, for which decoders do not wait. HEVC: at CRA and BLA, too; what is shown after these
    refers to nothing before. VP8, VP9 and AV1: at a key frame, which resets all references. Where we do not know: no. `length` is that of
    the length before a NAL unit, 0 where start codes part them.
    """
    if codec in ("h264", "hevc"):
        parameters, pictures, begin = ((7, 8), (1, 5), (5, 5)) if codec == "h264" else ((32, 34), (0, 31), (16, 21))
        found = False
        for head in _nal_heads(data, length):
            kind = head & 31 if codec == "h264" else head >> 1 & 63
            found |= parameters[0] <= kind <= parameters[1]
            if pictures[0] <= kind <= pictures[1]:
                return begin[0] <= kind <= begin[1], found
        return False, found
    if codec == "av1":
        found = False
        for kind, head in _obus(data):
            found |= kind == 1
            if kind in (3, 6):
                return head & 0xF0 == 0x10, found  # not one shown before, a key frame, shown
        return False, found
    if codec == "vp8":
        return data[0] & 1 == 0, False
    if codec == "vp9":  # profile 3 has its bits elsewhere
        return data[0] & 0xCC == 0x80 and data[0] & 0x30 != 0x30, False
    return codec in ALONE, False


def _nal_heads(data: bytes, length: int) -> Iterator[int]:
    """The first byte of each NAL unit of a packet."""
    if not length:
        yield from (match[1][0] for match in re.finditer(b"\0\0\1(.)", data, re.DOTALL))
        return
    at = 0
    while at + length < len(data):
        yield data[at + length]
        at += length + int.from_bytes(data[at : at + length])


def _obus(data: bytes) -> Iterator[tuple[int, int]]:
    """Kind and first byte of what each open bitstream unit of an AV1 packet holds."""
    at = 0
    while at < len(data):
        head, size, shift = data[at], 0, 0
        at += 2 if head & 4 else 1
        while head & 2 and at < len(data):
            size |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                break
        if at < len(data):
            yield head >> 3 & 15, data[at]
        at += size if head & 2 else len(data)


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
        with _open(io.BytesIO(data)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoError(f"{len(data)} bytes that are no video: {error}") from error


def _open(file: BinaryIO) -> InputContainer:
    only = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    return av.open(file, "r", options={"max_pixels": str(MAX_PIXELS)}, container_options=only, metadata_errors="replace")


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
