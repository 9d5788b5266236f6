"""Cameras against the references that we did not write (projectaria-tools, OpenCV), and by their laws."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egomill.kernels.cameras import ARIA_RGB_TYPICAL, PARAMS, Camera, aria_rgb, aria_sensor_to_stored, gopro

F64 = torch.float64
WHOLE_ARIA = replace(ARIA_RGB_TYPICAL, max_theta=math.radians(75))
STORED = aria_sensor_to_stored(WHOLE_ARIA)
PINHOLE = Camera("pinhole", (300.0, 310.0, 200.0, 111.0), 400, 225)
ALL = {"pinhole": PINHOLE, "kannala_brandt": gopro(), "fisheye624": WHOLE_ARIA, "fisheye624 stored": STORED, "narrow": aria_rgb(128)}


def test_every_lens_is_held_to_the_laws():
    assert {camera.model for camera in ALL.values()} == set(PARAMS)


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def camera(request) -> Camera:
    return request.param


def scattered(camera: Camera, count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, generator=generator, dtype=F64) * torch.tensor([camera.width, camera.height], dtype=F64) - 0.5


def aria_reference(camera: Camera):
    """projectaria-tools' camera of the sensor picture (one focal length, no turn)."""
    calibration = pytest.importorskip("projectaria_tools.core.calibration")
    from projectaria_tools.core.sophus import SE3

    fx, fy, *rest = camera.params
    assert fx == pytest.approx(fy)
    width, height = (camera.height, camera.width) if camera.turns % 2 else (camera.width, camera.height)
    model = calibration.CameraModelType.FISHEYE624 if camera.model == "fisheye624" else calibration.CameraModelType.KANNALA_BRANDT_K3
    numbers = [fx, *rest] if camera.model == "fisheye624" else [fx, fy, *rest]
    return calibration.CameraCalibration("rgb", model, np.array(numbers), SE3(), width, height, None, math.pi, "")


def test_round_trip_of_pixels(camera):
    pixels = scattered(camera)
    rays, valid = camera.unproject(pixels)
    back, seen = camera.project(rays * 3.7)
    assert valid.any()
    assert (back - pixels)[valid].abs().max() < 1e-6
    assert (rays.norm(dim=-1) - 1).abs().max() < 1e-12
    assert seen[valid & (rays[..., 2] > 0)].double().mean() > 0.999


def test_round_trip_of_points(camera):
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(4000, 3, generator=generator, dtype=F64)
    pixels, seen = camera.project(points)
    rays, valid = camera.unproject(pixels[seen])
    assert seen.any()
    assert valid.double().mean() > 0.999
    assert (rays - torch.nn.functional.normalize(points[seen], dim=-1)).norm(dim=-1)[valid].max() < 1e-9


def test_fisheye_agrees_with_projectaria():
    reference = aria_reference(WHOLE_ARIA)
    rays, valid = WHOLE_ARIA.unproject(scattered(WHOLE_ARIA, 500))
    ours, _ = WHOLE_ARIA.project(rays)
    theirs = torch.tensor(np.array([reference.project_no_checks(ray) for ray in rays.numpy()]))
    assert (ours - theirs)[valid].abs().max() < 1e-6


def test_fisheye_rays_agree_with_projectaria():
    """Theirs stop iterating at about 1e-5; ours at rounding."""
    reference = aria_reference(WHOLE_ARIA)
    pixels = scattered(WHOLE_ARIA, 500)
    rays, valid = WHOLE_ARIA.unproject(pixels)
    theirs = torch.nn.functional.normalize(torch.tensor(np.array([reference.unproject_no_checks(p) for p in pixels.numpy()])), dim=-1)
    angle = torch.rad2deg((rays - theirs).norm(dim=-1))[valid]
    assert angle.max() < 0.01


def test_crop_and_rescale_agree_with_projectaria():
    theirs = aria_reference(WHOLE_ARIA).rescale(np.array([1408, 1408]), 0.5, np.array([32.0, 32.0]))
    ours = WHOLE_ARIA.crop(32, 32, 2816, 2816).rescale(1408, 1408)
    assert list(theirs.get_image_size()) == [ours.width, ours.height]
    assert np.allclose(theirs.get_projection_params()[:3], [ours.params[0], *ours.params[2:4]], atol=1e-9)
    assert np.allclose(theirs.get_projection_params()[3:], ours.params[4:])


def test_turn_agrees_with_projectaria():
    calibration = pytest.importorskip("projectaria_tools.core.calibration")
    upright = calibration.rotate_camera_calib_cw90deg(calibration.get_linear_camera_calibration(400, 400, 300.0))
    pinhole = Camera("pinhole", (300.0, 300.0, 199.5, 199.5), 400, 400)
    pixel = np.array([123.0, 47.0])
    ray = upright.unproject_no_checks(pixel)  # theirs turns the camera's frame with the picture, ours keeps the sensor's
    ours, _ = pinhole.turn_cw().unproject(torch.tensor(pixel))
    sensor = torch.tensor([ray[1], -ray[0], ray[2]])
    assert (ours - sensor / sensor.norm()).norm() < 1e-9


def test_turning_the_picture_turns_its_pixels():
    """A point seen at sensor pixel (x, y) of a w x h picture lies at (h - 1 - y, x) after a clockwise quarter turn: as in numpy.rot90."""
    picture = np.zeros((225, 400))
    picture[47, 123] = 1
    turned = PINHOLE.turn_cw()
    row, column = np.argwhere(np.rot90(picture, -1))[0]
    ray, _ = PINHOLE.unproject(torch.tensor([123.0, 47.0], dtype=F64))
    pixel, valid = turned.project(ray)
    assert valid
    assert torch.allclose(pixel, torch.tensor([column, row], dtype=F64))
    assert (turned.width, turned.height) == (225, 400)


def test_four_turns_are_none():
    assert WHOLE_ARIA.turn_cw().turn_cw().turn_cw().turn_cw() == WHOLE_ARIA


def test_facts_of_the_sample_calibration():
    """The landscape lens at 448 px: f 194.185, c (227.496, 223.957), by hand from the calibration of cmu_bike08_2."""
    params = (1220.5922, 1220.5922, 1464.6182, 1442.3702, *WHOLE_ARIA.params[4:])
    camera = Camera("fisheye624", params, 2880, 2880).crop(32, 32, 2816, 2816).rescale(1408, 1408).rescale(448, 448)
    assert camera.params[0] == pytest.approx(194.185, abs=1e-3)
    assert camera.params[2:4] == pytest.approx((227.496, 223.957), abs=1e-3)
    centre, _ = camera.turn_cw().project(torch.tensor([0.0, 0.0, 1.0], dtype=F64))
    assert centre.tolist() == pytest.approx([447 - 223.957, 227.496], abs=1e-3)


def test_kannala_brandt_agrees_with_opencv():
    camera = gopro(3840, 2160)
    rays, valid = camera.unproject(scattered(camera))
    inside = valid & (rays[:, 2] > 0.05)
    ours, _ = camera.project(rays[inside])
    fx, fy, cx, cy, *k = camera.params
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    plane = (rays[inside, :2] / rays[inside, 2:]).numpy()[:, None]
    theirs = cv2.fisheye.distortPoints(plane, K, np.array(k))[:, 0]
    assert np.abs(ours.numpy() - theirs).max() < 0.01


def test_kannala_brandt_agrees_with_projectaria():
    camera = gopro(796, 448)
    square = replace(camera, params=(camera.params[0], camera.params[0], *camera.params[2:]))
    reference = aria_reference(square)
    rays, valid = square.unproject(scattered(square, 500))
    theirs = torch.tensor(np.array([reference.project_no_checks(ray) for ray in rays.numpy()]))
    assert (square.project(rays)[0] - theirs)[valid].abs().max() < 1e-6


@pytest.mark.parametrize("camera", [STORED, gopro(), PINHOLE], ids=["aria", "gopro", "pinhole"])
@settings(max_examples=40)
@given(
    left=st.integers(-20, 60),
    top=st.integers(-20, 60),
    scale=st.floats(0.2, 3.0),
    squeeze=st.floats(0.5, 2.0),
    x=st.floats(0.2, 0.8),
    y=st.floats(0.2, 0.8),
)
def test_crop_and_rescale_move_pixels_as_pictures_move(camera, left, top, scale, squeeze, x, y):
    """Half-pixel convention: edges of the picture go to edges; the ray of a scene point does not change."""
    pixel = torch.tensor([x * camera.width, y * camera.height], dtype=F64)
    ray, _ = camera.unproject(pixel)
    cut = camera.crop(left, top, camera.width - 50, camera.height - 50)
    width, height = max(1, round(cut.width * scale)), max(1, round(cut.height * scale * squeeze))
    small = cut.rescale(width, height)
    expected = (pixel - torch.tensor([left, top]) + 0.5) * torch.tensor([width / cut.width, height / cut.height], dtype=F64) - 0.5
    assert (small.project(ray)[0] - expected).abs().max() < 1e-7 * max(1.0, scale)


@pytest.mark.parametrize("camera", [STORED, WHOLE_ARIA, PINHOLE], ids=["stored", "sensor", "pinhole"])
@settings(max_examples=30)
@given(width=st.integers(16, 900), height=st.integers(16, 900))
def test_turn_commutes_with_rescale(camera, width, height):
    one = camera.rescale(width, height).turn_cw()
    other = camera.turn_cw().rescale(height, width)
    assert one.turns == other.turns
    assert one.params == pytest.approx(other.params, rel=1e-9)


def test_dictionary_round_trip(camera):
    assert Camera.from_dict(json.loads(json.dumps(camera.to_dict()))) == camera


def test_behind_the_camera_is_invalid(camera):
    _, seen = camera.project(torch.tensor([[0.0, 0.0, -1.0], [0.1, 0.0, -5.0]], dtype=F64))
    assert not seen.any()


def test_gradients_are_finite_everywhere(camera):
    points = torch.tensor(
        [[0.0, 0.0, 1.0], [0.3, -0.2, 1.0], [5.0, 5.0, -1.0], [0.0, 0.0, -1.0], [9.0, 0.0, 0.0]], dtype=F64, requires_grad=True
    )
    camera.project(points)[0].sum().backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()


def test_gradients_agree_with_differences(camera):
    points = torch.tensor([[0.1, 0.05, 1.0], [-0.3, 0.2, 1.5]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: camera.project(p)[0], (points,), atol=1e-4)


def test_a_lens_that_turns_back_is_bounded():
    camera = Camera("kannala_brandt", (300.0, 300.0, 320.0, 240.0, -0.5, 0.0, 0.0, 0.0), 640, 480)
    turning = math.sqrt(1 / 1.5)  # where d/dθ (θ - θ³/2) = 0
    assert camera.field_of_view == pytest.approx(turning, abs=0.01)
    beyond = torch.tensor([[math.sin(turning + 0.1), 0.0, math.cos(turning + 0.1)]], dtype=F64)
    assert not camera.project(beyond)[1].any()


@pytest.mark.parametrize(
    "wrong",
    [{"model": "cylinder"}, {"params": (1, 2)}, {"params": (0, 1, 1, 1)}, {"params": (math.nan, 1, 1, 1)}, {"width": 0}],
    ids=["lens", "count", "focal", "nan", "size"],
)
def test_impossible_cameras_are_refused(wrong):
    fine = {"model": "pinhole", "params": (1.0, 1.0, 1.0, 1.0), "width": 8, "height": 8}
    with pytest.raises(ValueError, match=r"lens|parameters|picture"):
        Camera(**{**fine, **wrong})
