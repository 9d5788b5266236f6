"""Depth networks behind one small protocol: frames and camera in, depth out. Weights are safetensors of a pinned revision, or nothing.

A name is a folder or a hub id; a hub id is fetched at its revision (JSON and safetensors only) and is then a folder like any other. What
lies in the folder says which network it is: a transformers depth class, MoGe-2 or Video Depth Anything. The latter two need their own
packages, and their published pickles have to be converted once: `model.safetensors` with the state, `config.json` with the
constructor's arguments. Trade-off: a little work for whoever wants them, against loading pickles from the internet in every actor.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from egomill.kernels.cameras import Camera
from egomill.kernels.depth import pinhole_z_to_range

BATCH = 4  # frames at once, for single-picture networks


class Estimator(Protocol):
    """Depth float32 [F, H, W] from frames uint8 RGB [F, H, W, 3] and their camera; 0 where unknown.

    Monocular: metres along the calibrated ray. Temporal: steady over time, its inverse known up to a scale and an offset.
    """

    def __call__(self, frames: ndarray, camera: Camera) -> ndarray: ...


def revision(name: str, pinned: str = "") -> str:
    """What stands for the weights in fingerprints: sha256 of a folder's safetensors files, or the hub id at its commit.

    ValueError on a hub id without a pinned commit (a branch moves), on a folder without safetensors, and where a pinned digest differs.
    """
    folder = Path(name)
    if not folder.is_dir():
        if len(pinned) != 40 or set(pinned) - set("0123456789abcdef"):
            raise ValueError(f"{name}: no such folder, and as a hub id it needs a commit of 40 hex digits: pin a revision")
        return f"{name}@{pinned}"
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ValueError(f"{name}: no safetensors there; pickled weights are not loaded")
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            whole.update(file.relative_to(folder).as_posix().encode() + hashlib.file_digest(f, "sha256").digest())
    found = f"sha256:{whole.hexdigest()}"
    if pinned and pinned != found:
        raise ValueError(f"{name}: weights are {found}, not the pinned {pinned}")
    return found


def folder_of(name: str, pinned: str = "") -> Path:
    """The local folder of a name; fetches a hub id at its pinned commit, JSON and safetensors only."""
    revision(name, pinned)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, revision=pinned, allow_patterns=["*.json", "*.safetensors"]))
    revision(str(folder))
    return folder


def load(name: str, pinned: str = "", metric: bool = True) -> Estimator:
    """The network in a folder or under a hub id. `metric`: it has to answer in metres.

    ValueError: no revision, no safetensors, unknown network, a package that is not installed, no metres where metres are asked for.
    """
    folder = folder_of(name, pinned)
    config = json.loads((folder / "config.json").read_text())
    if "model_type" in config:
        return Transformer(folder, name, metric)
    if {"encoder", "neck", "points_head"} <= set(config):
        return Moge(folder, name, config)
    if {"encoder", "features", "out_channels"} <= set(config):
        if metric:
            raise ValueError(f"{name}: Video Depth Anything knows no metres; it is a temporal estimator")
        return VideoDepthAnything(folder, name, config)
    raise ValueError(f"{name}: config.json is of no depth network known here (transformers, MoGe-2, Video Depth Anything)")


class Transformer:
    """Any depth class of transformers: Depth Anything V2 (metric or relative), Depth Pro (told the calibrated field of view)."""

    def __init__(self, folder: Path, name: str, metric: bool) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.model = AutoModelForDepthEstimation.from_pretrained(folder, use_safetensors=True).eval().to(_device())
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        kind = self.model.config.model_type
        self.metric = kind == "depth_pro" or getattr(self.model.config, "depth_estimation_type", "") == "metric"
        if metric and not self.metric:
            raise ValueError(f"{name}: this {kind} network gives relative depth, not metres")

    @torch.inference_mode()
    def __call__(self, frames: ndarray, camera: Camera) -> ndarray:
        found = [self._some(frames[i : i + BATCH], camera) for i in range(0, len(frames), BATCH)]
        depth = torch.cat(found)
        return (pinhole_z_to_range(depth, camera) if self.metric else _inverted(depth)).numpy()

    def _some(self, frames: ndarray, camera: Camera) -> Tensor:
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        if self.model.config.model_type == "depth_pro":
            outputs.field_of_view = torch.full((len(frames),), _field_of_view(camera)).to(self.model.device)
        sizes = [frames.shape[1:3]] * len(frames)
        results = self.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        return torch.stack([r["predicted_depth"].float().cpu() for r in results])


class Moge:
    """MoGe-2 (package `moge`), told the calibrated field of view."""

    def __init__(self, folder: Path, name: str, config: dict) -> None:
        self.model = _filled(_imported("moge.model.v2", name).MoGeModel(**config), folder)

    @torch.inference_mode()
    def __call__(self, frames: ndarray, camera: Camera) -> ndarray:
        found = []
        for i in range(0, len(frames), BATCH):
            picture = torch.from_numpy(np.ascontiguousarray(frames[i : i + BATCH])).permute(0, 3, 1, 2).float().to(_device()) / 255
            found.append(self.model.infer(picture, fov_x=_field_of_view(camera), use_fp16=_device() == "cuda")["depth"].float().cpu())
        return pinhole_z_to_range(torch.cat(found), camera).numpy()  # inf outside the network's own mask: unknown


class VideoDepthAnything:
    """Video Depth Anything (package `video_depth_anything`): relative inverse depth, steady over the clip."""

    def __init__(self, folder: Path, name: str, config: dict) -> None:
        self.model = _filled(_imported("video_depth_anything.video_depth", name).VideoDepthAnything(**config), folder)

    @torch.inference_mode()
    def __call__(self, frames: ndarray, camera: Camera) -> ndarray:
        inverse, _ = self.model.infer_video_depth(frames, 1.0, input_size=518, device=_device())
        return _inverted(torch.from_numpy(np.asarray(inverse, np.float32))).numpy()


def _inverted(inverse: Tensor) -> Tensor:
    """Depth up to scale from inverse depth up to scale; what is (nearly) at infinity, at the lens or NaN is unknown."""
    finite = inverse.isfinite()
    floor = 1e-3 * torch.where(finite, inverse, 0).amax().clamp_min(1e-12)
    return torch.where(finite & (inverse > floor), 1 / inverse.clamp_min(floor), 0)


def _field_of_view(camera: Camera) -> float:
    """Horizontal, in degrees, of the pinhole picture that has the lens' focal length: what such networks mean by it."""
    return math.degrees(2 * math.atan(camera.width / 2 / camera.params[0]))


def _imported(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name} needs the package {module.split('.')[0]!r}, which is not installed: {error}") from error


def _filled(model: Any, folder: Path) -> Any:
    from safetensors.torch import load_file

    state = {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}
    model.load_state_dict(state)
    return model.eval().to(_device())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
