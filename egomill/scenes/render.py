"""A small ray caster for rooms: exact depth along every calibrated ray, pleasant shading, no GPU.

Each solid is cast only inside the pixel window that its bounding box can reach (found on a coarse grid of rays, so it holds for any
lens); visible pixels are then textured and lit together in one pass of array operations. Nothing is triangulated, so depth and masks
are exact.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from egomill.kernels.cameras import Camera
from egomill.scenes.intersect import HIT
from egomill.scenes.shading import Batch, Decal, cast_shadows, light
from egomill.scenes.solids import Solids
from egomill.scenes.world import Moment, Scene

FACES = 6  # identities 0..5 are the room's faces (-x, +x, -y, +y, floor, ceiling), then come the static and the moving solids
NEAR = 0.06
_BLOCK = 16
_FAR = np.float32(np.inf)


@dataclass(frozen=True)
class Lattice:
    """The rays of a camera. fine: (2H+1)x(2W+1) samples half a pixel apart, pixel centres at odd indices; else one a pixel."""

    rays: np.ndarray  # float32 [3, h, w], camera frame
    valid: np.ndarray  # bool [H, W], of the picture
    coarse: np.ndarray  # float32 [3, nby*nbx]: the rays at the middles of blocks
    blocks: tuple[int, int]
    reach: np.ndarray  # float32 [nby*nbx]: largest angle from a block's middle ray to its other rays, radians
    pixel_angle: float
    fine: bool


@dataclass
class Frame:
    """What the rays saw. Sizes are the lattice's."""

    colour: np.ndarray  # float32 [h, w, 3], 0..1
    depth: np.ndarray  # float32 [h, w], metres along the ray
    ident: np.ndarray  # int16 [h, w]
    changed: tuple[int, int, int, int] = (0, 0, 0, 0)  # y0, y1, x0, x1: outside it the frame is its base


@lru_cache(maxsize=12)
def lattice(camera: Camera, fine: bool) -> Lattice:
    """The lattice of a camera (cached: cameras are values)."""
    height, width = camera.height, camera.width
    if fine:
        y, x = torch.meshgrid(torch.arange(2 * height + 1) / 2 - 0.5, torch.arange(2 * width + 1) / 2 - 0.5, indexing="ij")
    else:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ray, valid = camera.unproject(torch.stack((x, y), dim=-1).double())
    rays = np.ascontiguousarray(ray.float().permute(2, 0, 1).numpy())
    h, w = rays.shape[1:]
    nby, nbx = -(-h // _BLOCK), -(-w // _BLOCK)
    padded = np.pad(rays, ((0, 0), (0, nby * _BLOCK - h), (0, nbx * _BLOCK - w)), mode="edge")
    block = padded.reshape(3, nby, _BLOCK, nbx, _BLOCK)
    middle = block[:, :, _BLOCK // 2, :, _BLOCK // 2]
    cosine = np.einsum("iaxby,iab->axby", block, middle).min(axis=(1, 3))
    reach = np.arccos(np.clip(cosine, -1, 1)) + 1e-3
    cy, cx = h // 2, w // 2
    angle = float(np.linalg.norm(rays[:, cy, cx + 1] - rays[:, cy, cx]))
    return Lattice(
        rays, valid.numpy()[1::2, 1::2] if fine else valid.numpy(), middle.reshape(3, -1), (nby, nbx), reach.ravel(), angle, fine
    )


def render(
    scene: Scene, grid: Lattice, T_world_cam: np.ndarray, moment: Moment | None, base: Frame | None = None, ego: bool = False
) -> Frame:
    """One picture: the static scene (or `base`, its picture rendered before from the same pose) and, unless None, what moves at `moment`.

    ego: the picture is the person's own, whose head is left out.
    """
    origin = np.asarray(T_world_cam[:3, 3], np.float32)
    R = np.asarray(T_world_cam[:3, :3], np.float32)
    h, w = grid.rays.shape[1:]
    dirs = (R @ grid.rays.reshape(3, -1)).reshape(3, h, w)
    coarse = R @ grid.coarse
    moving = None if moment is None else (moment.solids.where(~moment.head) if ego else moment.solids)
    first_moving = FACES + len(scene.static)
    parts: list[tuple[Solids, int]] = []
    if base is None:
        frame = Frame(np.zeros((h, w, 3), np.float32), *_cast_room(scene.finish.room, origin, dirs))
        parts.append((scene.static, FACES))
    else:
        frame = Frame(base.colour.copy(), base.depth.copy(), base.ident.copy())
    if moving is not None:
        parts.append((moving, first_moving))
    windows = [_windows(solids, grid, origin, coarse) for solids, _ in parts]
    for (solids, first), boxes in zip(parts, windows, strict=True):
        _cast(frame, solids, first, boxes, origin, dirs)

    batch = Batch.start(scene.finish, grid.pixel_angle, origin, dirs, frame.depth)
    seen = np.bincount(frame.ident.ravel(), minlength=first_moving + (0 if moving is None else len(moving)))
    if base is None:
        for face in range(FACES):
            if seen[face]:
                batch.room_face(face, np.flatnonzero(frame.ident == face))
    for (solids, first), boxes in zip(parts, windows, strict=True):
        for p in np.flatnonzero(seen[first : first + len(solids)]):
            y0, y1, x0, x1 = boxes[p]
            at = np.flatnonzero(frame.ident[y0:y1, x0:x1] == first + p)
            batch.solid(solids, int(p), (at // (x1 - x0) + y0) * w + at % (x1 - x0) + x0)
    if batch.count:
        index, colour = light(batch)
        frame.colour.reshape(-1, 3)[index] = colour
    decals = ([] if base is not None else list(scene.decals)) + ([] if moment is None else list(moment.decals))
    if decals:
        boxes = _windows(_reach_of(decals), grid, origin, coarse)
        cast_shadows(frame.colour, frame.depth, decals, boxes, origin, dirs)
        windows.append(boxes)
    shown = [box for boxes in windows for box in boxes if box[1] > box[0]]
    if shown:
        y0, y1, x0, x1 = zip(*shown, strict=True)
        frame.changed = (min(y0), max(y1), min(x0), max(x1))
    return frame


def _reach_of(decals: list[Decal]) -> Solids:
    """Flat boxes around decals, for `_windows`."""
    none = np.zeros(len(decals), int)
    size = np.array([(d.half[0] + d.soft, d.half[1] + d.soft, 0.02) for d in decals])
    return Solids(none, np.array([d.center for d in decals]), np.array([d.rot for d in decals]), size, none)


def picture(
    scene: Scene, grid: Lattice, frame: Frame, disc: float = 0.0, still: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame as a camera would give it: colour uint8 [H, W, 3], depth float32 [H, W] (0 where the lens is
    blind), dynamic bool [H, W].

    A fine lattice is filtered with a tent one pixel wide each side; else only the outlines are smoothed. disc: radius of the vignette in
    picture widths, 0 for none. still: the picture of the frame's `base` (one-a-pixel lattice only), which spares work outside `changed`.
    """
    step = slice(1, None, 2) if grid.fine else slice(None)
    dynamic = (frame.ident[step, step] >= FACES + len(scene.static)) & grid.valid
    depth = np.where(grid.valid, frame.depth[step, step], np.float32(0))
    if still is not None and not grid.fine:
        y0, y1, x0, x1 = frame.changed
        top, left = max(y0 - 2, 0), max(x0 - 2, 0)
        part = _smooth(frame.colour[top : y1 + 2, left : x1 + 2], frame.ident[top : y1 + 2, left : x1 + 2])
        colour = still.copy()
        colour[y0:y1, x0:x1] = _bytes(part[y0 - top :, x0 - left :][: y1 - y0, : x1 - x0])
        return colour, depth, dynamic
    soft = cv2.GaussianBlur(frame.colour, (3, 3), 0.75)[1::2, 1::2] if grid.fine else _smooth(frame.colour, frame.ident)
    if disc:
        soft = soft * _disc(soft.shape[0], soft.shape[1], disc)
    return _bytes(soft), depth, dynamic


def _bytes(colour: np.ndarray) -> np.ndarray:
    return np.clip(colour * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)


def _smooth(colour: np.ndarray, ident: np.ndarray) -> np.ndarray:
    """Colour with the outlines (where `ident` changes) blurred: cheap anti-aliasing."""
    outline = np.zeros(ident.shape, bool)
    down, right = ident[1:] != ident[:-1], ident[:, 1:] != ident[:, :-1]
    outline[1:] |= down
    outline[:-1] |= down
    outline[:, 1:] |= right
    outline[:, :-1] |= right
    at = np.flatnonzero(outline)
    out = colour.copy()
    out.reshape(-1, 3)[at] = cv2.GaussianBlur(colour, (3, 3), 0.6).reshape(-1, 3)[at]
    return out


@lru_cache(maxsize=4)
def _disc(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    r = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) / width
    edge = np.clip((radius - r) * width / max(2.0, width / 128), 0, 1)
    return (edge * (1 - 0.35 * np.clip(r / radius, 0, 1) ** 4))[..., None].astype(np.float32)


def _windows(solids: Solids, grid: Lattice, origin: np.ndarray, coarse: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Pixel rectangles (y0, y1, x0, x1), empty where a solid cannot be seen: slabs of the bounding boxes, inflated by a block's reach."""
    Rt = solids.rot.transpose(0, 2, 1).astype(np.float32)
    offset = np.einsum("pij,pj->pi", Rt, origin - solids.center.astype(np.float32))
    half = solids.half().astype(np.float32)
    far = np.linalg.norm(offset, axis=1) + np.linalg.norm(half, axis=1)
    direction = (Rt.reshape(-1, 3) @ coarse).reshape(len(solids), 3, -1)
    direction += np.float32(1e-7)
    wide = half[:, :, None] + (far[:, None] * np.tan(np.minimum(grid.reach, 1.2)))[:, None, :]
    inverse = 1 / direction
    middle = -offset[:, :, None] * inverse
    span = wide * np.abs(inverse)
    hit = ((middle - span).max(axis=1) <= (middle + span).min(axis=1)) & ((middle + span).min(axis=1) > 0)
    nby, nbx = grid.blocks
    hit = hit.reshape(-1, nby, nbx)
    h, w = grid.rays.shape[1:]
    rows, columns = hit.any(axis=2), hit.any(axis=1)
    out = []
    for row, column in zip(rows, columns, strict=True):
        if not row.any():
            out.append((0, 0, 0, 0))
            continue
        y0, y1 = int(row.argmax()), nby - int(row[::-1].argmax())
        x0, x1 = int(column.argmax()), nbx - int(column[::-1].argmax())
        out.append((y0 * _BLOCK, min(y1 * _BLOCK, h), x0 * _BLOCK, min(x1 * _BLOCK, w)))
    return out


def _cast_room(room: np.ndarray, origin: np.ndarray, dirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays leave the room (room: min corner, max corner [2, 3]): depth and face."""
    depth = np.full(dirs.shape[1:], _FAR, np.float32)
    ident = np.zeros(dirs.shape[1:], np.int16)
    for axis in range(3):
        d = dirs[axis]
        positive = d > 0
        t = np.where(positive, np.float32(room[1, axis] - origin[axis]), np.float32(room[0, axis] - origin[axis])) / (d + np.float32(1e-12))
        closer = t < depth
        np.copyto(depth, t, where=closer)
        np.copyto(ident, positive.astype(np.int16) + np.int16(2 * axis), where=closer)
    return depth, ident


def _cast(frame: Frame, solids: Solids, first: int, windows: list, origin: np.ndarray, dirs: np.ndarray) -> None:
    Rt = solids.rot.transpose(0, 2, 1).astype(np.float32)
    offset = np.einsum("pij,pj->pi", Rt, origin - solids.center.astype(np.float32))
    for p, (y0, y1, x0, x1) in enumerate(windows):
        if y1 == y0:
            continue
        d = Rt[p] @ dirs[:, y0:y1, x0:x1].reshape(3, -1)
        t = HIT[solids.kind[p]](offset[p], d, solids.size[p].astype(np.float32)).reshape(y1 - y0, x1 - x0)
        depth = frame.depth[y0:y1, x0:x1]
        hit = (t < depth) & (t > NEAR)
        np.copyto(depth, t, where=hit)
        np.copyto(frame.ident[y0:y1, x0:x1], np.int16(first + p), where=hit)
