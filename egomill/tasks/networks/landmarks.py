"""Hands by MediaPipe's two networks, read from their .tflite files: palms are found, each is cut out turned upright, and 21 landmarks are
found in it, in pixels and in metres around the hand's middle; the hand is then placed before the camera so that both agree (SQPnP).

The files (palm_detection_full.tflite, hand_landmark_full.tflite; Apache-2.0) are the user's, named with their digests; `pip install
egomill[hands]` brings what runs them. Sizes, anchors and regions are those of MediaPipe's graph. Labels of sides are for a mirrored
picture, and are turned back here. Metres assume an average hand: depth is as wrong as the hand is large or small, 5 % (our reading).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from egomill.kernels.cameras import Camera
from egomill.kernels.hands import HANDS, JOINTS
from egomill.schemas.config import Hands
from egomill.schemas.fingerprint import file_sha256

PALM, CROP = 192, 224  # px, what the two networks take
SURE, PRESENT, SAME = 0.5, 0.5, 0.3  # scores of a palm and of a hand; overlap of two boxes of one palm
SHIFT, LARGER = -0.5, 2.6  # of the palm's box, to that of the whole hand
TILES = (2, 3)  # rows and columns of overlapping parts that are looked at beside the whole: hands in exo views are small
OFF = 0.05  # of the hand's size in px, the residual (RMS) of its place above which it is not believed


def revision(settings: Hands) -> str:
    """The digests of both files. ValueError where one is not there, or not as named."""
    found = []
    for name in ("palm", "landmark"):
        path, told = Path(getattr(settings, name)), getattr(settings, f"{name}_sha256")
        if not path.is_file():
            raise ValueError(
                f"hands.{name}: no file {str(path)!r}; hands.source = landmarks reads MediaPipe's two networks from .tflite files"
            )
        sha256 = file_sha256(path)
        if told and sha256 != told:
            raise ValueError(f"hands.{name}: {path} has the digest {sha256}, and hands.{name}_sha256 says {told}")
        found.append(sha256[:16])
    return "+".join(found)


@dataclass(frozen=True)
class Hand:
    """One hand of a picture: its pixels [21, 2], metres around its middle [21, 3] (x right, y down, z away), side 0 left, 1 right."""

    pixels: np.ndarray
    metres: np.ndarray
    side: int
    presence: float


class Network:
    """Both networks; a clip in, its hands out."""

    def __init__(self, settings: Hands) -> None:
        self.said = f"landmarks {revision(settings)}"
        self.palm, self.landmark = _interpreter(settings.palm), _interpreter(settings.landmark)

    def __call__(self, frames: Iterable[np.ndarray], camera: Camera) -> Tensor:
        """Joints [F, 2, 21, 3], metres in the camera's frame, NaN unknown, of pictures uint8 [H, W, 3] by that camera."""
        found = []
        for picture in frames:
            joints = torch.full((HANDS, JOINTS, 3), torch.nan)
            for hand in self.hands(picture):
                placed = place(hand, camera)
                if placed is not None:
                    joints[hand.side] = torch.from_numpy(placed)
            found.append(joints)
        return torch.stack(found)

    def hands(self, picture: np.ndarray) -> list[Hand]:
        """The hands of a picture uint8 [H, W, 3], one a side at most: the surer one."""
        best: dict[int, Hand] = {}
        for centre, size, angle in self.palms(picture):
            hand = self._landmarks(picture, centre, size, angle)
            if hand and (hand.side not in best or hand.presence > best[hand.side].presence):
                best[hand.side] = hand
        return list(best.values())

    def palms(self, picture: np.ndarray) -> list[tuple[np.ndarray, float, float]]:
        """Regions of hands: centre [2] and side in px, and the angle by which the hand is turned."""
        found = []
        for left, top, right, bottom in tiles(*picture.shape[1::-1]):
            part = picture[top:bottom, left:right]
            side = max(part.shape[:2])
            pad = (side - part.shape[1]) // 2, (side - part.shape[0]) // 2
            square = cv2.copyMakeBorder(
                part, pad[1], side - part.shape[0] - pad[1], pad[0], side - part.shape[1] - pad[0], cv2.BORDER_CONSTANT
            )
            seen = cv2.resize(square, (PALM, PALM), interpolation=cv2.INTER_AREA if side > PALM else cv2.INTER_LINEAR)
            boxes, logits = _run(self.palm, seen.astype(np.float32)[None] / 255)
            scores = 1 / (1 + np.exp(-np.clip(logits[0, :, 0], -50, 50)))
            kept = scores >= SURE
            points = boxes[0, kept].reshape(-1, 9, 2) / PALM  # centre, size, seven points
            points[:, [0, *range(2, 9)]] += ANCHORS[kept][:, None]
            points[:, [0, *range(2, 9)]] = points[:, [0, *range(2, 9)]] * side + np.array([left - pad[0], top - pad[1]])
            points[:, 1] *= side
            found += list(zip(scores[kept], points, strict=True))
        return [region(points) for points in merged(found)]

    def _landmarks(self, picture: np.ndarray, centre: np.ndarray, size: float, angle: float) -> Hand | None:
        scale = size / CROP
        turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        to_picture = np.concatenate([turn, (centre - turn @ np.full(2, (CROP - 1) / 2))[:, None]], axis=1)
        crop = cv2.warpAffine(picture, to_picture, (CROP, CROP), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        outputs = _run(self.landmark, crop.astype(np.float32)[None] / 255)
        (pixels, metres), (presence, left) = (
            [o.reshape(JOINTS, 3) for o in outputs if o.size == 3 * JOINTS],
            [o.item() for o in outputs if o.size == 1],
        )
        if presence < PRESENT:
            return None
        upright = metres.astype(np.float64).copy()
        upright[:, :2] = upright[:, :2] @ (turn / scale).T
        side = 1 if left > 0.5 else 0  # of a mirrored picture, that is
        return Hand(pixels[:, :2] @ turn.T + to_picture[:, 2], upright, side, presence)


def _interpreter(path: str) -> object:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ValueError(f"hands.source = landmarks needs ai-edge-litert: pip install egomill[hands] ({error})") from None
    network = Interpreter(model_path=path, num_threads=1)
    network.allocate_tensors()
    return network


def _run(network, picture: np.ndarray) -> list[np.ndarray]:
    network.set_tensor(network.get_input_details()[0]["index"], picture)
    network.invoke()
    return [network.get_tensor(about["index"]).copy() for about in network.get_output_details()]


def anchors() -> np.ndarray:
    """Centres [2016, 2] of the palm network's boxes, in 0..1: two in each of 24x24 cells, six in each of 12x12."""
    found = []
    for cells, each in ((24, 2), (12, 6)):
        y, x = np.meshgrid((np.arange(cells) + 0.5) / cells, (np.arange(cells) + 0.5) / cells, indexing="ij")
        found.append(np.stack([x, y], axis=-1).reshape(-1, 2).repeat(each, axis=0))
    return np.concatenate(found)


ANCHORS = anchors()


def tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The whole picture, and overlapping parts of half its height: left, top, right, bottom."""
    side = height // TILES[0] + height // 8
    lefts = np.linspace(0, width - side, TILES[1] + (width > 1.5 * height)).round().astype(int) if width > side else [0]
    tops = np.linspace(0, height - side, TILES[0]).round().astype(int)
    return [(0, 0, width, height), *((int(x), int(y), int(x) + min(side, width), int(y) + side) for y in tops for x in lefts)]


def merged(found: list[tuple[float, np.ndarray]]) -> list[np.ndarray]:
    """Palms [9, 2] (centre, size, seven points), those that overlap averaged by score, the surest first."""
    left, out = sorted(found, key=lambda one: -one[0]), []
    while left:
        first = left[0][1]
        same = [one for one in left if _overlap(first, one[1]) > SAME]
        left = [one for one in left if _overlap(first, one[1]) <= SAME]
        out.append(np.average([points for _, points in same], axis=0, weights=[score for score, _ in same]))
    return out


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[0] - a[1] / 2, b[0] - b[1] / 2), np.minimum(a[0] + a[1] / 2, b[0] + b[1] / 2)
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / max(np.prod(a[1]) + np.prod(b[1]) - shared, 1e-9)) if a is not b else 1.0


def region(palm: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Where the whole hand of a palm [9, 2] is: centre and side in px, and the angle that turns a picture so that wrist (point 0) to middle
    knuckle (point 2) looks up."""
    (x, y), side = palm[2 + 2] - palm[2], float(palm[1].max())
    angle = math.atan2(y, x) + math.pi / 2
    along = np.array([-math.sin(angle), math.cos(angle)])  # downwards in the upright hand
    return palm[0] + SHIFT * side * along, LARGER * side, angle


def place(hand: Hand, camera: Camera) -> np.ndarray | None:
    """Joints [21, 3] in the camera's frame, metres: argmin over (R, t) of Σ |π(R W + t) − u|²; None where nothing fits."""
    rays, inside = camera.unproject(torch.from_numpy(hand.pixels))
    flat = rays.numpy()
    if not bool(inside.all()) or (flat[:, 2] < 0.1).any():
        return None
    flat = np.ascontiguousarray(flat[:, :2] / flat[:, 2:])
    eye, nothing = np.eye(3), np.zeros(4)
    ok, turn, t = cv2.solvePnP(hand.metres, flat, eye, nothing, flags=cv2.SOLVEPNP_SQPNP)
    if not ok:
        return None
    turn, t = cv2.solvePnPRefineLM(hand.metres, flat, eye, nothing, turn, t)
    placed = hand.metres @ cv2.Rodrigues(turn)[0].T + t[:, 0]
    if (placed[:, 2] <= 0).any():
        return None
    off = np.sqrt(((placed[:, :2] / placed[:, 2:] - flat) ** 2).sum(axis=1).mean())
    return placed.astype(np.float32) if off <= OFF * np.ptp(flat, axis=0).max() else None
