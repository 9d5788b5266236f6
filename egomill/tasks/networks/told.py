"""Measures that hold a generated video against what a clip is told of, its text and its hands, and not against the true video.

Computed where a folder with weights is named, and said to be missing otherwise, as those of perceptual.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.alignment import pa_mpjpe
from egomill.schemas.config import Evaluate, Hands
from egomill.schemas.fingerprint import digest, file_sha256
from egomill.tasks.networks import landmarks
from egomill.tasks.networks.perceptual import NO_WEIGHTS

Told = Callable[[np.ndarray, str, Tensor | None], float | None]  # frames uint8 [F, H, W, 3], text, joints [F, 2, 21, 3]: None where nothing
NO_INCEPTION = "not computed: a distance between sets of pictures, and no Inception network is built in"
NOTHING = {"pa_mpjpe": "no hand was found in the video whose joints are known", "clip_score": "the clip has no text"}


def load(settings: Evaluate, names: tuple[str, ...]) -> tuple[dict[str, Told], dict[str, str]]:
    """Those of the measures that can be computed, and why not of the others."""
    making: dict[str, tuple[str, Callable[[Path], Told]]] = {
        "clip_score": (settings.clip_score, clip_score),
        "pa_mpjpe": (settings.hands, hand_error),
    }
    found: dict[str, Told] = {}
    missing: dict[str, str] = {"fid": NO_INCEPTION if settings.fid else NO_WEIGHTS} if "fid" in names else {}
    for name in (name for name in names if name in making):
        folder, make = making[name]
        if not folder:
            missing[name] = NO_WEIGHTS
            continue
        try:
            found[name] = make(Path(folder))
        except (OSError, ValueError, RuntimeError) as error:
            missing[name] = f"not computed: {folder}: {str(error).strip().splitlines()[0][:200]}"
    return found, missing


def weights_digest(settings: Evaluate, names: tuple[str, ...]) -> str:
    """Digest of the files that are named, so that scores follow them; "" without any."""
    folders = {"clip_score": settings.clip_score, "pa_mpjpe": settings.hands, "fid": settings.fid}
    named = {name: folders[name] for name in names if folders.get(name)}
    files = {name: [f for f in sorted(Path(folder).glob("*")) if f.suffix in (".safetensors", ".tflite")] for name, folder in named.items()}
    return digest({name: {f.name: file_sha256(f) for f in some} for name, some in files.items()}) if named else ""


def clip_score(folder: Path) -> Told:
    """CLIPScore: cosine of a frame's and the text's embeddings, the mean over frames. Errors: OSError where the folder holds no CLIP."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def measure(frames: np.ndarray, text: str, joints: Tensor | None) -> float | None:
        if not text:
            return None
        words = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        pixels = processor(list(frames), return_tensors="pt")["pixel_values"]
        out = model(pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        return torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds, dim=-1).mean().item()

    return measure


def hand_error(folder: Path) -> Told:
    """PA-MPJPE in millimetres: hands that the landmark network finds in a frame, after the best similarity on the true ones of that side.
    Hands that it does not find do not count. Errors: ValueError where the folder has not both files."""
    palm, landmark = (str(folder / f"{name}_full.tflite") for name in ("palm_detection", "hand_landmark"))
    network = landmarks.Network(Hands(source="landmarks", palm=palm, landmark=landmark))

    def measure(frames: np.ndarray, text: str, joints: Tensor | None) -> float | None:
        off = []
        for frame, true in zip(frames, () if joints is None else joints, strict=False):
            for hand in network.hands(frame):
                error = 1000 * pa_mpjpe(torch.from_numpy(hand.metres), true[hand.side].double()).item()
                off += [error] if np.isfinite(error) else []
        return float(np.mean(off)) if off else None

    return measure
