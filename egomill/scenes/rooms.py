"""The shell of a room: its six surfaces, what stands against the walls, what hangs on them, and where the light comes from."""

import numpy as np

from egomill.scenes.furniture import CORNER_THINGS, VIVID, WALL_THINGS, WOODS, muted, shades, shadow
from egomill.scenes.shading import Decal
from egomill.scenes.solids import Builder
from egomill.scenes.textures import Materials

_FLOORS = ("planks0", "planks1", "parquet", "tiles0", "tiles1", "checker", "carpet")
_WALLS = {"plastered": "plaster", "papered": "damask", "striped": "stripes0", "brick": "bricks0", "tiled": "tiles0", "panelled": "planks1"}
_FACE_YAW = (-np.pi / 2, np.pi / 2, 0.0, np.pi)  # at walls -x, +x, -y, +y: turns local +y into the room


def surfaces(rng: np.random.Generator, m: Materials) -> tuple[tuple[int, ...], str]:
    """Materials of the faces (-x, +x, -y, +y, floor, ceiling), and words for them."""
    name = str(rng.choice(_FLOORS))
    if name.startswith(("planks", "parquet")):
        stops = [np.array(WOODS[rng.integers(len(WOODS))][0]) * 0.6, *WOODS[rng.integers(len(WOODS))]]
        floor, word = m.add(name, stops, 1.5, gloss=0.05), "a wooden floor"
    elif name == "carpet":
        floor, word = m.add("weave", shades(muted(rng), 0.3), 0.35), "a carpet"
    else:
        floor, word = m.add(name, [(0.3, 0.29, 0.28), *shades(muted(rng) * 0.5 + 0.35, 0.25)], 1.3, gloss=0.06), "a tiled floor"
    accent = str(rng.choice(list(_WALLS)))
    calm = muted(rng) * 0.45 + 0.45
    plain = m.add("plaster", shades(calm, 0.08), 1.6)
    colour = muted(rng) * 0.6 + 0.28
    grout = (0.62, 0.6, 0.57) if accent in ("brick", "tiled") else colour * 0.7
    if accent == "brick" and rng.random() < 0.6:
        colour = np.array([0.62, 0.34, 0.25])
    fancy = m.add(
        _WALLS[accent], [grout, *shades(colour, 0.18)], {"brick": 0.9, "tiled": 0.8, "papered": 0.7, "striped": 0.9}.get(accent, 1.4)
    )
    walls = [plain] * 4
    for k in rng.choice(4, int(rng.integers(1, 4)), replace=False):
        walls[k] = fancy
    ceiling = m.add("plaster", shades((0.88, 0.87, 0.84), 0.05), 1.5)
    article = "an" if accent[0] in "aeiou" else "a"
    return (*walls, floor, ceiling), f"{word} and {article} {accent} wall"


def furnish(
    b: Builder, rng: np.random.Generator, m: Materials, kind: str, room: np.ndarray, decals: list[Decal]
) -> tuple[list[str], tuple]:
    """Fill the walls and corners; returns words for what stands there, and the lights (position, tint, strength)."""
    size = room[1] - room[0]
    first = {"kitchen": 2, "living room": 3, "workshop": 1, "office": 0}[kind]
    order = [first, *(k for k in rng.permutation(len(WALL_THINGS)) if k != first)]
    walls = rng.permutation(4)
    names = []
    for wall, choice in zip(walls[:3], order, strict=False):
        thing = WALL_THINGS[choice]
        width = size[1 - wall // 2]
        slide = rng.uniform(-1, 1) * max(0.0, width / 2 - thing.width / 2 - 0.75)
        place = _against(wall, room, slide, thing.depth / 2 + 0.01)
        thing.make(b.at(place, _FACE_YAW[wall]), rng, m)
        decals.append(shadow(place, (thing.width / 2, thing.depth / 2), 0.3, -0.5, _FACE_YAW[wall]))
        names.append(thing.name)
        if thing.height < 1.3:
            for k in range(int(rng.integers(1, 3))):
                _poster(b, rng, m, wall, room, slide + (-0.4, 0.45)[k] + rng.uniform(-0.04, 0.04), rng.uniform(1.65, 1.8))
    for corner, thing in zip(rng.permutation(4)[:3], rng.permutation(np.array(CORNER_THINGS, dtype=object)), strict=False):
        sx, sy = (1 if corner % 2 else -1), (1 if corner // 2 else -1)
        place = np.array([sx * (size[0] / 2 - thing.width / 2 - 0.02), sy * (size[1] / 2 - thing.depth / 2 - 0.02), 0.0])
        thing.make(b.at(place, 0.0 if sy < 0 else np.pi), rng, m)
        decals.append(shadow(place, (thing.width / 3, thing.depth / 3), 0.25, -0.45))
        names.append(thing.name)

    place, inward = _window_wall(b, rng, m, walls[3], room, decals)
    rug = m.add("carpet", [np.array(VIVID["white"]) * 0.8, *(muted(rng) for _ in range(4))], 0.0)
    if rng.random() < 0.75:
        b.box(
            (rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), 0.003),
            (rng.uniform(1.0, 1.5), rng.uniform(0.8, 1.3), 0.003),
            rug,
            rng.integers(2) * np.pi / 2,
        )
    shade = m.add("plain", [(0.95, 0.9, 0.8), (1.0, 0.97, 0.9)], 0.3, glow=1.0)
    b.rod((0, 0, size[2] - 0.06), 0.28, 0.05, shade)
    warm = np.array([1.0, rng.uniform(0.88, 0.97), rng.uniform(0.72, 0.9)])
    lights = (
        ((rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), size[2] - 0.25), tuple(warm), rng.uniform(0.72, 1.0)),
        (tuple(place + 0.3 * inward + np.array([0, 0, 1.7])), (0.85, 0.94, 1.0), rng.uniform(0.55, 0.85)),
    )
    return names, lights


def _window_wall(
    b: Builder, rng: np.random.Generator, m: Materials, wall: int, room: np.ndarray, decals: list[Decal]
) -> tuple[np.ndarray, np.ndarray]:
    """The wall without furniture has the window and a door; returns the floor below the window, and the way into the room."""
    yaw = _FACE_YAW[wall]
    slide = rng.uniform(-0.6, 0.6)
    window = m.add(
        f"window{rng.integers(2)}",
        [(0.9, 0.9, 0.88), (0.36, 0.5, 0.32), (0.62, 0.72, 0.6), (0.66, 0.8, 0.96), (1.0, 1.0, 1.0)],
        0.0,
        glow=1.0,
    )
    sill = m.add("plain", shades((0.88, 0.87, 0.84), 0.08), 0.5)
    place = _against(wall, room, slide, 0.0)
    frame = b.at(place, yaw)
    frame.box((0, 0.012, 1.55), (0.75, 0.012, 0.6), window)
    frame.box((0, 0.06, 0.93), (0.82, 0.07, 0.02), sill)
    cloth = m.add(str(rng.choice(["stripes0", "weave", "damask", "dots"])), shades(muted(rng) * 0.7 + 0.25, 0.3), 0.5)
    if rng.random() < 0.7:
        for sign in (-1, 1):
            frame.box((sign * 0.86, 0.04, 1.35), (0.17, 0.025, 0.9), cloth)
        frame.limb((-1.1, 0.05, 2.27), (1.1, 0.05, 2.27), 0.012, sill)
    inward = frame.turn[:, 1]
    decals.append(shadow(place + 1.3 * inward, (0.55, 0.6), 0.18, 0.4, yaw + 0.15))
    door_slide = slide + (1.75 if slide < 0 else -1.75)
    if abs(door_slide) + 0.5 < (room[1] - room[0])[1 - wall // 2] / 2:
        door = b.at(_against(wall, room, door_slide, 0.0), yaw)
        door.box((0, 0.015, 1.02), (0.44, 0.015, 1.02), m.add("planks0", [np.array(WOODS[0][0]) * 0.7, *WOODS[rng.integers(4)]], 1.2))
        door.ball((0.36, 0.05, 1.0), 0.03, m.add("plain", [(0.6, 0.5, 0.3), (0.85, 0.75, 0.5)], 0.2, gloss=0.5))
    return place, inward


def _against(wall: int, room: np.ndarray, slide: float, off: float) -> np.ndarray:
    """The point on the floor `off` metres in front of a wall's middle, `slide` metres along it."""
    axis, sign = wall // 2, (1 if wall % 2 else -1)
    place = np.zeros(3)
    place[axis] = sign * (room[1, axis] - off)
    place[1 - axis] = slide
    return place


def _poster(b: Builder, rng: np.random.Generator, m: Materials, wall: int, room: np.ndarray, slide: float, height: float) -> None:
    half = (rng.uniform(0.2, 0.34), 0.012, rng.uniform(0.25, 0.4))
    stops = [(0.15, 0.14, 0.13), *(VIVID[str(c)] for c in rng.choice(list(VIVID), 4, replace=False))]
    frame = b.at(_against(wall, room, slide, 0.013), _FACE_YAW[wall])
    frame.box((0, 0, height), half, m.add(f"poster{rng.integers(8)}", stops, 0.0))
