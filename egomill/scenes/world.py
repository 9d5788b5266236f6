"""What is in a scene at time t: a room, its furniture, a table with things on it, a person who handles them, and five cameras.

Everything follows from one seed. World: metres, z up, floor at z = 0, origin in the middle of the room. The table stands near it; the
person at one of its long sides; the exo cameras around the two, inside the room, so that nothing tall is between.
"""

from dataclasses import dataclass

import numpy as np

from egomill.kernels.cameras import ARIA_TURNS, T_shown_sensor
from egomill.scenes import furniture
from egomill.scenes.furniture import VIVID, WOODS, muted, shades
from egomill.scenes.person import Look, Posture, body
from egomill.scenes.plan import Plan, make_plan
from egomill.scenes.rooms import furnish, surfaces
from egomill.scenes.shading import Decal, Finish
from egomill.scenes.solids import Builder, Solids, rot_z
from egomill.scenes.textures import Materials

EXO = ("cam01", "cam02", "cam03", "cam04")
KINDS = ("kitchen", "living room", "workshop", "office")
R_SHOWN_SENSOR = T_shown_sensor(ARIA_TURNS)[:3, :3].numpy()


@dataclass(frozen=True)
class Moment:
    """What moves, at one instant."""

    solids: Solids
    head: np.ndarray  # bool [P]: parts of the head, which the head camera does not see
    decals: tuple[Decal, ...]
    T_world_ego: np.ndarray  # [4, 4] head camera, landscape sensor frame, OpenCV axes
    joints: np.ndarray  # [2, 21, 3] of the hands, left and right, in the world


@dataclass(frozen=True)
class Scene:
    """A furnished room with a person's plan; `moment(t)` gives what moves at t seconds."""

    kind: str
    finish: Finish
    static: Solids
    decals: tuple[Decal, ...]
    look: Look
    plan: Plan
    table: tuple[np.ndarray, float, float, float]  # origin (middle of the person's edge, table height), yaw, length, depth
    items: tuple[Solids | None, ...]  # in their own frames; None: never handled, part of `static`
    radii: np.ndarray
    names: tuple[str, ...]
    words: tuple[str, str]  # the table, the surroundings: for captions
    T_world_exo: dict[str, np.ndarray]  # [4, 4] each

    def moment(self, t: float) -> Moment:
        origin, yaw, length, _ = self.table
        R = rot_z(yaw)
        decals: list[Decal] = []
        grips, radius, curl = np.empty((2, 3)), np.empty(2), np.empty(2)
        for hand in (0, 1):
            state = self.plan.hands[hand].at(t)
            idle = 0.004 * np.array([np.sin(1.7 * t + hand), np.sin(1.3 * t + 2 * hand), np.sin(2.1 * t)])
            grips[hand], radius[hand], curl[hand] = origin + R @ (state[:3] + idle * (state[3] < 0.031)), state[3], state[4]
            if abs(state[0]) < length / 2 and state[1] > 0:
                height = max(state[2], 0.0)
                decals.append(Decal(np.array([*(grips[hand, :2]), origin[2]]), (0, 0), 0.1 + 0.4 * height, -0.3 / (1 + 5 * height)))
        x = self.plan.root.at(t)[0]
        pace = abs(self.plan.root.at(t + 0.05)[0] - self.plan.root.at(t - 0.05)[0]) / 0.1
        root = origin + R @ np.array([x, -0.2, 0.0])
        posture = Posture(
            root[:2],
            yaw,
            7.0 * x + 0.5 * np.sin(0.8 * t),
            float(np.clip(pace / 0.35, 0, 1)),
            grips,
            radius,
            curl,
            origin + R @ self.plan.gaze.at(t),
        )
        person, head, eye, joints = body(self.look, posture)
        solids = person
        for solid, track, r in zip(self.items, self.plan.items, self.radii, strict=True):
            if solid is not None:
                place = track.at(t)
                solids = solids + _placed(solid, origin + R @ place, yaw)
                decals.append(_contact(origin + R @ np.array([*place[:2], 0]), r, place[2]))
        decals.append(Decal(np.array([*root[:2], 0.0]), (0, 0), 0.6, -0.35))
        if len(solids) > len(head):
            head = np.concatenate([head, np.zeros(len(solids) - len(head), bool)])
        T = eye.copy()
        T[:3, :3] = eye[:3, :3] @ R_SHOWN_SENSOR
        return Moment(solids, head, tuple(decals), T, joints)


def _contact(foot: np.ndarray, radius: float, height: float) -> Decal:
    return Decal(foot, (0, 0), (radius + 0.035) * (1 + 2 * height), -0.55 / (1 + 8 * height))


def _placed(solids: Solids, origin: np.ndarray, yaw: float) -> Solids:
    R = rot_z(yaw)
    return Solids(solids.kind, origin + solids.center @ R.T, R @ solids.rot, solids.size, solids.material)


def look_at(eye, target) -> np.ndarray:
    """T_world_cam [4, 4] of a level camera (OpenCV axes) at `eye` that looks at `target`."""
    forward = np.asarray(target, float) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, 0], T[:3, 1], T[:3, 2], T[:3, 3] = right, np.cross(forward, right), forward, eye
    return T


def _table(b: Builder, rng: np.random.Generator, m: Materials, decals: list[Decal]) -> tuple[np.ndarray, float, float, float, str]:
    """Put a table into the room; returns the middle of its near edge (on its top), its yaw, length and depth, and what it is made of."""
    length, depth, height = rng.uniform(1.5, 2.1), rng.uniform(0.72, 0.85), rng.uniform(0.82, 0.93)
    middle, yaw = rng.uniform(-0.35, 0.35, 2), rng.integers(4) * np.pi / 2 + rng.uniform(-0.12, 0.12)
    R = rot_z(yaw)
    tops = {
        "wooden": f"wood{rng.integers(3)}",
        "marble": "marble",
        "white": "plain",
        "green": "plain",
        "blue": "plaster",
        "tiled": "tiles1",
    }
    top = str(rng.choice(list(tops), p=(0.5, 0.1, 0.12, 0.08, 0.1, 0.1)))
    stops = {
        "wooden": WOODS[rng.integers(len(WOODS))],
        "marble": [(0.5, 0.48, 0.47), (0.9, 0.89, 0.86)],
        "white": shades((0.86, 0.85, 0.82), 0.1),
        "green": shades((0.25, 0.48, 0.33)),
        "blue": shades((0.25, 0.42, 0.6)),
        "tiled": [(0.35, 0.33, 0.3), *shades(muted(rng), 0.2)],
    }[top]
    furniture.table(b.at((*middle, 0), yaw), length, depth, height, m.add(tops[top], stops, 0.9, gloss=0.08), furniture.wood(rng, m))
    decals.append(furniture.shadow((*middle, 0), (length / 2 - 0.1, depth / 2 - 0.1), 0.45, -0.45, yaw))
    edge = np.array([*(middle - R[:2, 1] * depth / 2), height])
    return edge, yaw, length, depth, top


def _things(rng: np.random.Generator, m: Materials, length: float, depth: float) -> tuple[list, list, np.ndarray, list[str]]:
    """What stands on the table: (builder, radius, height) of each, their places, colours and kinds."""
    count = int(rng.integers(6, 10))
    colours, places = rng.permutation(list(VIVID)), []
    xs = np.linspace(-length / 2 + 0.16, length / 2 - 0.16, count)
    for k in range(count):
        near = k % 3 != 1
        places.append((xs[k] + rng.uniform(-0.03, 0.03), rng.uniform(0.14, 0.34) if near else rng.uniform(0.45, depth - 0.1)))
    kinds = [str(k) for k in rng.choice(furniture.ITEMS, count)]
    built = [furniture.item(k, str(c), rng, m) for k, c in zip(kinds, colours, strict=False)]
    return built, places, colours, kinds


def _look(rng: np.random.Generator, m: Materials) -> Look:
    """How the person looks."""
    skin = np.array([(0.93, 0.74, 0.62), (0.82, 0.6, 0.45), (0.6, 0.41, 0.29), (0.4, 0.26, 0.18)][rng.integers(4)])
    shirt = m.add(
        str(rng.choice(["stripes0", "hoops1", "plaid", "weave", "plain", "dots"])), shades(VIVID[str(rng.choice(list(VIVID)))], 0.45), 0.5
    )
    flesh = m.add("plain", shades(skin, 0.1), 0.25)
    long_sleeves = bool(rng.random() < 0.5)
    return Look(
        flesh,
        shirt,
        shirt,
        m.add("weave", shades(muted(rng) * 0.6), 0.3),
        m.add("plain", shades(muted(rng) * 0.5), 0.3),
        m.add(
            "wood0",
            shades(np.array([(0.1, 0.08, 0.07), (0.3, 0.18, 0.1), (0.6, 0.45, 0.22), (0.45, 0.44, 0.43)][rng.integers(4)]), 0.4),
            0.15,
        ),
        m.add("plain", [(0.05, 0.05, 0.06), (0.12, 0.12, 0.13)], 0.2, gloss=0.3),
        rng.uniform(0.95, 1.05),
        bool(rng.random() < 0.45),
        long_sleeves,
    )


def _exo_cameras(rng: np.random.Generator, edge: np.ndarray, R: np.ndarray, yaw: float, room: np.ndarray) -> dict[str, np.ndarray]:
    """T_world_cam of four cameras around who stands at the table."""
    exo = {}
    stand = edge + R @ np.array([0, -0.1, 0])
    for k, cam in enumerate(EXO):
        angle = yaw + np.pi / 4 + k * np.pi / 2 + rng.uniform(-0.3, 0.3)
        eye = stand + rng.uniform(1.6, 2.4) * np.array([np.cos(angle), np.sin(angle), 0])
        eye[:2] = np.clip(eye[:2], room[0, :2] + 0.45, room[1, :2] - 0.45)
        eye[2] = rng.uniform(1.5, 2.2)
        exo[cam] = look_at(eye, stand + R @ np.array([rng.uniform(-0.15, 0.15), 0.12, 0.05]))
    return exo


def make_scene(seed: int, until: float = 12.0, window: tuple[float, float] | None = None) -> Scene:
    """The scene of a seed, with a plan until `until` seconds. window: the items handled in this span move, all others become static;
    by default the whole plan counts."""
    rng = np.random.default_rng([seed, 77])
    plan_rng = np.random.default_rng([seed, 78])
    m = Materials()
    kind = str(rng.choice(KINDS))
    size = np.array([rng.uniform(4.8, 6.4), rng.uniform(4.8, 6.4), rng.uniform(2.5, 2.9)])
    room = np.stack([-size / 2, size / 2])
    room[:, 2] = 0.0, size[2]
    faces, surroundings = surfaces(rng, m)
    b = Builder()
    decals: list[Decal] = []
    things, lamps = furnish(b, rng, m, kind, room, decals)

    edge, yaw, length, depth, top = _table(b, rng, m, decals)
    R = rot_z(yaw)
    built, places, colours, kinds = _things(rng, m, length, depth)
    radii, heights = np.array([r for _, r, _ in built]), np.array([h for _, _, h in built])
    plan = make_plan(plan_rng, np.array(places), radii, heights, length, until)
    span = window or (0.0, until)
    moving = {deed.item for deed in plan.deeds if deed.grasp < span[1] and deed.release > span[0]}
    items: list[Solids | None] = []
    static = b.build()
    for k, (thing, r, _) in enumerate(built):
        solid = thing.build()
        items.append(solid if k in moving else None)
        if k not in moving:
            foot = edge + R @ plan.items[k].at(span[0])
            static = static + _placed(solid, foot, yaw)
            decals.append(_contact(foot, r, 0.0))

    look = _look(rng, m)
    exo = _exo_cameras(rng, edge, R, yaw, room)
    words = (f"a {top} table", f"in {'an' if kind[0] == 'o' else 'a'} {kind} with {surroundings}" + (f" and {things[0]}" if things else ""))
    names = tuple(f"{c} {k}" for c, k in zip(colours, kinds, strict=False))
    tint = rng.uniform(-0.04, 0.04)
    ambient = rng.uniform(0.46, 0.58) * np.array([1.0 + tint, 1.0, 1.03 - tint])
    return Scene(
        kind=kind,
        finish=Finish(room, faces, *m.table(), ambient, lamps),
        static=static,
        decals=tuple(decals),
        look=look,
        plan=plan,
        table=(edge, float(yaw), float(length), float(depth)),
        items=tuple(items),
        radii=radii,
        names=names,
        words=words,
        T_world_exo=exo,
    )
