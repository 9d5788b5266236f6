"""The exo lens is found from the matrix of the undistorted picture, as OpenCV makes it."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egomill.kernels.exo_lens import exo_lens, lens_focal, undistorted_focal

D = (0.036902, 0.057131, -0.057154, 0.018458)


def opencv(focal: float, balance: float) -> float:
    K = np.array([[focal, 0, 1920], [0, focal, 1080], [0, 0, 1.0]])
    return cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(K, np.array(D), (3840, 2160), np.eye(3), balance=balance)[0, 0]


@settings(max_examples=20)
@given(focal=st.floats(1500, 4000), balance=st.floats(0, 1))
def test_as_opencv_and_back(focal, balance):
    undistorted = undistorted_focal(focal, D, balance=balance)
    assert undistorted == pytest.approx(opencv(focal, balance), rel=1e-6)
    assert lens_focal(undistorted, D, balance=balance) == pytest.approx(focal, abs=1e-4)


def test_the_release():
    camera = exo_lens([[1247.9745, 0, 1920], [0, 1247.9745, 1080], [0, 0, 1]], D)
    assert camera.params[0] == pytest.approx(1769.5, abs=0.1)
    assert (camera.width, camera.height) == (3840, 2160)


def test_what_was_not_made_that_way_is_refused():
    with pytest.raises(ValueError, match="centred"):
        exo_lens([[1248, 0, 1700], [0, 1248, 1080], [0, 0, 1]], D)
    with pytest.raises(ValueError, match="no lens"):
        lens_focal(1e6, D)
