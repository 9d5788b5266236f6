"""Frames come back exact, whatever order they are asked in; what is no video says so and neither hangs nor crashes."""

import av
import numpy as np
import pytest
from tiny_release import pictures

from egomill.tasks import video
from egomill.tasks.video import VideoError


@pytest.fixture(scope="module")
def frames():
    return pictures(128, 72, 3, frames=60)


@pytest.fixture(scope="module")
def film(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    path.write_bytes(video.for_browser(frames, 30.0))
    return path


def test_probe(film):
    assert video.probe(film) == video.VideoInfo(128, 72, 30.0, 60)


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


def test_decord_giving_up_is_not_believed(film, monkeypatch):
    reader = video.Reader(film)
    sound = reader.read([7, 2])

    class Tired:
        def get_batch(self, _):
            raise RuntimeError("Unable to handle EOF because it takes too long")

        def __len__(self):
            return 60

    monkeypatch.setattr(reader, "_reader", Tired())
    assert np.array_equal(reader.read([7, 2]), sound)
