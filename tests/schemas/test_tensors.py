"""Arrays survive their packing; depth stays within its stated error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from egomill.schemas.tensors import pack, pack_depth, unpack, unpack_depth

ARRAYS = st.sampled_from(["bool", "uint8", "uint16", "float16", "float32", "float64", "int64"]).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@given(ARRAYS)
def test_what_goes_in_comes_out(array):
    back = unpack(pack(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(hnp.arrays(np.float64, (3, 4, 5), elements=st.floats(0, 600)))
def test_depth_keeps_its_error(depth):
    known = (depth >= 0.05) & (depth <= 500)
    back = unpack_depth(pack_depth(depth, 1e-3))
    assert back.dtype == np.float32
    assert (back[~known] == 0).all()
    assert (np.abs(back[known] / depth[known] - 1) <= 1.0001e-3).all()


def test_depth_of_a_still_scene_is_small():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:112, :196] / 100
    still = np.repeat((2 + np.sin(3 * x) + y + 0.01 * rng.random(y.shape))[None], 49, axis=0)
    assert len(pack_depth(still)["data"]) < 0.03 * still.astype(np.float32).nbytes


def noisy_room(frames: int = 6, height: int = 61, width: int = 83) -> np.ndarray:
    """Walls, a mover and a flicker, with holes and things out of range: what networks make of a room."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 20
    depth = 2 + np.sin(x) + y + 0.02 * rng.standard_normal((frames, height, width))
    for i in range(frames):
        depth[i, 20:40, 5 * i : 5 * i + 15] = 0.7
    depth[:, :3], depth[2, 50:, :9], depth[3, 5, 5], depth[4, 6, 6] = 0, np.nan, 1e6, np.inf
    return depth.astype(np.float32)


def test_depth_of_a_clip_keeps_its_error_and_its_holes():
    depth = noisy_room()
    value = pack_depth(depth)
    back, known = unpack_depth(value), np.isfinite(depth) & (depth > 0) & (depth < 500)
    assert (back[~known] == 0).all()
    assert (np.abs(back[known].astype(np.float64) / depth[known] - 1) <= 1.0001e-3).all()
    assert pack_depth(depth) == value  # equal arrays, equal bytes
    assert len(value["data"]) < len(pack(depth, level=9)["data"]) / 3


def test_a_real_clip_takes_3_5_mb_at_a_thousandth(real_data):
    for folder in sorted((real_data / "egox/depth_maps").iterdir()):
        depth = np.stack([np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))])
        value = pack_depth(depth, 1e-3)
        assert len(value["data"]) <= 3.5e6, folder.name
        assert np.abs(unpack_depth(value) / depth.astype(np.float64) - 1).max() <= 1e-3


def test_depth_of_earlier_lakes_is_read():
    """Small pictures still are what all were: shuffled, compressed differences."""
    depth = np.linspace(1, 9, 3 * 8 * 8).reshape(3, 8, 8)
    step = 2 * np.log1p(1e-3)
    code = (1 + np.round(np.log(depth / 0.05) / step)).astype(np.uint16)
    code[1:] = code[1:] - code[:-1]
    assert np.abs(unpack_depth({**pack(code, level=9), "step": step, "near": 0.05}) / depth - 1).max() <= 1.0001e-3


def test_damaged_depth_is_refused():
    value = pack_depth(noisy_room())
    data = value["data"]
    flipped = data[:-400] + bytes([data[-400] ^ 16]) + data[-399:]
    for lie in ({"shape": [5, 61, 83]}, {"shape": [6, 83, 61]}, *({"data": d} for d in (data[:-9], b"abc", bytes(500), flipped))):
        with pytest.raises(ValueError, match=r"depth of shape"):
            unpack_depth({**value, **lie})


def test_lies_are_refused():
    good = pack(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="should hold"):
        unpack({**good, "shape": [2, 2]})
    with pytest.raises(ValueError, match="dtype"):
        unpack({**good, "dtype": "object"})
    with pytest.raises(ValueError, match="dtype"):
        pack(np.array([{}]))
