"""A person of capsules and ellipsoids at a table: where each limb is, given where the feet stand, the hands grip and the eyes look.

Only as much anatomy as the cameras need: two-bone arms and legs solved in closed form, hands with bent fingers (the head camera sees
them from 30 cm), a torso that leans when the table is far.
"""

from dataclasses import dataclass

import numpy as np

from egomill.scenes.solids import BOX, Builder, Solids, rot_z

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Look:
    """Materials (indices) and stature (1 = 1.72 m) of a person."""

    skin: int
    shirt: int
    sleeve: int
    trousers: int
    shoes: int
    hair: int
    dark: int
    stature: float
    long_hair: bool
    long_sleeves: bool


@dataclass(frozen=True)
class Posture:
    """The inputs of `body`, in world coordinates, metres."""

    root: np.ndarray  # [2] where the feet stand
    yaw: float  # heading: rot_z(yaw) turns +y to the front
    stride: float  # phase of the steps, radians
    pace: float  # 0 standing .. 1 walking
    grips: np.ndarray  # [2, 3] left, right: middle of what the hand holds
    grip_radius: np.ndarray  # [2]
    curl: np.ndarray  # [2] 0 open .. 1 fist
    gaze: np.ndarray  # [3]


def body(look: Look, posture: Posture) -> tuple[Solids, np.ndarray, np.ndarray, np.ndarray]:
    """The person's solids, which of them belong to the head (bool [P]; not seen by the head camera), T_world_eye [4, 4], and the hands'
    joints [2, 21, 3] in the world, left and right (their order: kernels/hands.py).

    The eye frame is the head camera's in portrait orientation: x right, y down, z forward.
    """
    s = look.stature
    frame = rot_z(posture.yaw)
    right, front = frame[:, 0], frame[:, 1]
    foot = np.array([*posture.root, 0.0])
    out = Builder()
    sway = 0.012 * np.sin(posture.stride)
    lean = float(np.clip(0.5 * ((posture.grips - foot) @ front).max() - 0.05, 0.02, 0.3))
    pelvis = foot + 0.93 * s * UP + sway * right - 0.03 * front - 0.05 * lean * front
    spine = np.cos(lean) * UP + np.sin(lean) * front
    chest, neck = pelvis + 0.33 * s * spine, pelvis + 0.52 * s * spine
    torso = np.stack((right, np.cross(spine, right), spine), 1)
    out.ball(pelvis + 0.02 * UP, (0.165 * s, 0.12 * s, 0.14 * s), look.trousers, torso)
    out.ball(pelvis + 0.16 * s * spine, (0.15 * s, 0.11 * s, 0.17 * s), look.shirt, torso)
    out.ball(chest, (0.18 * s, 0.125 * s, 0.22 * s), look.shirt, torso)
    shoulder = neck - 0.075 * s * spine
    out.limb(shoulder - 0.14 * s * right, shoulder + 0.14 * s * right, 0.068 * s, look.shirt)
    _legs(out, look, posture, pelvis, foot, right, front)
    hands = [
        _arm(
            out,
            look,
            shoulder + sign * 0.19 * s * right,
            posture.grips[side],
            posture.grip_radius[side],
            posture.curl[side],
            sign,
            right,
            front,
        )
        for side, sign in ((0, -1.0), (1, 1.0))
    ]
    first_head = len(out.rows)
    eye = _head(out, look, neck, front, posture.gaze)
    solids = out.build()
    return solids, np.arange(len(solids)) >= first_head, eye, np.stack(hands)


def bend(a: np.ndarray, b: np.ndarray, upper: float, lower: float, hint: np.ndarray) -> np.ndarray:
    """The middle joint of a two-bone limb from a to b (law of cosines), bent towards `hint`; too far a target stretches both bones."""
    span = b - a
    distance = float(np.linalg.norm(span)) + 1e-9
    grow = max(1.0, distance / (0.995 * (upper + lower)))
    upper, lower = upper * grow, lower * grow
    along = (upper**2 - lower**2 + distance**2) / (2 * distance)
    across = np.sqrt(max(upper**2 - along**2, 0.0))
    axis = span / distance
    side = hint - (hint @ axis) * axis
    return a + along * axis + across * side / (np.linalg.norm(side) + 1e-9)


def _legs(out: Builder, look: Look, posture: Posture, pelvis: np.ndarray, foot: np.ndarray, right: np.ndarray, front: np.ndarray) -> None:
    s = look.stature
    for sign in (-1.0, 1.0):
        phase = posture.stride + (0.0 if sign > 0 else np.pi)
        step = posture.pace * 0.12 * np.sin(phase) * right
        rise = posture.pace * 0.06 * max(np.cos(phase), 0.0)
        hip = pelvis + sign * 0.09 * s * right
        ankle = foot + sign * 0.11 * s * right + step + (0.085 + rise) * UP - 0.02 * front
        knee = bend(hip, ankle, 0.44 * s, 0.43 * s, front)
        out.limb(hip, knee, 0.075 * s, look.trousers)
        out.limb(knee, ankle, 0.055 * s, look.trousers)
        toe = ankle + 0.15 * front - (0.035) * UP
        out.limb(ankle - 0.035 * UP - 0.03 * front, toe, 0.045, look.shoes)


def _arm(out: Builder, look: Look, shoulder, grip, radius: float, curl: float, sign: float, right, front) -> np.ndarray:
    """Builds an arm; returns the joints of its hand [21, 3]. Fingers bend in one place less than real ones: the joint before the tip lies
    in the middle of the last bone, as does the thumb's second."""
    s = look.stature
    reach = grip - shoulder
    flat = reach - (reach @ UP) * UP
    flat = flat / (np.linalg.norm(flat) + 1e-9)
    fingers = 0.75 * flat + 0.35 * front - 0.45 * UP - sign * 0.25 * right  # forwards, down and a little inwards
    fingers /= np.linalg.norm(fingers)
    palm_side = -sign * right - 0.55 * UP  # the palm looks inwards and down
    palm_side -= (palm_side @ fingers) * fingers
    palm_side /= np.linalg.norm(palm_side)
    across = np.cross(palm_side, fingers)  # the knuckles' row
    thumb_side = across if across @ UP > 0 else -across
    palm = grip - palm_side * (radius + 0.016) - fingers * 0.012
    wrist = palm - 0.075 * fingers
    elbow = bend(shoulder, wrist, 0.29 * s, 0.26 * s, 0.7 * sign * right - 0.6 * UP - 0.4 * front)
    out.limb(shoulder, elbow, 0.052 * s, look.sleeve)
    if look.long_sleeves:
        cuff = wrist + 0.035 * (elbow - wrist) / (np.linalg.norm(elbow - wrist) + 1e-9)
        out.limb(elbow, cuff, 0.041 * s, look.sleeve)
    else:
        out.limb(elbow, elbow + 0.45 * (wrist - elbow), 0.04 * s, look.skin)
    out.limb(elbow + 0.3 * (wrist - elbow), wrist, 0.031 * s, look.skin)
    turn = np.stack((thumb_side, np.cross(fingers, thumb_side), fingers), 1)
    out.ball(palm - 0.008 * fingers, (0.043, 0.021, 0.058), look.skin, turn)
    fingers_joints = []
    for k, length in enumerate((0.88, 1.0, 0.95, 0.76)):
        knuckle = palm + 0.036 * fingers + (0.03 - 0.02 * k) * thumb_side + 0.002 * palm_side
        one, two = 0.25 + 0.9 * curl, 0.7 + 1.7 * curl
        a = knuckle + 0.047 * length * (np.cos(one) * fingers + np.sin(one) * palm_side)
        b = a + 0.04 * length * (np.cos(two) * fingers + np.sin(two) * palm_side)
        out.limb(knuckle, a, 0.0105, look.skin)
        out.limb(a, b, 0.0092, look.skin)
        fingers_joints += [knuckle, a, (a + b) / 2, b]
    root = palm - 0.02 * fingers + 0.03 * thumb_side + 0.008 * palm_side
    joint = root + 0.035 * (0.6 * fingers + 0.45 * thumb_side + (0.3 + 0.4 * curl) * palm_side)
    out.limb(root, joint, 0.0135, look.skin)
    tip = joint + 0.034 * (0.75 * fingers + 0.1 * thumb_side + (0.3 + 0.6 * curl) * palm_side)
    out.limb(joint, tip, 0.011, look.skin)
    return np.stack([wrist, root, (root + joint) / 2, joint, tip, *fingers_joints])


def _head(out: Builder, look: Look, neck, front, gaze) -> np.ndarray:
    s = look.stature
    middle = neck + 0.15 * s * UP + 0.03 * front
    to = gaze - (middle + 0.05 * UP)
    heading = np.arctan2(to[1], to[0])
    face = np.arctan2(front[1], front[0])
    turn = np.clip((heading - face + np.pi) % (2 * np.pi) - np.pi, -1.1, 1.1)
    pitch = np.clip(np.arctan2(to[2], np.hypot(to[0], to[1])) * 0.88 + 0.09, -1.0, 0.2)
    level = np.array([np.cos(face + turn), np.sin(face + turn), 0.0])
    forward = np.cos(pitch) * level + np.sin(pitch) * UP
    right = np.cross(level, UP)
    down = np.cross(forward, right)
    middle = middle + 0.03 * forward
    head = np.stack((right, forward, -down), 1)
    out.limb(neck - 0.06 * s * UP, middle - 0.06 * UP, 0.052 * s, look.skin)
    out.ball(middle, (0.078 * s, 0.096 * s, 0.118 * s), look.skin, head)
    crown = middle - 0.022 * forward - 0.025 * down
    out.ball(crown, (0.086 * s, 0.098 * s, 0.11 * s), look.hair, head)
    if look.long_hair:
        out.ball(crown - 0.045 * forward + 0.1 * down, (0.085 * s, 0.06 * s, 0.15 * s), look.hair, head)
    nose = middle + 0.095 * s * forward + 0.02 * down
    out.limb(nose - 0.02 * down, nose + 0.012 * down + 0.01 * forward, 0.014, look.skin)
    glasses = middle + 0.088 * s * forward - 0.018 * down
    for sign in (-1.0, 1.0):
        out.add(BOX, glasses + sign * 0.036 * right, (0.03, 0.008, 0.02), look.dark, head)
        out.add(BOX, glasses + sign * 0.074 * s * right - 0.05 * forward, (0.004, 0.055, 0.007), look.dark, head)
        out.ball(middle + sign * 0.078 * s * right, (0.014, 0.022, 0.03), look.skin, head)
    eye = np.eye(4)
    eye[:3, 0], eye[:3, 1], eye[:3, 2] = right, down, forward
    eye[:3, 3] = glasses + 0.02 * forward
    return eye
