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


def test_lies_are_refused():
    good = pack(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="should hold"):
        unpack({**good, "shape": [2, 2]})
    with pytest.raises(ValueError, match="dtype"):
        unpack({**good, "dtype": "object"})
    with pytest.raises(ValueError, match="dtype"):
        pack(np.array([{}]))
