"""Which exo pixels move: the sidecar's truth, background subtraction, or a segmentation network prompted by it.

A network is asked only about what background subtraction has found to move: it knows where a person ends, not whether somebody moves. What
it answers is kept within the found thing's box, so that a wrong answer costs a box and not the picture.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy import ndarray

from egomill.kernels.background import background_mask
from egomill.tasks.networks import estimators

NAMED = ("sidecar-or-background", "background", "none")
SMALLEST = 1e-3  # share of the picture that a moving thing takes at least
GROW = 0.01  # of the picture's width, around a network's or a sidecar's mask: resampling and soft rims


def revision(name: str) -> str:
    """Empty for the built-in masks; else as of estimators.revision (a hub id is written id@commit)."""
    return "" if name in NAMED else estimators.revision(*_split(name))


class Masker:
    """Dynamic masks by one of the names above, or by a SAM 2 folder or `hub id@commit`. ValueError as estimators.revision."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.network = None if name in NAMED else Sam2(name)

    def __call__(self, frames: ndarray, known: ndarray | None = None) -> tuple[ndarray, str]:
        """Dynamic bool [F, H, W] of a fixed camera's frames uint8 [F, H, W, 3], and what it was made by. `known`: the sidecar's mask."""
        if self.name == "none":
            return np.zeros(frames.shape[:3], bool), "none"
        if self.name == "sidecar-or-background" and known is not None:
            return grow(known), "sidecar"
        moving = background_mask(torch.from_numpy(np.ascontiguousarray(frames))).numpy()
        if self.network is None:
            return moving, "background"
        return np.stack([grow(self.network(frame, blobs(mask))) for frame, mask in zip(frames, moving, strict=True)]), self.name


def blobs(mask: ndarray) -> ndarray:
    """Boxes [n, 4] (left, top, right, bottom, px) of the connected parts of a mask [H, W] that are no specks."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    stats = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= SMALLEST * mask.size]
    left, top, wide, high = stats[:, :4].T
    return np.stack([left, top, left + wide, top + high], axis=-1)


def grow(mask: ndarray) -> ndarray:
    """A mask [..., H, W] dilated by about 1 % of the width."""
    margin = max(1, round(mask.shape[-1] * GROW))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    flat = mask.reshape(-1, *mask.shape[-2:])
    return np.stack([cv2.dilate(m.astype(np.uint8), kernel) > 0 for m in flat]).reshape(mask.shape)


class Sam2:
    """SAM 2 of transformers, prompted with boxes, frame by frame."""

    def __init__(self, name: str) -> None:
        from transformers import Sam2Model, Sam2Processor

        folder = estimators.folder_of(*_split(name))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = Sam2Model.from_pretrained(folder, use_safetensors=True).eval()
        self.model.to(device)
        self.processor = Sam2Processor.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, frame: ndarray, boxes: ndarray) -> ndarray:
        """Mask [H, W] of what the boxes [n, 4] hold in a frame uint8 [H, W, 3]."""
        found = np.zeros(frame.shape[:2], bool)
        if not len(boxes):
            return found
        prompt = [[[float(x) for x in box] for box in boxes]]
        inputs = self.processor(images=frame, input_boxes=prompt, return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs, multimask_output=False)
        answers = self.processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"].cpu())[0]
        for (left, top, right, bottom), answer in zip(boxes, answers[:, 0].numpy(), strict=True):
            found[top:bottom, left:right] |= answer[top:bottom, left:right]
        return found


def _split(name: str) -> tuple[str, str]:
    hub_id, _, commit = name.partition("@")
    return hub_id, commit
