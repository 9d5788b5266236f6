from __future__ import annotations

import json

import numpy as np
import pytest

from egomill.kernels.cameras import Camera, aria_rgb, gopro
from egomill.schemas.outcome import Rejected
from egomill.tasks.media import sidecar, video
from tests.tasks.stages.depth_clips import row

EXO = gopro(64, 32)
STILL = np.arange(1, 32 * 64 + 1, dtype=np.float32).reshape(32, 64) / 100


@pytest.fixture
def clip(tmp_path) -> dict:
    (tmp_path / "exo.mp4").write_bytes(video.encode(np.zeros((6, 32, 64, 3), np.uint8), 5.0))
    return row(tmp_path, EXO, aria_rgb(32), np.eye(4), np.tile(np.eye(4), (3, 1, 1))) | {"stride": 2}


def ranges(folder, static=STILL, moving=None):
    if moving is None:
        np.savez(folder / "depth.npz", static_depth=static)
    else:
        np.savez(folder / "depth.npz", static_depth=static, dynamic_depth=moving)


def test_range_depth_is_sampled_at_the_nearest_pixel_of_the_crop(clip, tmp_path):
    moving = np.full((6, 32, 64), np.inf, np.float16)
    moving[2, 10, 20], moving[4, 10, 20] = 0.01, 1000.0  # before and behind what stands there
    ranges(tmp_path, moving=moving)
    whole = sidecar.read(clip, EXO)
    assert isinstance(whole, sidecar.Sidecar)
    assert whole.dynamic is not None
    assert whole.dynamic.sum() == 1
    assert whole.dynamic[1, 10, 20]
    assert np.array_equal(whole.depth[0], STILL)
    assert whole.depth[1, 10, 20] == np.float32(np.float16(0.01))
    part = sidecar.read(clip | {"exo_crop": [8, 4, 48, 24]}, EXO.crop(8, 4, 48, 24).rescale(24, 12))
    assert isinstance(part, sidecar.Sidecar)
    assert np.isin(part.depth, STILL.astype(np.float32)).sum() >= part.depth.size - 1  # nothing is blended
    assert part.depth[0, 0, 0] in STILL[4:6, 8:10]
    assert part.depth[0, -1, -1] in STILL[26:28, 54:56]


def test_depth_wider_than_its_video_is_cut_in_the_middle(clip, tmp_path):
    ranges(tmp_path, static=np.pad(STILL, ((0, 0), (6, 6)), constant_values=99))
    found = sidecar.read(clip, EXO)
    assert isinstance(found, sidecar.Sidecar)
    assert np.array_equal(found.depth[2], STILL)
    assert found.dynamic is None


def test_pinhole_depth_of_a_fisheye_picture_is_range_in_the_told_focal_length(clip, tmp_path):
    (tmp_path / "z").mkdir()
    for n in (0, 2, 4):
        np.save(tmp_path / "z" / f"{n:05d}.npy", np.full((32, 64), 2.0, np.float32))
    clip |= {"depth_path": "z", "depth_kind": "pinhole-z", "depth_focal": 0.705}
    found = sidecar.read(clip, EXO)
    assert isinstance(found, sidecar.Sidecar)
    assert np.allclose(found.depth[0], 2.0 / 0.705, rtol=1e-4)
    undistorted = Camera("pinhole", (20, 20, 31.5, 15.5), 64, 32)
    clip |= {"exo_lens": json.dumps(EXO.to_dict()), "exo_camera": json.dumps(undistorted.to_dict())}
    flat = sidecar.read(clip, undistorted)
    assert isinstance(flat, sidecar.Sidecar)
    assert np.allclose(flat.depth[0, 16, 32], found.depth[0, 16, 32], rtol=0.02)


def test_infinity_is_unknown_as_zero_is(clip, tmp_path):
    holes = np.where(STILL > 5, np.inf, STILL)
    ranges(tmp_path, static=holes)
    found = sidecar.read(clip, EXO)
    assert isinstance(found, sidecar.Sidecar)
    assert np.array_equal(found.depth[0], np.where(STILL > 5, 0, STILL))
    (tmp_path / "z").mkdir()
    for n in (0, 2, 4):
        np.save(tmp_path / "z" / f"{n:05d}.npy", holes.astype(np.float16))
    told = clip | {"depth_path": "z", "depth_kind": "pinhole-z"}
    found = sidecar.read(told, EXO)
    assert isinstance(found, sidecar.Sidecar)
    assert np.array_equal(found.depth[1] > 0, STILL <= 5)
    ranges(tmp_path, static=np.full_like(STILL, 1e39, np.float64))  # beyond float32
    empty = sidecar.read(clip, EXO)
    assert isinstance(empty, Rejected)
    assert empty.reason == "depth_empty"


def test_no_depth_is_none(clip):
    assert sidecar.read(clip | {"depth_path": ""}, EXO) is None


@pytest.mark.parametrize(
    ("change", "static", "moving", "reason"),
    [
        ({}, np.zeros((32, 64), np.float32), None, "depth_empty"),
        ({}, np.full_like(STILL, np.inf), None, "depth_empty"),
        ({}, np.where(STILL > 1, STILL, -np.inf), None, "depth_sidecar_invalid"),
        ({}, STILL.astype(int), None, "depth_sidecar_invalid"),
        ({}, STILL[0], None, "depth_sidecar_invalid"),
        ({}, np.where(STILL > 1, STILL, np.nan), None, "depth_sidecar_invalid"),
        ({}, -STILL, None, "depth_sidecar_invalid"),
        ({}, STILL[:20], None, "depth_sidecar_invalid"),
        ({}, STILL, np.ones((2, 32, 64), np.float16), "depth_sidecar_invalid"),
        ({}, STILL, np.full((6, 32, 64), np.nan, np.float16), "depth_sidecar_invalid"),
        ({}, STILL, np.ones((6, 16, 64), np.float16), "depth_sidecar_invalid"),
        ({}, np.array([[object()]]), None, "depth_sidecar_invalid"),
        ({"depth_kind": "guess"}, STILL, None, "depth_sidecar_invalid"),
        ({"depth_path": "nowhere.npz"}, STILL, None, "depth_sidecar_invalid"),
        ({"depth_kind": "pinhole-z", "depth_path": "."}, STILL, None, "depth_sidecar_invalid"),
        ({"exo_video": "nowhere.mp4"}, STILL, None, "video_undecodable"),
    ],
)
def test_bad_depth_is_rejected_by_name(clip, tmp_path, change, static, moving, reason):
    ranges(tmp_path, static, moving)
    found = sidecar.read(clip | change, EXO)
    assert isinstance(found, Rejected)
    assert found.reason == reason


def test_a_file_cut_short_is_rejected(clip, tmp_path):
    ranges(tmp_path)
    whole = (tmp_path / "depth.npz").read_bytes()
    (tmp_path / "depth.npz").write_bytes(whole[: len(whole) // 2])
    found = sidecar.read(clip, EXO)
    assert isinstance(found, Rejected)
    assert found.reason == "depth_sidecar_invalid"
