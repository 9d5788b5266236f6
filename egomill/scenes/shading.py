"""Texture and light for the pixels that a ray caster found: Lambert with two lights, darker corners, and soft flat shadows.

The shadows are decals: a soft-edged rectangle or ellipse that darkens (or, for sunlight, brightens) whatever surface lies at its
height. That is not physics, but it grounds every object for the price of a few array operations.
"""

from dataclasses import dataclass, field

import numpy as np

from egomill.scenes.solids import BOX, CAPSULE, CYLINDER, EYE, Solids
from egomill.scenes.textures import LEVELS, SIDE, sample


@dataclass(frozen=True)
class Decal:
    """A soft flat shadow. half: half sides of the full-strength rectangle (0, 0 = a round blob); soft: width of the fade, metres."""

    center: np.ndarray  # [3]
    half: tuple[float, float]
    soft: float
    gain: float  # -0.4 darkens by 40 % at most
    rot: np.ndarray = field(default_factory=lambda: EYE)


@dataclass(frozen=True)
class Finish:
    """How a room's surfaces and lights look; materials are indices into the tables (textures.Materials.table)."""

    room: np.ndarray  # [2, 3] min and max corner
    faces: tuple[int, ...]  # materials of -x, +x, -y, +y, floor, ceiling
    pattern: np.ndarray
    tile: np.ndarray
    glow: np.ndarray
    gloss: np.ndarray
    colours: np.ndarray
    ambient: np.ndarray  # RGB
    lamps: tuple  # (position, RGB tint, strength) each


@dataclass
class Batch:
    """Pixels of many surfaces, collected to be lit at once; one entry a surface in the lists."""

    finish: Finish
    pixel_angle: float
    origin: np.ndarray
    dirs: np.ndarray  # [3, h*w]
    depth: np.ndarray  # [h*w]
    index: list
    normal: list
    uv: list
    texels: list  # (material, texels a metre, count)
    count: int = 0

    @staticmethod
    def start(finish: Finish, pixel_angle: float, origin: np.ndarray, dirs: np.ndarray, depth: np.ndarray) -> "Batch":
        return Batch(finish, pixel_angle, origin, dirs.reshape(3, -1), depth.reshape(-1), [], [], [], [])

    def points(self, index: np.ndarray) -> np.ndarray:
        """World points [3, n] of pixels."""
        return self.origin[:, None] + self.depth[index] * self.dirs[:, index]

    def room_face(self, face: int, index: np.ndarray) -> None:
        p = self.points(index)
        axis, sign = face // 2, (1.0 if face % 2 else -1.0)
        normal = np.zeros(3, np.float32)
        normal[axis] = -sign
        a, b = ((1, 2), (0, 2), (0, 1))[axis]
        self._put(index, np.broadcast_to(normal[:, None], p.shape), p[a], -p[b], self.finish.faces[face])

    def solid(self, solids: Solids, p: int, index: np.ndarray) -> None:
        R = solids.rot[p].astype(np.float32)
        size = solids.size[p].astype(np.float32)
        local = R.T @ (self.points(index) - solids.center[p].astype(np.float32)[:, None])
        kind, material = solids.kind[p], int(solids.material[p])
        span = None
        if kind == BOX:
            axis = np.abs(local / size[:, None]).argmax(axis=0)
            sign = np.sign(np.take_along_axis(local, axis[None], 0)[0])
            normal = (np.arange(3)[:, None] == axis).astype(np.float32) * sign
            x, y, z = local
            u, v = np.where(axis == 0, sign * y, np.where(axis == 1, -sign * x, x)), np.where(axis == 2, -y, -z)
            half_u, half_v = size[[1, 0, 0]][axis], size[[2, 2, 1]][axis]
            if self.finish.tile[material] == 0:
                u, v, span = u / (2 * half_u) + 0.5, v / (2 * half_v) + 0.5, float(2 * size.max())
            else:
                tall = half_v > half_u
                u, v = np.where(tall, v, u), np.where(tall, u, v)
        else:
            x, y, z = local
            if kind == CAPSULE:
                normal = np.stack((x, y, z - np.clip(z, -size[2], size[2]))) / size[0]
            elif kind == CYLINDER:
                cap = np.abs(z) >= size[2] * np.float32(0.9999)
                rho = np.hypot(x, y) + np.float32(1e-9)
                normal = np.stack((np.where(cap, 0, x / rho), np.where(cap, 0, y / rho), np.where(cap, np.sign(z), 0)))
            else:
                normal = local / (size * size)[:, None]
                normal /= np.sqrt((normal * normal).sum(axis=0)) + np.float32(1e-9)
            u, v = np.arctan2(y, x), -z
            if self.finish.tile[material] == 0:
                u, v, span = u * np.float32(1 / np.pi), v / (2 * size[2]) + 0.5, float(2 * size[2])
            else:
                u = u * size[0]
        self._put(index, R @ normal, u, v, material, span)

    def _put(self, index: np.ndarray, normal: np.ndarray, u: np.ndarray, v: np.ndarray, material: int, span: float | None = None) -> None:
        tile = float(self.finish.tile[material])
        if span is None:
            u, v, span = u / np.float32(tile), v / np.float32(tile), tile
        self.index.append(index)
        self.normal.append(normal)
        self.uv.append(np.stack((u, v)).astype(np.float32, copy=False))
        self.texels.append((material, SIDE / span, len(index)))
        self.count += len(index)


def light(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The collected pixels: flat index [n] and colour float32 [n, 3] in 0..1."""
    finish = batch.finish
    index = np.concatenate(batch.index)
    normal, (u, v) = np.concatenate(batch.normal, axis=1), np.concatenate(batch.uv, axis=1)
    materials, density, counts = zip(*batch.texels, strict=True)
    which = np.array(materials, np.int32)
    material = np.repeat(which, counts)
    dirs, depth = batch.dirs[:, index], batch.depth[index]
    facing = np.abs(_dot(normal, dirs))
    footprint = (
        depth * np.repeat(np.array(density, np.float32) * np.float32(batch.pixel_angle), counts) / np.maximum(facing, np.float32(0.3))
    )
    level = np.clip(np.log2(footprint + np.float32(1e-6)), 0, LEVELS - 1).astype(np.int32)
    value = sample(np.repeat(finish.pattern[which], counts), u, v, level)
    albedo = finish.colours.take(material * 256 + value.astype(np.int32), axis=0).T  # [3, n]

    point = batch.origin[:, None] + depth * dirs
    corner = np.ones_like(depth)
    for axis in range(3):
        wall = np.minimum(point[axis] - np.float32(finish.room[0, axis]), np.float32(finish.room[1, axis]) - point[axis])
        corner *= 1 - np.float32(0.32) * (1 - np.abs(normal[axis])) * np.exp(wall * np.float32(-1 / 0.22))
    total = np.empty_like(albedo)
    shade = corner * (np.float32(0.86) + np.float32(0.14) * normal[2])
    total[:] = shade * np.asarray(finish.ambient, np.float32)[:, None]
    for lamp, tint, strength in finish.lamps:
        to = np.asarray(lamp, np.float32)[:, None] - point
        square = _dot(to, to)
        lambert = np.maximum(_dot(to, normal) / np.sqrt(square), 0)
        total += (np.float32(strength) * corner * lambert / (1 + np.float32(0.18) * square)) * np.asarray(tint, np.float32)[:, None]
    glow = np.repeat(finish.glow[which], counts)
    if finish.glow[which].any():
        total += (glow * (np.float32(1.15) - total)) * (glow > 0)
    colour = albedo * total
    gloss = finish.gloss[material]
    at = np.flatnonzero(gloss)
    if len(at):
        to = np.asarray(finish.lamps[0][0], np.float32)[:, None] - point[:, at]
        to /= np.sqrt(_dot(to, to))
        middle = to - dirs[:, at]
        middle /= np.sqrt(_dot(middle, middle))
        colour[:, at] += gloss[at] * np.maximum(_dot(middle, normal[:, at]), 0) ** 24
    np.clip(colour, 0, 1, out=colour)
    return index, colour.T


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Column-wise dot product of [3, n] arrays, summed in a fixed order."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cast_shadows(colour: np.ndarray, depth: np.ndarray, decals: list[Decal], windows: list, origin: np.ndarray, dirs: np.ndarray) -> None:
    """Multiply decals into `colour` [h, w, 3] wherever the surface seen lies at their height (within 12 mm)."""
    for decal, (y0, y1, x0, x1) in zip(decals, windows, strict=True):
        if y1 == y0:
            continue
        t, d = depth[y0:y1, x0:x1], dirs[:, y0:y1, x0:x1]
        flat = np.abs(origin[2] + t * d[2] - np.float32(decal.center[2])) < np.float32(0.012)
        at = np.flatnonzero(flat)
        if not len(at):
            continue
        t, dx, dy = t.ravel()[at], d[0].ravel()[at], d[1].ravel()[at]
        px, py = origin[0] + t * dx - np.float32(decal.center[0]), origin[1] + t * dy - np.float32(decal.center[1])
        c, s = np.float32(decal.rot[0, 0]), np.float32(decal.rot[1, 0])
        qx = np.maximum(np.abs(c * px + s * py) - np.float32(decal.half[0]), 0)
        qy = np.maximum(np.abs(c * py - s * px) - np.float32(decal.half[1]), 0)
        mask = np.clip(1 - np.sqrt(qx * qx + qy * qy) / np.float32(decal.soft), 0, 1)
        mask = mask * mask * (3 - 2 * mask)
        rows, columns = at // (x1 - x0) + y0, at % (x1 - x0) + x0
        colour[rows, columns] *= (1 + np.float32(decal.gain) * mask)[:, None]
