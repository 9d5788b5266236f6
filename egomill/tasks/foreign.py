"""A LoRA that was trained elsewhere made an adapter of ours: EgoX's published one, for instance.

Its file says nothing of how it is conditioned (mask, attention's bias, directions); whoever brings it does, by settings. Every tensor has
to fit a layer of the base. Nothing is unpickled, and no weights of the base are read but for their digest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import file_sha256
from egomill.tasks import adapters, bases, sizes
from egomill.tasks.tracking import Adapter, Tracker

KEY = re.compile(r"(?:transformer\.)?(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")


def register(file: Path, profile: Profile, tracker: Tracker) -> Adapter:
    """Make a .safetensors file the next version of the profile's method, conditioned as the profile says. ValueError on what `read`
    refuses.
    """
    tensors, rank, alpha = read(file, profile)
    origin = {"file": file.name, "file_sha256": file_sha256(file)}
    revision = bases.revision(profile.model)
    about = adapters.about(profile, revision, step=0, release="") | {"rank": rank, "alpha": alpha, **origin}
    config = {"r": rank, "lora_alpha": alpha, "target_modules": sorted({name.rsplit(".", 2)[0] for name in tensors})}
    name = profile.train.method
    with TemporaryDirectory() as folder:
        adapters.save(tensors, config, Path(folder), about)
        run = tracker.start(f"{name}-{file.stem}", origin)
        tracker.params(run, {"model": profile.model.model_dump(), "directions": profile.directions.model_dump()})
        tags = {**origin, "profile": profile.name, "base": revision, "sha256": adapters.sha256(folder)}
        try:
            adapter = tracker.register(name, folder, run, tags)
        except BaseException:
            tracker.end(run, "FAILED")
            raise
        tracker.end(run)
    return adapter


def read(file: Path, profile: Profile) -> tuple[dict[str, Tensor], int, float]:
    """(tensors by layer and half, rank, alpha) of a file as diffusers writes it, with `transformer.` before the layers or without.

    Alpha is that of the file's metadata, else the rank. ValueError naming file and tensor where it is no safetensors file, a tensor is no
    half of a LoRA, the base has no such layer, a half is missing, or a shape is another (all layers have the rank of the first).
    """
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
            for key in opened.keys():  # noqa: SIM118 (not a dictionary)
                match = KEY.fullmatch(key)
                if match is None:
                    raise ValueError(f"{file}: {key} is no layer's lora_A.weight or lora_B.weight")
                halves.setdefault(match["layer"], {})[match["half"]] = opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {error}") from None
    if not halves:
        raise ValueError(f"{file} holds no tensor")
    rank = next((len(pair["A"]) for pair in halves.values() if "A" in pair and pair["A"].ndim), 0)
    known = _layers(profile)
    for layer, pair in halves.items():
        if layer not in known:
            raise ValueError(f"{file}: the base has no linear layer {layer}")
        wide, tall = known[layer]
        shapes = {half: tuple(tensor.shape) for half, tensor in sorted(pair.items())}
        if shapes != {"A": (rank, wide), "B": (tall, rank)}:
            raise ValueError(f"{file}: {layer} has {shapes}, not A {(rank, wide)} and B {(tall, rank)}")
    tensors = {f"{layer}.lora_{half}.weight": tensor for layer, pair in halves.items() for half, tensor in pair.items()}
    return tensors, rank, _alpha(file, metadata, rank)


def _alpha(file: Path, metadata: dict[str, str], rank: int) -> float:
    try:
        told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        return float(told.get("transformer.lora_alpha", rank))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: lora_adapter_metadata cannot be read: {error}") from None


def _layers(profile: Profile) -> dict[str, tuple[int, int]]:
    """{name: (inputs, outputs)} of the base's linear layers."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        transformer = WanTransformer3DModel(**sizes.transformer_config(profile))
    return {n: (m.in_features, m.out_features) for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
