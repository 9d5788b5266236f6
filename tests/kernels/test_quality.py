"""Quality figures move the right way, on pictures and on camera set-ups whose answer is known."""

import math
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from egomill.kernels import quality
from egomill.kernels.cameras import T_shown_sensor, aria_rgb, gopro
from egomill.tasks.media.video import read as read_video

GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randint(0, 255, (1, 128, 128, 3), dtype=torch.uint8, generator=GENERATOR)


def blurred(size: int) -> torch.Tensor:
    picture = torch.nn.functional.avg_pool2d(NOISE.movedim(-1, 1).float(), size, 1, size // 2)
    return picture.movedim(1, -1).round().to(torch.uint8)


def looking(x: float, y: float, z: float, at: tuple[float, float, float]) -> torch.Tensor:
    """A camera at (x, y, z) that looks at a point; world y down."""
    place = torch.tensor([x, y, z], dtype=torch.float32)
    forward = torch.nn.functional.normalize(torch.tensor(at, dtype=torch.float32) - place, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward), dim=0)
    T = torch.eye(4)
    T[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    T[:3, 3] = place
    return T


def test_blur_lowers_sharpness_and_contrast_does_not():
    sharp, soft = quality.sharpness(NOISE), quality.sharpness(blurred(9))
    assert soft < 0.1 * sharp
    assert quality.sharpness((NOISE.float() * 0.5).to(torch.uint8)) == pytest.approx(float(sharp), rel=0.05)
    assert quality.sharpness(torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)) == 0


def test_motion():
    still = NOISE.repeat(4, 1, 1, 1)
    moving = torch.stack([blurred(9)[0].roll(4 * i, 1) for i in range(4)])
    assert quality.motion(still).max() == 0
    assert quality.motion(moving).min() > 0.005


def test_exposure_within_the_disc():
    video = torch.full((2, 32, 32, 3), 120, dtype=torch.uint8)
    video[0, :8], video[1, :16] = 0, 255
    dark, blown = quality.exposure(video)
    assert dark.tolist() == [0.25, 0.0]
    assert blown.tolist() == [0.0, 0.5]
    region = torch.zeros(32, 32, dtype=torch.bool)
    region[20:] = True
    assert quality.exposure(video, region)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("first", [0, 30, 56], ids=["at its start", "in its middle", "at its end"])
def test_a_hand_before_the_lens_is_seen_until_it_has_gone(first):
    video = blurred(5).repeat(60, 1, 1, 1)
    assert not quality.covered(video, 20).any()
    for frame, rows in enumerate((30, 100, 80, 20)):
        video[first + frame, :rows] = 250
    assert quality.covered(video, 20).nonzero().flatten().tolist() == list(range(first, first + 4))


def test_brightness_that_changes_and_somebody_who_moves_on_cover_nothing():
    video = blurred(5).repeat(60, 1, 1, 1)
    video[:5] = (video[:5].float() * 0.8).to(torch.uint8)
    video[25:, 40:100, :60] = 30  # has come, and stays
    assert not quality.covered(video, 20).any()


def test_a_camera_that_looks_along_sees_more_than_one_that_looks_away():
    ego = looking(0, 0, 0, (0, 0.3, 1))[None]
    behind, opposite, away = looking(0.5, -0.5, -2, (0, 0.3, 1)), looking(0, 0, 4, (0, 0, 0)), looking(0, 0, -2, (0, 0, -5))
    seen = {name: quality.overlap(gopro(), T, aria_rgb(), ego) for name, T in (("behind", behind), ("opposite", opposite), ("away", away))}
    assert seen["behind"][0] > 0.6
    assert seen["away"][0] < 0.02
    assert seen["behind"][1] > 0.5
    assert seen["opposite"][1] < -0.3


def test_overlap_with_oneself_is_whole():
    T = looking(0, 0, 0, (0.2, 0.1, 1))
    share, facing = quality.overlap(aria_rgb(), T, aria_rgb(), T[None])
    assert share > 0.99
    assert facing == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("rotation", "body"), [([0.4, 1.0, -0.2], 0.0), ([0, 0, 1.2], 0.3)], ids=["any, no body", "about the vertical"])
def test_overlap_does_not_depend_on_the_world(rotation, body):
    ego, exo, world = looking(0, 0, 0, (0, 0.3, 1)), looking(1, -1, -2, (0, 0.3, 1)), torch.eye(4)
    world[:3, :3] = torch.tensor(Rotation.from_rotvec(rotation).as_matrix())
    world[:3, 3] = 5
    here = quality.overlap(gopro(), exo, aria_rgb(), ego[None], body=body)
    there = quality.overlap(gopro(), world @ exo, aria_rgb(), (world @ ego)[None], body=body)
    assert here[0] == pytest.approx(float(there[0]), abs=5e-3)
    assert here[1] == pytest.approx(float(there[1]), abs=5e-3)


def test_the_wearer_stands_in_the_way():
    """World z up; the wearer looks along x. From behind the back the hands are hidden, from the side they are not."""
    upright = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]])
    behind, beside = upright.clone(), torch.tensor([[1.0, 0, 0, 0.5], [0, 0, 1, -2], [0, -1, 0, 1.4], [0, 0, 0, 1]])
    behind[0, 3], behind[2, 3] = -1.5, 1.4
    for exo, hidden in ((behind, True), (beside, False)):
        free = quality.overlap(gopro(), exo, aria_rgb(), upright[None], far=1.0, body=0.0)[0]
        blocked = quality.overlap(gopro(), exo, aria_rgb(), upright[None], far=1.0)[0]
        assert (blocked < 0.8 * free) == hidden


def test_the_workspace_grows_as_the_camera_comes_near():
    ego = looking(0, 0, 0, (0, 0, 1))[None]
    shares = [float(quality.workspace_share(gopro(), looking(0, 0, -d, (0, 0, 1)), ego)) for d in (2.0, 4.0, 8.0)]
    assert shares[0] > 2 * shares[1] > 4 * shares[2] > 0
    assert quality.workspace_share(gopro(), looking(0, 0, -2, (0, 0, -5)), ego) == 0


def test_masked_psnr():
    truth = NOISE.repeat(2, 1, 1, 1)
    off = (truth.float() + 10).clamp(0, 255).to(torch.uint8)
    region = torch.zeros(2, 128, 128, dtype=torch.bool)
    region[0] = (truth[0] < 240).all(-1)
    found = quality.masked_psnr(off, truth, region)
    assert found[0] == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)
    assert found[1].isnan()
    assert (quality.masked_psnr(truth, truth) == 100).all()


def test_the_take_separator_of_the_real_take(real_data: Path):
    """A hand with a phone before cam01 for the first nine frames, and from frame 616 or so to the end; nothing before the others."""
    folder = next((real_data / "egoexo4d").rglob("downscaled/448"))
    for name in ("cam01", "cam02", "cam03", "cam04"):
        frames = read_video(folder / f"{name}.mp4", range(0, 634, 3), (50, 28))
        covered = (3 * quality.covered(torch.from_numpy(frames), 100).nonzero().flatten()).tolist()
        assert covered == ([0, 3, 6, *range(618, 634, 3)] if name == "cam01" else [])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_where_around_the_wearer_a_camera_stands(turns):
    """Of the upright picture, whose x is to the right and z ahead, whichever way the sensor lies; the world is turned and moved."""
    angles = torch.tensor([0.3, -1.1, 0.4], dtype=torch.float64)
    T_world_shown = torch.eye(4, dtype=torch.float64)
    T_world_shown[:3, :3] = torch.matrix_exp(torch.cross(torch.eye(3, dtype=torch.float64), angles.expand(3, 3), dim=1))
    T_world_shown[:3, 3] = torch.tensor([2.0, -1.0, 0.5])
    T_world_ego = T_world_shown @ T_shown_sensor(turns)
    for place, angle in (((0, 0.3, 2), 0), ((1, -0.5, 0), math.pi / 2), ((-1, 0.2, 1), -math.pi / 4), ((1, 0, -1), 3 * math.pi / 4)):
        T_world_exo = torch.eye(4, dtype=torch.float64)
        T_world_exo[:3, 3] = (T_world_shown @ torch.tensor([*place, 1], dtype=torch.float64))[:3]
        assert quality.azimuth(T_world_exo, T_world_ego, turns) == pytest.approx(angle, abs=1e-9)
