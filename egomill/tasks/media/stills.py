"""Still pictures of clips: depth and coverage in colour, contact sheets of several videos. For MLflow, the report and the README."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

Frames = np.ndarray  # uint8 [F, H, W, 3]


def depth_picture(depth: np.ndarray, near: float | None = None, far: float | None = None) -> np.ndarray:
    """Depth [H, W] in metres (0 or NaN unknown) → uint8 [H, W, 3]: near warm, far cold, unknown dark grey.

    Colours are spread over inverse depth, between the 2nd and 98th percentile where no range is given.
    """
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return np.full((*depth.shape, 3), 40, np.uint8)
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0)
    low = 1 / far if far else np.percentile(inverse[known], 2)
    high = 1 / near if near else np.percentile(inverse[known], 98)
    level = np.clip((inverse - low) / max(high - low, 1e-6), 0, 1)
    colours = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(known[..., None], colours, 40).astype(np.uint8)


def coverage_picture(valid: np.ndarray, disc: np.ndarray | None = None) -> np.ndarray:
    """In how many of the frames valid [F, H, W] the prior shows a pixel → uint8 [H, W, 3]; black outside the lens's disc [H, W]."""
    share = valid.astype(np.float32).mean(axis=0)
    colours = cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS)[..., ::-1]
    return colours.copy() if disc is None else np.where(disc[..., None], colours, 0).astype(np.uint8)


def show_holes(frames: Frames, valid: np.ndarray, square: int = 8) -> Frames:
    """The frames with a quiet checkerboard where valid [F, H, W] is false, so that a hole is not mistaken for something black."""
    rows, columns = np.indices(valid.shape[1:]) // square
    board = np.where((rows + columns) % 2 == 0, 70, 96).astype(np.uint8)[None, ..., None]
    return np.where(valid[..., None], frames, board)


def over(picture: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """A drawing on black, uint8 [H, W, 3], laid over a dimmed picture."""
    return np.where(drawn.any(axis=-1, keepdims=True), drawn, picture // 2)


def contact_sheet(videos: Mapping[str, Frames], frames: Sequence[int], height: int = 128, gap: int = 4) -> np.ndarray:
    """One row a video, one column a frame, each video's name at the left → uint8 [H, W, 3] on white."""
    label = 96
    rows = []
    for name, video in videos.items():
        width = round(video.shape[2] * height / video.shape[1])
        tiles = [cv2.resize(video[i], (width, height), interpolation=cv2.INTER_AREA) for i in frames]
        text = np.full((height, label, 3), 255, np.uint8)
        cv2.putText(text, name, (4, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
        space = np.full((height, gap, 3), 255, np.uint8)
        rows.append(np.concatenate([part for tile in (text, *tiles) for part in (tile, space)], axis=1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, gap), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(rows)


def png(picture: np.ndarray) -> bytes:
    """uint8 RGB [H, W, 3] → PNG."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert ok
    return data.tobytes()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that a page carries within itself; kind: "image/png", "video/mp4"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
