"""The landmark network's geometry: where palms may be, how a hand is turned upright, and where it stands before a camera."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from egomill.kernels.cameras import gopro
from egomill.schemas.config import Hands
from egomill.tasks.networks import landmarks
from egomill.tasks.networks.landmarks import Hand
from tests.kernels import hands


def seen(camera, right: bool = False) -> tuple[Hand, np.ndarray]:
    """A hand before a camera, as the network would see it without error, and where it really is."""
    metres = hands.hand(right=right).numpy()
    metres -= metres.mean(axis=0)
    placed = metres @ Rotation.from_euler("xyz", [2.6, 0.3, -0.4]).as_matrix().T + [0.2, 0.15, 1.1]
    pixels, inside = camera.project(torch.from_numpy(placed))
    assert inside.all()
    return Hand(pixels.numpy(), metres, int(right), 1.0), placed


def test_a_hand_stands_where_its_pixels_and_its_metres_agree_through_a_fisheye():
    hand, placed = seen(gopro(784, 448))
    assert np.abs(landmarks.place(hand, gopro(784, 448)) - placed).max() < 1e-4


def test_noise_of_a_pixel_and_of_3_mm_moves_it_by_a_few_percent():
    camera, rng = gopro(784, 448), np.random.default_rng(0)
    hand, placed = seen(camera)
    off = []
    for _ in range(100):
        pixels, metres = hand.pixels + rng.normal(0, 1, (21, 2)), hand.metres + rng.normal(0, 0.003, (21, 3))
        found = landmarks.place(replace(hand, pixels=pixels, metres=metres), camera)
        off.append(np.nan if found is None else found.mean(axis=0)[2] / placed.mean(axis=0)[2] - 1)
    assert np.isfinite(off).mean() > 0.9
    assert np.nanmedian(np.abs(off)) < 0.04


def test_what_fits_no_hand_is_not_placed():
    hand, _ = seen(gopro(784, 448))
    mixed = np.random.default_rng(0).permutation(21)
    assert landmarks.place(replace(hand, pixels=hand.pixels[mixed]), gopro(784, 448)) is None
    assert landmarks.place(replace(hand, pixels=hand.pixels - 5000), gopro(784, 448)) is None


def test_anchors_lie_in_the_middle_of_their_cells():
    assert landmarks.ANCHORS.shape == (2016, 2)
    assert np.allclose(landmarks.ANCHORS[0], 0.5 / 24)
    assert np.allclose(landmarks.ANCHORS[2 * 24 * 24], 0.5 / 12)
    assert (np.unique(landmarks.ANCHORS[:1152], axis=0, return_counts=True)[1] == 2).all()
    assert (np.unique(landmarks.ANCHORS[1152:], axis=0, return_counts=True)[1] == 6).all()


def test_a_hands_region_is_turned_so_that_fingers_look_up_and_begins_below_them():
    palm = np.zeros((9, 2))
    palm[0], palm[1] = (100, 100), (40, 40)
    palm[2], palm[4] = (80, 100), (120, 100)  # wrist to knuckle: fingers look to the right
    centre, side, angle = landmarks.region(palm)
    assert side == pytest.approx(104)
    assert angle == pytest.approx(np.pi / 2)
    assert np.allclose(centre, (120, 100))  # half a palm towards the fingers


def test_boxes_of_one_palm_are_one_palm():
    box = np.array([[50.0, 50.0], [20.0, 20.0], *[[50.0, 50.0]] * 7])
    near, far = box.copy(), box.copy()
    near[0] += 2
    far[0] += 100
    found = landmarks.merged([(0.6, near), (0.9, box), (0.7, far)])
    assert len(found) == 2
    assert found[0][0] == pytest.approx([50.8, 50.8])


def test_tiles_cover_the_picture_and_stay_in_it():
    for width, height in ((1280, 720), (448, 448), (300, 900)):
        found = landmarks.tiles(width, height)
        covered = np.zeros((height, width), bool)
        for left, top, right, bottom in found[1:]:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            covered[top:bottom, left:right] = True
        assert found[0] == (0, 0, width, height)
        assert covered.all()


def test_files_are_known_by_their_digests(tmp_path):
    for name in ("palm", "landmark"):
        (tmp_path / f"{name}.tflite").write_bytes(name.encode())
    named = Hands(source="landmarks", palm=str(tmp_path / "palm.tflite"), landmark=str(tmp_path / "landmark.tflite"))
    assert len(landmarks.revision(named)) == 33
    with pytest.raises(ValueError, match=r"hands.palm: .* has the digest"):
        landmarks.revision(named.model_copy(update={"palm_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"hands.landmark: no file"):
        landmarks.revision(named.model_copy(update={"landmark": ""}))


MODELS = os.environ.get("EGOMILL_HAND_MODELS", "")
REAL = Path(os.environ.get("EGOMILL_REAL_DATA", ""), "egox/videos/iiith_cooking_57_2_2451_2499/exo.mp4")


@pytest.mark.skipif(not MODELS or not REAL.is_file(), reason="EGOMILL_HAND_MODELS or EGOMILL_REAL_DATA names no such folder")
def test_the_cooks_left_hand_is_found_as_her_left():
    from egomill.tasks.media import pictures

    files = {name: f"{MODELS}/{file}" for name, file in (("palm", "palm_detection_full.tflite"), ("landmark", "hand_landmark_full.tflite"))}
    network = landmarks.Network(Hands(source="landmarks", **files))
    found = [hand for frame in pictures.read(REAL, [0, 24]) for hand in network.hands(frame)]
    assert [hand.side for hand in found] == [0, 0]
