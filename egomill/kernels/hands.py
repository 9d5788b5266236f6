"""Hands of 21 joints: what belongs together, where their surface is, how they are drawn, and the scale that they give to depth (GenEgo).

Joints are [..., 2, 21, 3], metres in a camera's frame, NaN where unknown: left hand 0, right hand 1; joint 0 is the wrist, then thumb,
index, middle, ring and little finger, four joints each from the palm to the tip (the order of H2O, Ego-Exo4D and MediaPipe, not of MANO).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from egomill.kernels.cameras import Camera
from egomill.kernels.footprint import depth_edges

HANDS, JOINTS = 2, 21
BONES = tuple(((0 if j % 4 == 1 else j - 1), j) for j in range(1, JOINTS))  # (nearer to the wrist, nearer to the tip)
PALM, FINGER = 0.012, 0.009  # m, radius around bones that begin at the wrist, and around others: our reading
NEAR = 0.05  # m before the camera; what is nearer is not drawn
DRAWN = 512  # px, the width of a picture that the next two are of
BONE, DOT = 4, 3  # px across a bone, radius of a joint: our reading, as is the whole drawing
COLOURS = np.array([[255, 80, 80], [255, 200, 60], [90, 220, 90], [80, 200, 255], [190, 110, 255]])  # thumb to little finger
LIGHTER = 0.45  # of the way to white, for the right hand
SUBPIXEL = 4  # bits


def surface(joints: Tensor, camera: Camera) -> Tensor:
    """Distance along each pixel's ray to the hands [H, W], metres, infinite where there is none: capsules along the bones.

    joints [2, 21, 3] in the camera's frame. Joints lie some 10 mm below the skin: depth at their own pixels is no measure of theirs.
    """
    rays, inside = camera.rays()
    nearest = torch.full(rays.shape[:-1], torch.inf)
    for hand in joints.float():
        known = hand[hand.isfinite().all(dim=-1)]
        if not len(known):
            continue
        middle, reach = known.mean(dim=0), (known - known.mean(dim=0)).norm(dim=-1).max() + PALM
        along = rays @ middle
        near = middle.dot(middle) - along**2 < reach**2  # rays that meet the ball around the hand: no other meets it
        for a, b in BONES:
            if hand[[a, b]].isfinite().all():
                nearest[near] = torch.minimum(nearest[near], _capsule(rays[near], hand[a], hand[b], FINGER if a else PALM))
    return torch.where(inside, nearest, torch.inf)


def _capsule(d: Tensor, a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Distance [...] from the origin along unit directions d [..., 3] to a capsule; infinite where it is missed or behind."""
    ab = b - a
    square, along, back = ab.dot(ab), d @ ab, -ab.dot(a)
    facing, origin = -(d @ a), a.dot(a)
    p = square - along**2
    q = square * facing - back * along
    root = q**2 - p * (square * origin - back**2 - radius**2 * square)
    t = (-q - root.clamp_min(0).sqrt()) / p.clamp_min(1e-12)
    at = back + t * along
    end = torch.where((at <= 0)[..., None], a, b)
    facing = -(d * end).sum(-1)
    cap = facing**2 - (end * end).sum(-1) + radius**2
    on_side = (at > 0) & (at < square) & (root > 0)
    t = torch.where(on_side, t, torch.where(cap > 0, -facing - cap.clamp_min(0).sqrt(), torch.inf))
    return torch.where(t > 0, t, torch.inf)


def by_themselves(joints: Tensor) -> tuple[Tensor, Tensor]:
    """Hands [N, 2, 21, 3] in a frame of their own, metres, NaN where unknown: however the camera stands, they are the same. And the
    direction [N, 3], in that frame, in which the camera's picture goes down.

    Origin: the middle of the known joints. x: from the left wrist to the right one; of a single hand from the wrist to its middle knuckle.
    y: across it, towards the fingers; of a single hand towards its little finger. All NaN where these are not known.
    """
    wrists, middle, index, little = (joints[:, :, j] for j in (0, 9, 5, 17))
    both = wrists.isfinite().all(dim=-1).all(dim=-1)
    fingers = middle - wrists
    one = torch.where(fingers[:, 0].isfinite().all(dim=-1), 0, 1)
    rows = torch.arange(len(joints))
    x = torch.where(both[:, None], wrists[:, 1] - wrists[:, 0], fingers[rows, one])
    y = torch.where(both[:, None], fingers.nanmean(dim=1), (little - index)[rows, one])
    x = functional.normalize(x, dim=-1)
    y = functional.normalize(y - (x * y).sum(dim=-1, keepdim=True) * x, dim=-1)
    R = torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)
    flat = joints.flatten(1, 2)
    return ((flat - flat.nanmean(dim=1, keepdim=True)) @ R).view_as(joints), R[:, 1]


@dataclass(frozen=True)
class Scale:
    """The factor from estimated depth to metres, how many pixels said so, and the spread (quartile to quartile) of its logarithm."""

    factor: float
    pixels: int
    spread: float


def scale(hands: Tensor, depth: Tensor, shrink: int = 1) -> Scale:
    """s* = median over the hands' pixels of D_hand / D_exo (EgoWorld): D_exo times s* has the hands where they are.

    hands [F, H, W] as `surface` has it, depth [F, H, W] along the ray, 0 or NaN unknown, of a fixed camera: all frames are taken together.
    The rim of the hands (`shrink` px) and depth's edges are left out. A median bears half its pixels being something else's; a least square
    does not (a tenth of background: a fifth off). NaN where no pixel is left.
    """
    there = hands.isfinite().float()[:, None]
    whole = -functional.max_pool2d(-there, 2 * shrink + 1, stride=1, padding=shrink)[:, 0] > 0
    used = whole & ~depth_edges(depth, window=3)
    ratios = (hands[used] / depth[used]).double().log()
    if not len(ratios):
        return Scale(float("nan"), 0, float("nan"))
    low, middle, high = torch.quantile(ratios, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Scale(float(np.exp(middle)), len(ratios), high - low)


def pose_map(joints: Tensor, camera: Camera) -> np.ndarray:
    """Hands [2, 21, 3] in the camera's frame drawn as it sees them: uint8 RGB [H, W, 3] of the stored picture, black around.

    A hue a finger, the right hand lighter, through the lens. Bones with an end that is unknown, nearer than 5 cm or beyond the lens are
    left out. Training and sampling have to see one drawing: it is made here alone.
    """
    picture = np.zeros((camera.height, camera.width, 3), np.uint8)
    known = joints.isfinite().all(dim=-1) & (joints[..., 2] > NEAR)
    points = torch.where(known[..., None], joints, torch.tensor([0.0, 0.0, 1.0], dtype=joints.dtype)).double()
    pixels, _ = camera.project(points)
    known &= torch.atan2(points[..., :2].norm(dim=-1), points[..., 2]) < camera.field_of_view
    places = (pixels * 2**SUBPIXEL).round().int().numpy()
    size = camera.width / DRAWN
    width, radius = max(1, round(BONE * size)), max(1, round(DOT * size * 2**SUBPIXEL))
    for hand in range(HANDS):
        colours = COLOURS + hand * LIGHTER * (255 - COLOURS)
        for a, b in BONES:
            if known[hand, a] and known[hand, b]:
                ends = tuple(map(int, places[hand, a])), tuple(map(int, places[hand, b]))
                cv2.line(picture, *ends, colours[(b - 1) // 4].tolist(), width, cv2.LINE_AA, SUBPIXEL)
        for joint in range(JOINTS):
            if known[hand, joint]:
                colour = colours[(joint - 1) // 4] if joint else colours.mean(axis=0)
                cv2.circle(picture, tuple(map(int, places[hand, joint])), radius, colour.tolist(), cv2.FILLED, cv2.LINE_AA, SUBPIXEL)
    return picture
