"""Furniture and small things, built of solids in a local frame: origin on the floor (or table) below the middle, +y towards the room."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from egomill.scenes.shading import Decal
from egomill.scenes.solids import Builder, rot_z
from egomill.scenes.textures import Materials

VIVID = {
    "red": (0.86, 0.14, 0.13),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.96, 0.82, 0.15),
    "green": (0.18, 0.62, 0.25),
    "teal": (0.08, 0.6, 0.62),
    "blue": (0.14, 0.32, 0.84),
    "purple": (0.5, 0.22, 0.7),
    "pink": (0.95, 0.45, 0.65),
    "white": (0.93, 0.92, 0.88),
    "black": (0.13, 0.13, 0.15),
}
WOODS = (
    [(0.3, 0.17, 0.09), (0.5, 0.31, 0.17), (0.62, 0.42, 0.25)],
    [(0.5, 0.36, 0.22), (0.72, 0.55, 0.36), (0.83, 0.68, 0.48)],
    [(0.2, 0.11, 0.07), (0.34, 0.2, 0.13), (0.45, 0.28, 0.19)],
    [(0.58, 0.5, 0.4), (0.78, 0.71, 0.6), (0.88, 0.83, 0.74)],
)


def shades(colour, spread: float = 0.25) -> list:
    """A palette from darker to lighter around one colour."""
    c = np.asarray(colour, float)
    return [np.clip(c * (1 - spread), 0, 1), c, np.clip(c * (1 + 0.6 * spread) + 0.05 * spread, 0, 1)]


def muted(rng: np.random.Generator) -> np.ndarray:
    """A random calm colour."""
    hue = rng.uniform(0, 2 * np.pi)
    wave = np.cos(hue - np.array([0.0, 2.1, 4.2]))
    return np.clip(rng.uniform(0.35, 0.75) * (1 + rng.uniform(0.12, 0.4) * wave), 0.05, 0.95)


def wood(rng: np.random.Generator, materials: Materials, tile: float = 0.8) -> int:
    return materials.add(f"wood{rng.integers(3)}", WOODS[rng.integers(len(WOODS))], tile, gloss=0.06)


@dataclass(frozen=True)
class Thing:
    """A kind of furniture that can stand against a wall."""

    name: str  # for captions
    width: float
    depth: float
    height: float
    make: Callable[[Builder, np.random.Generator, Materials], None]


def _shelf(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    frame, back = wood(rng, m), m.add("plaster", shades(muted(rng)), 0.8)
    b.box((0, -0.16, 0.9), (0.6, 0.01, 0.9), back)
    for x in (-0.61, 0.61):
        b.box((x, 0, 0.9), (0.015, 0.17, 0.9), frame)
    for k in range(5):
        z = 0.06 + 0.43 * k
        b.box((0, 0, z), (0.6, 0.17, 0.014), frame)
        if k < 4:
            width = rng.uniform(0.2, 0.5)
            tones = [(0.06, 0.05, 0.05), *(VIVID[c] for c in rng.choice(list(VIVID), 4))]
            stops = np.array(tones) * 0.75 + 0.05
            b.box((-0.58 + width, 0, z + 0.16), (width, 0.12, 0.145), m.add(f"books{rng.integers(2)}", list(stops), 0.0))
            if width < 0.42:
                b.ball((0.4, 0.02, z + 0.1), (0.07, 0.07, 0.09), m.add("plain", shades(muted(rng)), 0.4, gloss=0.2))


def _cabinet(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    body, door, metal = (
        wood(rng, m),
        m.add("plaster", shades(muted(rng), 0.15), 0.9),
        m.add("plain", [(0.5, 0.5, 0.5), (0.8, 0.8, 0.8)], gloss=0.4),
    )
    b.box((0, 0, 0.43), (0.75, 0.22, 0.43), body)
    for k in range(3):
        b.box((-0.49 + 0.49 * k, 0.222, 0.45), (0.23, 0.012, 0.36), door)
        b.ball((-0.49 + 0.49 * k + 0.18, 0.245, 0.6), 0.017, metal)
    b.box((0, 0.005, 0.875), (0.78, 0.24, 0.018), body)
    b.rod((-0.5, 0, 1.0), 0.08, 0.11, m.add("hoops0", shades(muted(rng)), 0.3, gloss=0.2))
    b.ball((0.0, 0, 1.0), (0.14, 0.1, 0.11), m.add("dots", [VIVID["white"], muted(rng)], 0.3, gloss=0.2))
    b.box((0.45, 0, 1.02), (0.2, 0.06, 0.13), m.add(f"poster{rng.integers(8)}", [muted(rng) for _ in range(5)], 0.0))


def _counter(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    front, top = m.add("plaster", shades(muted(rng), 0.1), 0.8), m.add("marble", [(0.45, 0.45, 0.47), (0.85, 0.85, 0.84)], 0.9, gloss=0.1)
    dark, metal = (
        m.add("plain", [(0.04, 0.04, 0.05), (0.1, 0.1, 0.11)], gloss=0.2),
        m.add("plain", [(0.55, 0.56, 0.58), (0.8, 0.8, 0.82)], gloss=0.5),
    )
    b.box((0, 0, 0.43), (1.0, 0.27, 0.43), front)
    b.box((0, 0.01, 0.885), (1.03, 0.3, 0.022), top)
    for k in range(4):
        b.box((-0.75 + 0.5 * k, 0.275, 0.48), (0.235, 0.01, 0.34), front)
        b.box((-0.75 + 0.5 * k, 0.295, 0.76), (0.08, 0.008, 0.008), metal)
    b.box((0.5, 0.02, 0.912), (0.28, 0.22, 0.006), dark)
    b.rod((0.4, 0.05, 0.99), 0.11, 0.07, m.add("plain", shades(VIVID[str(rng.choice(["red", "teal", "orange"]))]), gloss=0.3))
    b.limb((-0.45, -0.18, 0.9), (-0.45, -0.18, 1.15), 0.014, metal)
    b.limb((-0.45, -0.18, 1.15), (-0.45, 0.0, 1.12), 0.013, metal)
    b.box((-0.45, 0.02, 0.908), (0.22, 0.17, 0.004), metal)


def _sofa(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    colour = muted(rng)
    cloth, pillow = (
        m.add("weave", shades(colour), 0.5),
        m.add(str(rng.choice(["stripes0", "dots", "damask", "plaid"])), shades(muted(rng), 0.5), 0.4),
    )
    b.box((0, 0, 0.2), (0.95, 0.38, 0.16), cloth)
    b.box((0, -0.3, 0.55), (0.95, 0.1, 0.28), cloth)
    for sign in (-1, 1):
        b.box((sign * 0.88, 0.02, 0.42), (0.09, 0.38, 0.16), cloth)
        b.limb((sign * 0.88, -0.3, 0.58), (sign * 0.88, 0.33, 0.58), 0.09, cloth)
        b.box((sign * 0.4, 0.06, 0.41), (0.385, 0.3, 0.06), cloth)
        b.ball((sign * 0.55, -0.1, 0.6), (0.2, 0.09, 0.17), pillow)


def _boxes(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    card = m.add("card", [(0.45, 0.32, 0.2), (0.72, 0.55, 0.36), (0.86, 0.76, 0.55)], 0.0)
    b.box((-0.25, 0, 0.2), (0.27, 0.2, 0.2), card, rng.uniform(-0.15, 0.15))
    b.box((-0.22, 0, 0.55), (0.2, 0.17, 0.15), card, rng.uniform(-0.3, 0.3))
    b.box((0.4, 0.02, 0.16), (0.23, 0.18, 0.16), m.add("card", shades(muted(rng)), 0.0), rng.uniform(-0.3, 0.3))


def _plant(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    b.rod((0, 0, 0.18), 0.17, 0.18, m.add("hoops1", shades(muted(rng), 0.4), 0.5))
    b.rod((0, 0, 0.365), 0.15, 0.006, m.add("plain", [(0.12, 0.08, 0.05), (0.25, 0.17, 0.1)], 0.2))
    leaf = m.add("plain", [(0.07, 0.22, 0.08), (0.16, 0.42, 0.15), (0.35, 0.6, 0.25)], 0.2)
    for k in range(9):
        turn = 2.4 * k
        out = 0.1 + 0.014 * k
        tip = np.array([out * np.cos(turn), out * np.sin(turn), 0.55 + 0.075 * k])
        axis = np.array([0.7 * np.cos(turn), 0.7 * np.sin(turn), 0.71])
        side = np.cross(axis, (0, 0, 1.0)) / np.linalg.norm(np.cross(axis, (0, 0, 1.0)))
        b.ball(tip, (0.07, 0.018, 0.2), leaf, np.stack((side, np.cross(axis, side), axis), 1))
    b.limb((0, 0, 0.35), (0, 0, 1.0), 0.015, leaf)


def _lamp(b: Builder, rng: np.random.Generator, m: Materials) -> None:
    metal = m.add("plain", [(0.15, 0.14, 0.13), (0.3, 0.28, 0.25)], gloss=0.2)
    b.rod((0, 0, 0.012), 0.15, 0.012, metal)
    b.rod((0, 0, 0.75), 0.013, 0.73, metal)
    b.rod((0, 0, 1.5), 0.17, 0.13, m.add("weave", [(0.95, 0.8, 0.55), (1.0, 0.93, 0.75)], 0.4, glow=0.8))


WALL_THINGS = (
    Thing("a bookshelf", 1.3, 0.36, 1.85, _shelf),
    Thing("a cabinet", 1.6, 0.5, 1.15, _cabinet),
    Thing("a kitchen counter", 2.1, 0.62, 1.15, _counter),
    Thing("a sofa", 2.0, 0.8, 0.85, _sofa),
)
CORNER_THINGS = (
    Thing("cardboard boxes", 1.1, 0.5, 0.7, _boxes),
    Thing("a plant", 0.5, 0.5, 1.3, _plant),
    Thing("a floor lamp", 0.4, 0.4, 1.6, _lamp),
)


def table(b: Builder, length: float, depth: float, height: float, top: int, legs: int) -> None:
    b.box((0, 0, height - 0.02), (length / 2, depth / 2, 0.02), top)
    b.box((0, 0, height - 0.08), (length / 2 - 0.08, depth / 2 - 0.08, 0.04), legs)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.box((sx * (length / 2 - 0.06), sy * (depth / 2 - 0.06), (height - 0.04) / 2), (0.03, 0.03, (height - 0.04) / 2), legs)


ITEMS = ("can", "cylinder", "ball", "box", "mug", "bottle", "bowl", "cube")


def item(kind: str, colour: str, rng: np.random.Generator, m: Materials) -> tuple[Builder, float, float]:
    """A thing to handle, standing on z = 0: its solids, radius and height in metres."""
    b, paint = Builder(), VIVID[colour]
    plain = m.add("plain", shades(paint, 0.15), 0.3, gloss=0.35)
    if kind in ("can", "cylinder"):
        r, h = rng.uniform(0.03, 0.04), rng.uniform(0.09, 0.14)
        skin = m.add("label", [np.array(paint) * 0.35, paint, (0.95, 0.94, 0.9)], 0.0, gloss=0.35) if kind == "can" else plain
        b.rod((0, 0, h / 2), r, h / 2, skin)
    elif kind == "ball":
        r = rng.uniform(0.035, 0.05)
        h = 2 * r
        b.ball((0, 0, r), r, m.add("stripes1", shades(paint, 0.5), 0.12, gloss=0.35) if rng.random() < 0.5 else plain)
    elif kind in ("box", "cube"):
        half = (
            np.full(3, rng.uniform(0.03, 0.04))
            if kind == "cube"
            else np.array([rng.uniform(0.04, 0.06), rng.uniform(0.025, 0.04), rng.uniform(0.05, 0.09)])
        )
        print_ = m.add(
            f"poster{rng.integers(8)}", [np.array(paint) * 0.5, paint, (0.95, 0.93, 0.88), np.array(paint) * 0.6, VIVID["yellow"]], 0.0
        )
        b.box((0, 0, half[2]), half, plain if kind == "cube" else print_, rng.uniform(-0.6, 0.6))
        r, h = float(half[1] + 0.006), float(2 * half[2])
    elif kind == "mug":
        r, h = 0.04, 0.095
        b.rod((0, 0, h / 2), r, h / 2, plain)
        b.rod((0, 0, h + 0.0005), r * 0.86, 0.001, m.add("plain", [(0.1, 0.06, 0.04), (0.22, 0.13, 0.08)], 0.2))
        turn = rot_z(rng.uniform(0, 2 * np.pi))[:, 0]
        top, bottom, low, high = (0, 0, 0.075), (0, 0, 0.025), 0.062 * turn + (0, 0, 0.035), 0.062 * turn + (0, 0, 0.068)
        for start, stop in ((0.038 * turn + top, high), (high, low), (low, 0.038 * turn + bottom)):
            b.limb(start, stop, 0.006, plain)
    elif kind == "bottle":
        r, h = 0.034, 0.23
        b.rod((0, 0, 0.075), r, 0.075, m.add("label", [np.array(paint) * 0.5, paint, (0.95, 0.94, 0.9)], 0.0, gloss=0.4))
        b.ball((0, 0, 0.15), (r, r, 0.035), plain)
        b.rod((0, 0, 0.195), 0.012, 0.03, plain)
        b.rod((0, 0, 0.225), 0.015, 0.012, m.add("plain", shades(VIVID["white"], 0.1), 0.2))
    else:  # bowl: a flat ellipsoid with a darker inside
        r, h = 0.065, 0.07
        b.rod((0, 0, 0.006), 0.035, 0.006, plain)
        b.ball((0, 0, 0.045), (r, r, 0.04), plain)
        b.rod((0, 0, 0.0805), 0.03, 0.005, m.add("dots", [VIVID["yellow"], VIVID["orange"]], 0.1))
    return b, float(r), float(h)


def shadow(center, half: tuple[float, float], soft: float, gain: float, yaw: float = 0.0) -> Decal:
    return Decal(np.asarray(center, float), half, soft, gain, rot_z(yaw))
