"""Tileable grey patterns, and the palettes that colour them.

A texture here is one byte a texel (built once a process, with its mip levels), and a material is a pattern seen through a 256-entry
palette: a few dozen patterns and five random colours each give endless rooms, and building a scene costs no texture synthesis at all.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

SIDE = 256
LEVELS = 6


def noise(rng: np.random.Generator, cells: int, octaves: int = 4, stretch: int = 1) -> np.ndarray:
    """Tileable value noise in 0..1, [SIDE, SIDE]; `stretch` > 1 makes it run along the rows (grain)."""
    total, weight, sum_weights = np.zeros((SIDE, SIDE), np.float32), 1.0, 0.0
    for octave in range(octaves):
        rows, columns = min(cells << octave, SIDE), max(1, min((cells << octave) // stretch, SIDE))
        grid = np.pad(rng.random((rows, columns), dtype=np.float32), 2, mode="wrap")
        kx, ky = SIDE // columns, SIDE // rows
        big = cv2.resize(grid, (grid.shape[1] * kx, grid.shape[0] * ky), interpolation=cv2.INTER_CUBIC)
        total += weight * big[2 * ky : 2 * ky + SIDE, 2 * kx : 2 * kx + SIDE]
        sum_weights, weight = sum_weights + weight, weight * 0.5
    total /= sum_weights
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low), 0, 1)


def _bricks(rng: np.random.Generator, rows: int, columns: int, joint: float, shift: float, grain: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    row = np.floor(y * rows)
    offset = (row * shift) % 1.0
    xs = (x * columns + offset) % columns
    column = np.floor(xs) % columns
    tone = rng.random((rows, columns), dtype=np.float32)[row.astype(int), column.astype(int)]
    edge = np.minimum(np.minimum(y * rows - row, 1 - (y * rows - row)) / rows, np.minimum(xs % 1, 1 - xs % 1) / columns)
    body = 0.3 + 0.45 * tone + 0.25 * grain
    return body * np.clip(edge / joint, 0, 1)


def _poster(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Flat areas at 0, .25, .5, .75, 1: the five stops of a palette."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    out = np.full((SIDE, SIDE), 0.25, np.float32)
    if kind == 0:  # hills and a sun
        cx, cy, r = rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.4), rng.uniform(0.1, 0.18)
        out[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = 1.0
        for level, base in ((0.5, 0.5), (0.75, 0.66)):
            a, b = rng.uniform(0, 6, 2)
            out[y > base + 0.08 * np.sin(5 * x + a) + 0.05 * np.sin(11 * x + b)] = level
    elif kind == 1:  # circles
        for level in (0.5, 0.75, 1.0, 0.5, 0.75, 1.0, 0.0):
            cx, cy, r = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), rng.uniform(0.06, 0.22)
            out[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = level
    elif kind == 2:  # blocks
        for level in (0.5, 0.75, 1.0, 0.0, 0.5, 1.0):
            left, top = rng.uniform(0.05, 0.65, 2)
            out[(x > left) & (x < left + rng.uniform(0.1, 0.35)) & (y > top) & (y < top + rng.uniform(0.1, 0.35))] = level
    else:  # lines of type
        out[(y > 0.1) & (y < 0.3) & (x > 0.12) & (x < 0.12 + rng.uniform(0.4, 0.7))] = 1.0
        for k in range(7):
            top = 0.4 + 0.07 * k
            out[(y > top) & (y < top + 0.03) & (x > 0.12) & (x < rng.uniform(0.5, 0.88))] = 0.75
    border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    out[border < 0.03] = 0.0
    return out


def _books(rng: np.random.Generator) -> np.ndarray:
    out, x = np.zeros((SIDE, SIDE), np.float32), 0
    while x < SIDE:
        width, top = int(rng.integers(9, 26)), int(rng.integers(4, 70))
        tone = rng.choice([0.25, 0.5, 0.75, 1.0])
        out[top:, x : x + width - 1] = tone
        band = int(rng.integers(top + 10, 200))
        out[band : band + 12, x + 1 : x + width - 2] = rng.choice([0.25, 0.5, 0.75, 1.0])
        x += width
    return out


def _window(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    cloud = noise(rng, 4)
    out = 0.62 + 0.38 * np.clip(0.6 * (1 - y) + 0.6 * cloud, 0, 1)
    skyline = 0.62 + 0.1 * np.repeat(rng.random(16), SIDE // 16)[None, :]
    out = np.where(y > skyline, 0.25 + 0.2 * noise(rng, 16), out)
    bar = (np.abs(x - 0.5) < 0.018) | (np.abs(y - 0.42) < 0.018) | (np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) < 0.04)
    return np.where(bar, 0.0, out)


def _draw(name: str, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    soft, fine = noise(rng, 4, 5), noise(rng, 64, 2)
    kind = name.rstrip("0123456789")
    if kind == "plain":
        return np.clip(0.45 + 0.25 * soft + 0.2 * fine, 0, 1)
    if kind == "plaster":
        return np.clip(0.35 + 0.45 * soft + 0.2 * fine, 0, 1)
    if kind == "wood":
        grain = noise(rng, 8, 4, stretch=8)
        rings = 0.5 + 0.5 * np.sin(2 * np.pi * (4 * y + 1.6 * noise(rng, 2, 2, stretch=2)))
        return np.clip(0.15 + 0.45 * grain + 0.3 * rings + 0.1 * fine, 0, 1)
    if kind == "planks":
        return _bricks(rng, 8, 2, 0.004, float(rng.choice([0.5, 0.37])), noise(rng, 16, 4, stretch=8))
    if kind == "parquet":
        a, b = (
            _bricks(rng, 16, 4, 0.004, 0.0, noise(rng, 16, 3, stretch=8)),
            _bricks(rng, 16, 4, 0.004, 0.0, noise(rng, 16, 3, stretch=8)).T,
        )
        return np.where((np.floor(x * 4) + np.floor(y * 4)) % 2 > 0, a, b)
    if kind == "tiles":
        return _bricks(rng, 4, 4, 0.006, 0.0, soft)
    if kind == "checker":
        return np.clip(0.2 + 0.6 * ((np.floor(x * 4) + np.floor(y * 4)) % 2) + 0.2 * (soft - 0.5), 0, 1)
    if kind == "bricks":
        return _bricks(rng, 8, 4, 0.008, 0.5, noise(rng, 32, 3))
    if kind == "marble":
        return np.clip(np.abs(np.sin(2 * np.pi * (x + y + 1.4 * soft))) ** 0.5, 0, 1)
    if kind == "stripes":
        return np.clip(0.25 + 0.5 * (np.sin(2 * np.pi * 6 * x) > rng.uniform(-0.5, 0.5)) + 0.25 * (fine - 0.3), 0, 1)
    if kind == "hoops":
        return np.clip(0.25 + 0.5 * (np.sin(2 * np.pi * 8 * y) > rng.uniform(-0.4, 0.6)) + 0.2 * (fine - 0.3), 0, 1)
    if kind == "dots":
        u, v = (x * 6) % 1 - 0.5, (y * 6 + 0.5 * (np.floor(x * 6) % 2)) % 1 - 0.5
        return np.where(u * u + v * v < 0.07, 0.95, 0.3 + 0.2 * soft)
    if kind == "damask":
        wave = np.sin(2 * np.pi * 4 * x) * np.sin(2 * np.pi * 4 * y) + 0.7 * np.sin(2 * np.pi * 8 * (x + 0.1 * np.sin(2 * np.pi * 4 * y)))
        return np.clip(0.5 + 0.4 * np.tanh(2 * wave) + 0.15 * (fine - 0.5), 0, 1)
    if kind == "weave":
        return np.clip(0.5 + 0.3 * np.sin(2 * np.pi * 32 * x) * np.sin(2 * np.pi * 32 * y) + 0.5 * (soft - 0.5), 0, 1)
    if kind == "plaid":
        return np.clip(0.15 + 0.3 * (np.sin(2 * np.pi * 3 * x) > 0) + 0.3 * (np.sin(2 * np.pi * 3 * y) > 0) + 0.25 * fine, 0, 1)
    if kind == "carpet":
        ring = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
        diamond = np.abs(((x * 4) % 1) - 0.5) + np.abs(((y * 6) % 1) - 0.5)
        body = np.where(ring < 0.05, 0.0, np.where(ring < 0.11, 1.0, np.where(diamond < 0.3, 0.75, 0.4)))
        return np.clip(body + 0.2 * (fine - 0.5), 0, 1)
    if kind == "label":
        return np.where(
            (y > 0.28) & (y < 0.72), np.where((np.abs(y - 0.5) < 0.07) & (np.sin(2 * np.pi * 9 * x) > -0.2), 0.0, 1.0), 0.5 + 0.1 * soft
        )
    if kind == "card":
        return np.where(np.abs(x - 0.5) < 0.05, 0.9, np.clip(0.3 + 0.3 * soft + 0.1 * np.sin(2 * np.pi * 40 * y), 0, 1))
    if kind == "poster":
        return _poster(rng, int(name[-1]) % 4)
    return {"books": _books, "window": _window}[kind](rng)


PATTERNS = (
    *("plain", "plaster", "wood0", "wood1", "wood2", "planks0", "planks1", "parquet", "tiles0", "tiles1", "checker", "bricks0", "bricks1"),
    *("marble", "stripes0", "stripes1", "hoops0", "hoops1", "dots", "damask", "weave", "plaid", "carpet", "label", "card"),
    *("poster0", "poster1", "poster2", "poster3", "poster4", "poster5", "poster6", "poster7", "books0", "books1", "window0", "window1"),
)


@lru_cache(maxsize=1)
def library() -> np.ndarray:
    """Every pattern with its mip levels: uint8, flat; pattern p, level l starts at `offset(p, l)`, row-major, side SIDE >> l."""
    pages = []
    for index, name in enumerate(PATTERNS):
        level = np.clip(_draw(name, np.random.default_rng(1000 + index)), 0, 1).astype(np.float32) * 255
        for _ in range(LEVELS):
            pages.append((level + 0.5).astype(np.uint8).ravel())
            level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return np.concatenate(pages)


LEVEL_START = np.cumsum([0] + [(SIDE >> level) ** 2 for level in range(LEVELS)]).astype(np.int32)
PATTERN_SIZE = int(LEVEL_START[-1])


def sample(pattern: np.ndarray, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Bilinear look-up, 0..255 float32 [N]: pattern index, position in tiles (repeats), mip level (int), each [N]."""
    page = library()
    side = np.right_shift(np.int32(SIDE), level)
    start = pattern * np.int32(PATTERN_SIZE) + LEVEL_START[level]
    x, y = u * side - np.float32(0.5), v * side - np.float32(0.5)
    fx, fy = np.floor(x), np.floor(y)
    ax, ay = x - fx, y - fy
    mask = side - 1
    x0, y0 = fx.astype(np.int32), fy.astype(np.int32)
    x1, row0, row1 = (x0 + 1) & mask, start + (y0 & mask) * side, start + ((y0 + 1) & mask) * side
    x0 &= mask
    p00, p01 = page.take(row0 + x0).astype(np.float32), page.take(row0 + x1)
    p10, p11 = page.take(row1 + x0).astype(np.float32), page.take(row1 + x1)
    top = p00 + ax * (p01 - p00)
    return top + ay * (p10 + ax * (p11 - p10) - top)


@dataclass
class Materials:
    """A growing list of materials; `table()` gives the arrays that the renderer indexes."""

    pattern: list[int] = field(default_factory=list)
    tile: list[float] = field(default_factory=list)  # metres a tile; 0 = the pattern is stretched once over the face
    glow: list[float] = field(default_factory=list)  # 0 = lit by the lamps, 1 = shines by itself
    gloss: list[float] = field(default_factory=list)  # strength of the lamp's highlight
    palette: list[np.ndarray] = field(default_factory=list)

    def add(self, name: str, stops: list, tile: float = 1.0, glow: float = 0.0, gloss: float = 0.0) -> int:
        """`stops`: RGB colours 0..1, evenly spaced along the pattern's values. Returns the material's index."""
        colours = np.asarray(stops, np.float32).reshape(-1, 3)
        at = np.linspace(0, 255, len(colours)) if len(colours) > 1 else np.zeros(1)
        self.palette.append(np.stack([np.interp(np.arange(256), at, colours[:, c]) for c in range(3)], 1).astype(np.float32))
        self.pattern.append(PATTERNS.index(name))
        self.tile.append(tile)
        self.glow.append(glow)
        self.gloss.append(gloss)
        return len(self.pattern) - 1

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """pattern int32 [M], tile, glow and gloss float32 [M], colours float32 [M*256, 3]."""
        tile, glow, gloss = (np.array(column, np.float32) for column in (self.tile, self.glow, self.gloss))
        return np.array(self.pattern, np.int32), tile, glow, gloss, np.concatenate(self.palette)
