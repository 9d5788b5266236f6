"""What tells right inputs of a request from the usual wrong ones, on pictures and paths whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from egomill.kernels import plausible
from egomill.kernels.cameras import T_shown_sensor, gopro
from egomill.kernels.poses import inverse

FRAMES, HEIGHT, WIDTH = 6, 180, 320


def room(seed: int = 0) -> np.ndarray:
    """A wall of patches with texture, uint8 [H, W, 3]."""
    noise = np.random.default_rng(seed).integers(30, 220, (HEIGHT // 12, WIDTH // 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)


def filmed(warp=None, seed: int = 0, noise: float = 2.0) -> torch.Tensor:
    """A video of the room through `warp(picture, frame)`, with a sensor's noise."""
    frames = [room(seed) if warp is None else warp(room(seed), n) for n in range(FRAMES)]
    grain = np.random.default_rng(1).normal(0, noise, (FRAMES, HEIGHT, WIDTH, 3))
    return torch.from_numpy(np.clip(np.stack(frames) + grain, 0, 255).astype(np.uint8))


def moved(matrix: Callable) -> Callable:
    def warp(picture, n):
        return cv2.warpAffine(picture, np.float32(matrix(n)), (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)

    return warp


def person(share: float) -> Callable:
    """Somebody with a pattern who walks before the room and fills `share` of the picture."""

    def warp(picture, n):
        wide = int(WIDTH * share)
        left = (n * 17) % (WIDTH - wide)
        picture[:, left : left + wide] = room(9)[:, :wide]
        return picture

    return warp


@pytest.mark.parametrize(
    "warp",
    [
        None,
        person(0.5),
        lambda picture, n: (picture * (1 - 0.08 * n)).astype(np.uint8),  # dusk
        moved(lambda n: [[1, 0, 0.15 * (-1) ** n], [0, 1, 0]]),  # a lorry passes
    ],
)
def test_a_camera_that_stands(warp):
    found = plausible.standing(filmed(warp))
    assert float(found.still.min()) > 0.15


@pytest.mark.parametrize(
    "warp",
    [
        moved(lambda n: [[1, 0, 2.0 * n], [0, 1, 0]]),
        moved(lambda n: [[1, 0, 0.8 * n], [0, 1, 0.4 * n]]),  # creeps: 4 px in all
        moved(lambda n: [[1, 0, 5.0 * (n == 3)], [0, 1, 3.0 * (n == 3)]]),  # a knock
        moved(lambda n: cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 2.0 * n, 1)),
        moved(lambda n: cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 0, 1 + 0.03 * n)),
    ],
)
def test_a_camera_that_moves(warp):
    found = plausible.standing(filmed(warp))
    assert bool(((found.still < 0.1) & (found.moved > 0.2)).any())


def test_a_covered_lens_is_no_motion_and_a_blank_wall_tells_nothing():
    found = plausible.standing(filmed(lambda picture, n: picture if n < 4 else np.full_like(picture, 20)))
    assert float(found.still[-1]) < 0.1
    assert float(found.moved.max()) < 0.2
    assert plausible.standing(torch.full((3, HEIGHT, WIDTH, 3), 90, dtype=torch.uint8)) is None


def path(frames: int = 20) -> torch.Tensor:
    """T_exo_ego [F, 4, 4]: a head three metres before the camera, upright, turning left and right and nodding."""
    n = np.arange(frames)
    turn = Rotation.from_euler("yx", np.stack([30 * np.sin(n / 4), -20 + 5 * np.cos(n / 5)], axis=1), degrees=True)
    T = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    T[:, :3, :3] = torch.from_numpy(turn.as_matrix())
    T[:, :3, 3] = torch.tensor([0.2, -0.3, 3.0], dtype=torch.float64) + 0.02 * torch.from_numpy(np.sin(n / 3))[:, None]
    return T


def test_roll_is_that_of_the_picture():
    assert plausible.roll(path()) == pytest.approx(0, abs=12)
    assert abs(plausible.roll(path() @ T_shown_sensor(1))) == pytest.approx(90, abs=12)
    assert abs(plausible.roll(path() @ T_shown_sensor(2))) > 168
    opengl = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    assert abs(plausible.roll(path() @ opengl)) > 168


def test_a_head_moves_less_than_the_room_about_it():
    assert plausible.swing(path()) < 0.5
    assert plausible.swing(inverse(path())) > 2
    assert np.isnan(plausible.swing(path()[:1].repeat(5, 1, 1)))


def test_what_stirs_where_the_head_is():
    camera = gopro(320, 180)
    seen = plausible.head_seen(path(), camera)
    assert bool(seen.inside.all())
    rows, columns = torch.meshgrid(torch.arange(180), torch.arange(320), indexing="ij")
    near = [(columns - x) ** 2 + (rows - y) ** 2 < 15**2 for x, y in seen.at]
    assert float(plausible.stir(seen, torch.stack(near)).min()) > 0.8
    assert float(plausible.stir(seen, torch.stack(near).roll(80, dims=2)).max()) == 0
    behind = path()
    behind[:, 2, 3] *= -1
    assert not bool(plausible.head_seen(behind, camera).inside.any())
    assert bool(plausible.stir(plausible.head_seen(behind, camera), torch.stack(near)).isnan().all())


def test_edges_of_depth_lie_on_those_of_its_own_picture():
    picture, depth = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.full((HEIGHT, WIDTH), 4.0, np.float32)
    for n, (x, y) in enumerate([(20, 30), (90, 100), (200, 40), (250, 120)]):
        picture[y : y + 40, x : x + 40], depth[y : y + 40, x : x + 40] = 30 + 50 * n, 1 + 0.5 * n
    grain = np.random.default_rng(2).normal(0, 6, picture.shape)
    video, depth = torch.from_numpy(np.clip(picture + grain, 0, 255).astype(np.uint8))[None], torch.from_numpy(depth)[None]
    assert plausible.edges_agree(video, depth) > 0.8
    assert plausible.edges_agree(video, depth.flip(2)) < 0.62
    assert np.isnan(plausible.edges_agree(video, torch.full_like(depth, 3.0)))
    assert np.isnan(plausible.edges_agree(video, torch.zeros_like(depth)))
