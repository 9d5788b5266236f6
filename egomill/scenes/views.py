"""Single views of simulated clips, kept as files and drawn from with augmentation: what the embedded base model is trained on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FIRST_SEED = 100_000  # takes use smaller seeds
HELD_OUT = 32  # the first so many seeds are never trained on


def render_clip(folder: str, seed: int) -> str:
    """Simulate one clip and keep its two views: FOLDER/SEED.npz with exo, ego (uint8 [F, H, W, 3]) and caption. Returns the path."""
    from egomill.scenes.clip import sample_clip
    from egomill.scenes.take import one_thread

    path = Path(folder) / f"{seed}.npz"
    if not path.exists():
        one_thread()
        clip = sample_clip(seed, exo_index=seed % 4)
        part = path.with_suffix(f".{os.getpid()}.part.npz")
        np.savez(part, exo=clip.exo, ego=clip.ego, caption=np.array(clip.caption))
        part.rename(path)
    return str(path)


class Views:
    """All clips rendered so far, as single views: uint8 [F, H, W, 3] and the caption's embedding."""

    def __init__(self, folder: Path, embed: Callable[[str], Tensor], limit: int):
        self.folder, self.embed, self.limit = folder, embed, limit
        self.seen: set[str] = set()
        self.exo: list[np.ndarray] = []
        self.ego: list[np.ndarray] = []
        self.text: list[Tensor] = []
        self.held: list[tuple[np.ndarray, np.ndarray, Tensor]] = []

    def look(self) -> int:
        """Take up clips that have appeared; returns how many there are to train on."""
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            if path.name in self.seen or not path.stem.isdigit() or len(self.ego) >= self.limit:
                continue
            self.seen.add(path.name)
            with np.load(path, allow_pickle=False) as z:
                exo, ego, text = z["exo"], z["ego"], self.embed(str(z["caption"]))
            if int(path.stem) < FIRST_SEED + HELD_OUT:
                self.held.append((exo, ego, text))
            else:
                self.exo.append(exo)
                self.ego.append(ego)
                self.text.append(text)
        return len(self.ego)

    def draw(self, rng: np.random.Generator, width: int) -> tuple[Tensor, Tensor]:
        """A view augmented and cut to `width` x 128: video [F, 3, 128, width] in [-1, 1], text [T, c]."""
        k = int(rng.integers(len(self.ego)))
        stored = self.ego[k] if width == 128 and rng.random() < 0.65 else self.exo[k]
        return augment(rng, stored, width), self.text[k]


def to_float(stored: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [F, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(stored)).movedim(-1, 1).float() / 127.5 - 1


def augment(rng: np.random.Generator, stored: np.ndarray, width: int, height: int = 128) -> Tensor:
    """Stretch where too narrow, cut, mirror, reverse in time, and change colours."""
    video = to_float(stored)
    zoom = width / video.shape[-1] if width > video.shape[-1] else 1.0
    if stored.shape[2] != width or rng.random() < 0.3:
        zoom *= float(rng.uniform(1.0, 1.25))
    if zoom > 1:
        size = (max(height, round(video.shape[-2] * zoom)), max(width, round(video.shape[-1] * zoom)))
        video = functional.interpolate(video, size=size, mode="bilinear", align_corners=False)
    top, left = (int(rng.integers(n + 1)) for n in (video.shape[-2] - height, video.shape[-1] - width))
    video = video[..., top : top + height, left : left + width]
    if rng.random() < 0.5:
        video = video.flip(-1)
    if rng.random() < 0.3:
        video = video.flip(0)
    if rng.random() < 0.6:
        video = (video[:, rng.permutation(3)] if rng.random() < 0.5 else video) * float(rng.uniform(0.8, 1.1))
    return video.contiguous()
