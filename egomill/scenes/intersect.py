"""Where rays meet a solid first: one closed form for each kind, vectorised over rays.

o [3]: the rays' common origin, d [3, n]: their unit directions, s [3]: the solid's size, all in the solid's frame. Returns distances [n],
inf where a ray misses; what lies behind the origin comes out negative. Origins inside a solid are not served.
"""

import numpy as np

from egomill.scenes.solids import BOX, CAPSULE, CYLINDER, ELLIPSOID

_FAR = np.float32(np.inf)


def _hit_box(o: np.ndarray, d: np.ndarray, s: np.ndarray) -> np.ndarray:
    inverse = 1 / (d + np.float32(1e-12))
    middle, span = -o[:, None] * inverse, s[:, None] * np.abs(inverse)
    near, far = (middle - span).max(axis=0), (middle + span).min(axis=0)
    return np.where(near <= far, near, _FAR)


def _hit_ellipsoid(o: np.ndarray, d: np.ndarray, s: np.ndarray) -> np.ndarray:
    o, d = o / s, d / s[:, None]
    a, b = d[0] * d[0] + d[1] * d[1] + d[2] * d[2], o @ d
    disc = b * b - a * (o @ o - 1)
    return np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, _FAR)


def _tube(o: np.ndarray, d: np.ndarray, r: np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    a, b = d[0] * d[0] + d[1] * d[1] + np.float32(1e-12), o[0] * d[0] + o[1] * d[1]
    disc = b * b - a * (o[0] * o[0] + o[1] * o[1] - r * r)
    return a, b, disc, np.sqrt(np.maximum(disc, 0))


def _hit_capsule(o: np.ndarray, d: np.ndarray, s: np.ndarray) -> np.ndarray:
    a, b, disc, root = _tube(o, d, s[0])
    t = (-b - root) / a
    z = o[2] + t * d[2]
    end = np.where(z > 0, s[2], -s[2])
    oz = o[2] - end
    bs = b + oz * d[2]
    disc_s = bs * bs - (o[0] * o[0] + o[1] * o[1] + oz * oz - s[0] * s[0])
    cap = np.where(disc_s > 0, -bs - np.sqrt(np.maximum(disc_s, 0)), _FAR)
    return np.where(disc > 0, np.where(np.abs(z) <= s[2], t, cap), _FAR)


def _hit_cylinder(o: np.ndarray, d: np.ndarray, s: np.ndarray) -> np.ndarray:
    a, b, disc, root = _tube(o, d, s[0])
    inverse = 1 / (d[2] + np.float32(1e-12))
    middle, span = -o[2] * inverse, s[2] * np.abs(inverse)
    near, far = np.maximum((-b - root) / a, middle - span), np.minimum((-b + root) / a, middle + span)
    return np.where((disc > 0) & (near <= far), near, _FAR)


HIT = {BOX: _hit_box, ELLIPSOID: _hit_ellipsoid, CAPSULE: _hit_capsule, CYLINDER: _hit_cylinder}
