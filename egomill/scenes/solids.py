"""The four convex solids that everything is made of, as arrays.

A box, an ellipsoid, a capsule and a cylinder, the last two along their local z.
"""

from dataclasses import dataclass, field

import numpy as np

BOX, ELLIPSOID, CAPSULE, CYLINDER = range(4)
EYE = np.eye(3)


@dataclass(frozen=True)
class Solids:
    """P solids in world coordinates, metres. size: half extents / radii / (r, r, half length of the axis) / (r, r, half height)."""

    kind: np.ndarray  # int [P]
    center: np.ndarray  # float64 [P, 3]
    rot: np.ndarray  # float64 [P, 3, 3]: R_world_local
    size: np.ndarray  # float64 [P, 3]
    material: np.ndarray  # int [P]

    def __len__(self) -> int:
        return len(self.kind)

    def __add__(self, other: "Solids") -> "Solids":
        return Solids(*(np.concatenate([a, b]) for a, b in zip(self._columns(), other._columns(), strict=True)))

    def where(self, keep: np.ndarray) -> "Solids":
        return Solids(*(column[keep] for column in self._columns()))

    def half(self) -> np.ndarray:
        """Half extents [P, 3] of the oriented bounding boxes."""
        extra = np.where(self.kind == CAPSULE, self.size[:, 0], 0.0)
        return np.stack([self.size[:, 0], self.size[:, 1], self.size[:, 2] + extra], 1)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.kind, self.center, self.rot, self.size, self.material


@dataclass
class Builder:
    """Collects solids; positions are given in a local frame (`origin`, `turn`: rotation about z) or, by default, in the world."""

    rows: list = field(default_factory=list)
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    turn: np.ndarray = field(default_factory=lambda: EYE)

    def at(self, origin, yaw: float) -> "Builder":
        """The same collection seen from another local frame."""
        return Builder(self.rows, np.asarray(origin, float), rot_z(yaw))

    def add(self, kind: int, center, size, material: int, rot: np.ndarray = EYE) -> None:
        self.rows.append((kind, self.origin + self.turn @ np.asarray(center, float), self.turn @ rot, np.asarray(size, float), material))

    def box(self, center, half, material: int, yaw: float = 0.0) -> None:
        self.add(BOX, center, half, material, rot_z(yaw))

    def ball(self, center, radii, material: int, rot: np.ndarray = EYE) -> None:
        self.add(ELLIPSOID, center, np.broadcast_to(radii, (3,)), material, rot)

    def rod(self, center, radius: float, half_height: float, material: int) -> None:
        self.add(CYLINDER, center, (radius, radius, half_height), material)

    def limb(self, a, b, radius: float, material: int) -> None:
        """A capsule from a to b."""
        a, b = np.asarray(a, float), np.asarray(b, float)
        length = float(np.linalg.norm(b - a))
        self.add(CAPSULE, (a + b) / 2, (radius, radius, length / 2), material, frame_z((b - a) / max(length, 1e-9)))

    def build(self) -> Solids:
        kind, center, rot, size, material = zip(*self.rows, strict=True)
        return Solids(np.array(kind), np.array(center), np.array(rot), np.array(size), np.array(material))


def rot_z(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def frame_z(axis: np.ndarray) -> np.ndarray:
    """A rotation [3, 3] whose third column is the unit vector `axis`."""
    x, y, z = axis
    sign = 1.0 if z >= 0 else -1.0  # Duff et al. 2017, "Building an orthonormal basis, revisited"
    a = -1.0 / (sign + z)
    b = x * y * a
    return np.array([[1 + sign * x * x * a, b, x], [sign * b, sign + y * y * a, y], [-sign * x, -y, z]])
