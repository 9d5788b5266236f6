"""Frames come back exact, whatever order they are asked in; what is no video says so and neither hangs nor crashes."""

import re
import shutil
import socket
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from egomill.tasks.media import video
from egomill.tasks.media.pictures import inspect
from egomill.tasks.media.video import VideoError
from tests.tasks.tiny_release import pictures


@pytest.fixture(scope="module")
def frames():
    return pictures(128, 72, 3, frames=60)


@pytest.fixture(scope="module")
def film(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    path.write_bytes(video.for_browser(frames, 30.0))
    return path


def test_probe(film):
    assert video.probe(film) == video.VideoInfo(128, 72, 30.0, 60, np.arange(60) / 30)


def test_reading_is_frame_exact_in_any_order(film):
    with av.open(str(film)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    wanted = [59, 3, 3, 0, 17, 58]
    assert np.array_equal(video.read(film, wanted), np.stack([every[i] for i in wanted]))
    assert np.array_equal(video.decode(film.read_bytes()), np.stack(every))


def test_crop_then_area_resize(film):
    whole = video.read(film, [5])
    small = video.read(film, [5], size=(32, 32), crop=(4, 6, 64, 64))
    exact = whole[:, 6:70, 4:68].reshape(1, 32, 2, 32, 2, 3).astype(float).mean(axis=(2, 4))
    assert small.shape == (1, 32, 32, 3)
    assert np.abs(small - exact).max() <= 1
    with pytest.raises(ValueError, match="not inside"):
        video.read(film, [5], crop=(100, 0, 64, 64))


def test_lossless_is_lossless_and_encoding_is_deterministic(frames):
    assert np.array_equal(video.decode(video.encode(frames, 29.97, lossless=True)), frames)
    for encode in (video.encode, video.for_browser, lambda f, r: video.encode(f, r, lossless=True)):
        assert encode(frames, 10.0) == encode(frames, 10.0)
    assert np.abs(video.decode(video.encode(frames, 10.0)).astype(int) - frames).mean() < 6


def test_index_first_for_browsers(frames):
    data = video.for_browser(frames, 10.0)
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(71, 128), (72, 127)])
def test_odd_sides_are_a_bad_call(size):
    with pytest.raises(ValueError, match="even sides"):
        video.encode(np.zeros((2, *size, 3), np.uint8), 10.0)


def _garbage(data: bytes) -> dict[str, bytes]:
    noise = np.random.default_rng(0).bytes(20_000)
    return {
        "empty": b"",
        "text": b"not a video " * 50,
        "zeros": bytes(5000),
        "noise": noise,
        "first half": data[: len(data) // 2],
        "last byte range lost": data[:-200],
        "middle overwritten": data[: len(data) // 2] + noise[:4000] + data[len(data) // 2 + 4000 :],
    }


def test_garbage_is_a_named_error(film, tmp_path):
    for name, data in _garbage(film.read_bytes()).items():
        path = tmp_path / "broken.mp4"
        path.write_bytes(data)
        with pytest.raises(VideoError):
            print(name, video.read(path, range(60)).shape)
    with pytest.raises(VideoError):
        video.probe(tmp_path / "absent.mp4")
    with pytest.raises(VideoError, match="asked of 60"):
        video.read(film, [60])


# -- a frame's number means that frame, whatever the file ---------------------------------------------------------------

BARS = 7  # bits of a number that a picture shows as bars, light or dark
COUNT = 100
NOW_AND_THEN = "keyint=12:min-keyint=12:"


def numbered(i: int) -> np.ndarray:
    """A picture, 128x64, that shows its number."""
    picture = np.kron(np.random.default_rng(i).integers(60, 120, (8, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for bit in range(BARS):
        picture[8:56, 8 + bit * 16 : 20 + bit * 16] = 235 if i >> bit & 1 else 16
    return picture


def number(picture: np.ndarray) -> int:
    return sum(1 << bit for bit in range(BARS) if picture[16:48, 11 + bit * 16 : 17 + bit * 16].mean() > 125)


def film_of(path, codec, options, pixels="yuv420p", rate=30, when=None, mux=None, interlaced=False):
    """`COUNT` numbered pictures; `when`: seconds at which each is shown."""
    with av.open(str(path), "w", container_options=mux or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, pixels
        if interlaced:
            stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct
        if when:
            stream.codec_context.time_base = Fraction(1, 6000)
        for i in range(COUNT):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            if when:
                frame.pts, frame.time_base = round(when(i) * 6000), Fraction(1, 6000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def x264(more="", **rest):
    return "libx264", {"x264-params": NOW_AND_THEN + more, "threads": "1"}, rest


def x265(more="", **rest):
    return "libx265", {"x265-params": f"{NOW_AND_THEN}log-level=none:pools=1:{more}"}, rest


VP9 = {"g": "12", "deadline": "good", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "2M"}
FILMS = {
    "defaults.mp4": x264(),
    "defaults.ts": x264(),
    "deep-pyramid.mkv": x264("bframes=8:b-adapt=0"),
    "open-gop.mp4": x264("open-gop=1"),
    "open-gop.ts": x264("open-gop=1"),
    "intra-refresh.mp4": x264("intra-refresh=1:bframes=0"),
    "intra-refresh-and-b.mkv": x264("intra-refresh=1"),
    "intra-refresh-and-b.ts": x264("intra-refresh=1"),
    "ten-bits.mp4": x264(pixels="yuv420p10le"),
    "interlaced.mp4": x264("interlaced=1", interlaced=True),
    "interlaced.ts": x264("interlaced=1", interlaced=True),
    "no-b.avi": x264("bframes=0"),
    "negative-offsets.mp4": x264(mux={"movflags": "negative_cts_offsets"}),
    "ntsc.mkv": x264(rate=Fraction(30000, 1001)),
    "hevc-open-gop.mp4": x265(),
    "hevc-open-gop.mkv": x265(),
    "hevc-open-gop.ts": x265(),
    "hevc-closed-gop.mp4": x265("open-gop=0"),
    "hevc-intra-refresh.mp4": x265("intra-refresh=1"),
    "vp8.webm": ("libvpx", VP9, {}),
    "vp9.webm": ("libvpx-vp9", VP9, {}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=12"}, {}),
    "av1-open.webm": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=12:irefresh-type=1"}, {}),
    "mjpeg.avi": ("mjpeg", {}, {"pixels": "yuvj420p"}),
    "prores.mov": ("prores_ks", {}, {"pixels": "yuv422p10le"}),
    "ffv1.mkv": ("ffv1", {"g": "12"}, {}),
    "mpeg4.mp4": ("mpeg4", {"g": "12", "bf": "2"}, {}),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
}


@pytest.mark.parametrize("name", FILMS)
def test_a_number_means_the_same_frame_after_a_seek(name, tmp_path):
    codec, options, rest = FILMS[name]
    reader = video.Reader(film_of(tmp_path / name, codec, options, **rest))
    assert len(reader) == COUNT
    every = np.stack(list(reader.pictures(range(COUNT))))
    assert [number(picture) for picture in every] == list(range(COUNT))
    for first in range(0, COUNT - 9, 11):
        wanted = [first, first + 3, first + 9]
        assert np.array_equal(reader.read(wanted), every[wanted])
    assert inspect(tmp_path / name) == video.VideoInfo(128, 64, float(rest.get("rate", 30)), COUNT, every)


AS_DECORD_READS = {
    "defaults.mp4", "deep-pyramid.mkv", "negative-offsets.mp4", "ntsc.mkv", "hevc-open-gop.mp4", "hevc-open-gop.mkv", "hevc-closed-gop.mp4",
    "hevc-intra-refresh.mp4", "vp8.webm", "vp9.webm",
}  # fmt: skip


@pytest.mark.parametrize("name", FILMS)
def test_decord_reads_the_same_pixels_or_says_that_it_would_not(name, tmp_path, monkeypatch):
    pytest.importorskip("decord")
    codec, options, rest = FILMS[name]
    reader = video.Reader(film_of(tmp_path / name, codec, options, **rest))
    every = reader.read(range(COUNT))
    monkeypatch.setenv("EGOMILL_VIDEO_READER", "decord")
    if name not in AS_DECORD_READS:
        with pytest.raises(VideoError, match=r"decord (reads otherwise|cannot read)"):
            reader.read([5])
        return
    assert np.array_equal(reader.read(range(COUNT)), every)
    for first in range(0, COUNT - 9, 11):
        wanted = [first + 9, first, first + 3]
        assert np.array_equal(reader.read(wanted), every[wanted])


def test_a_reader_is_one_that_is_here(film, monkeypatch):
    for named, why in (("opencv", "the readers are pyav and decord"), ("decord", r"pip install 'egomill\[decord\]'")):
        monkeypatch.setenv("EGOMILL_VIDEO_READER", named)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=why):
            video.read(film, [0])


@pytest.mark.parametrize("name", ["b-frames.avi", "no-edit-list.mp4", "fragments.mp4"])
def test_where_times_are_not_told_the_file_is_refused(name, tmp_path):
    mux = {"b-frames.avi": {}, "no-edit-list.mp4": {"use_editlist": "0"}, "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"}}[name]
    with pytest.raises(VideoError, match="ffmpeg -i") as refused:
        inspect(film_of(tmp_path / name, *x264()[:2], mux=mux))
    assert refused.value.reason == "video_timing"


def test_a_seek_that_goes_astray_gives_no_other_frame(tmp_path):
    path = film_of(tmp_path / "film.mp4", *x264()[:2])
    reader = video.Reader(path)
    first, *_, place, last = reader._starts
    reader._starts = [first, (*place[:2], last[2])]  # its seek lands behind it
    assert number(reader.read([place[0] + 5])[0]) == place[0] + 5
    reader._starts = [first, (place[0] + 1, place[1], place[2])]  # no picture by which decoding can begin
    with pytest.raises(VideoError):
        reader.read([place[0] + 5])
    film_of(path, *x264()[:2], rate=25)  # another file by that name
    with pytest.raises(VideoError):
        reader.read([place[0] + 5])


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, 1)], ids=["turned", "mirrored"])
def test_a_turned_video_says_how_to_write_it_upright(film, tmp_path, matrix):
    data = bytearray(film.read_bytes())
    for at, value in zip((0, 4, 12, 16), matrix, strict=True):
        struct.pack_into(">i", data, data.index(b"tkhd") + 44 + at, value << 16)
    (tmp_path / "phone.mp4").write_bytes(data)
    with pytest.raises(VideoError, match=r"upright: ffmpeg -i phone\.mp4 -crf 16 phone-new\.mp4") as refused:
        inspect(tmp_path / "phone.mp4")
    assert refused.value.reason == "video_geometry"


def test_the_frames_own_times(tmp_path):
    uneven = [i / 30 + (i * 7 % 5 - 2) / 300 for i in range(COUNT)]
    info = video.probe(film_of(tmp_path / "phone.mp4", *x264()[:2], when=lambda i: uneven[i] - uneven[0]))
    assert np.abs(info.times - (np.array(uneven) - uneven[0])).max() < 1e-3
    assert info.fps == pytest.approx(30, abs=0.02)


def _clock(times, *told):
    return video._clock(np.array(times), list(told))


def test_the_rate_is_that_of_the_whole_clock():
    frames = np.arange(30_000)
    assert _clock(frames * 1001 / 30000, 30.0)[0] == pytest.approx(30000 / 1001, abs=1e-9)
    assert _clock(np.round(frames * 1001 / 30000, 3), 30000 / 1001) == (30000 / 1001, "")  # milliseconds, as in Matroska
    assert _clock(frames[:50] / 30, 30.0) == (30.0, "")
    assert _clock([0.0], 25.0) == (25.0, "")


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ([*(i / 30 for i in range(900)), *(30 + i / 24 for i in range(720))], "rate changes"),
        (np.cumsum(1 / np.linspace(30, 27, 600)), "rate changes"),  # slower and slower
        ([i / 30 + 0.05 * np.sin(i / 50) for i in range(600)], "rate changes"),
        ([i / 30 + (i > 300) / 30 for i in range(600)], "frame 301 comes 2.00 frames after"),
        ([0.0, 0.0, 0.0], "frames after the one before|frames a second"),
        ([2.0, 2.1, 2.2], "first frame"),
        ([0.0, 2.0, 4.0], "0.5 frames a second"),
    ],
)
def test_a_clock_that_is_not_even(times, why):
    assert re.search(why, _clock(np.asarray(times) - (times[0] if why == "rate changes" else 0), 30.0)[1])


# -- nothing but the file ------------------------------------------------------------------------------------------------


def playlists(other, port):
    """What reads `other`, or asks a server, where a demuxer believes it."""
    lists = {where: f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{where}\n#EXT-X-ENDLIST\n" for where in (other, f"file://{other}")}
    lists["asked"] = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
    lists["concat"] = f"ffconcat version 1.0\nfile {other.name}\nduration 1.0\n"
    lists["sdp"] = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    representation = f'<Representation id="0" bandwidth="1"><BaseURL>{other}</BaseURL><SegmentBase/></Representation>'
    lists["dash"] = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
        f'<Period><AdaptationSet contentType="video" mimeType="video/mp4">{representation}</AdaptationSet></Period></MPD>'
    )
    return lists


def test_a_playlist_by_a_videos_name_leads_nowhere(tmp_path):
    other = film_of(tmp_path / "other.ts", *x264()[:2])
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        for text in playlists(other, server.getsockname()[1]).values():
            (tmp_path / "cam01.mp4").write_text(text)
            with pytest.raises(VideoError):
                inspect(tmp_path / "cam01.mp4")
            with pytest.raises(VideoError):
                video.decode(text.encode())
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody asked


def test_a_name_is_no_address(film, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(film, "concat:x.mp4")
    assert inspect("concat:x.mp4").frames == 60
    with pytest.raises(VideoError, match="no such file"):
        inspect(f"file:{film}")
