"""An adapter as files: `pytorch_lora_weights.safetensors` and `egomill.json`, which says what for.

The first holds LoRA under `transformer.`, which diffusers' Wan pipelines load, and the method's own modules under names of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from egomill.models import lora, sharding
from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import file_sha256

WEIGHTS, ABOUT = "pytorch_lora_weights.safetensors", "egomill.json"
TRANSFORMER = "transformer."  # before the names of LoRA's tensors


def about(profile: Profile, revision: str, step: int, release: str) -> dict:
    """What somebody has to know to use the adapter: the base, and how it is conditioned."""
    method = of(profile)
    return {
        "method": method.name,
        "base": profile.model.base,
        "base_revision": revision,
        **method.conditioning(profile),
        "rank": profile.train.rank,
        "alpha": profile.train.alpha,
        "step": step,
        "release": release,
        "profile": profile.name,
    }


def state(net: Any) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    """(LoRA's tensors by layer, PEFT's description of them, the tensors of the method's own modules), whole and on the CPU.

    Of a sharded net, every worker has to ask at once.
    """
    own = {name: sharding.whole(t.detach()).cpu().contiguous() for name, t in net.state_dict().items() if not name.startswith(TRANSFORMER)}
    if not getattr(getattr(net, "transformer", None), "peft_config", None):
        return {}, {}, own
    return lora.state(net.transformer), lora.config(net.transformer), own


def save(tensors: dict, metadata: dict, own: dict, folder: Path, description: dict) -> None:
    """Write what `state` gives of a net, and the description last: where it lies the weights are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        from diffusers import WanImageToVideoPipeline

        WanImageToVideoPipeline.save_lora_weights(str(folder), transformer_lora_layers=tensors, transformer_lora_adapter_metadata=metadata)
    if own:
        said = {"format": "pt"}
        if tensors:
            with safe_open(folder / WEIGHTS, "pt") as file:
                said = file.metadata()
            own = {**load_file(folder / WEIGHTS), **own}
        save_file(own, folder / WEIGHTS, said)
    _in_order(folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps(description, indent=2))


def _in_order(file: Path) -> None:
    """Sort the metadata of a safetensors file in place: the library writes it in an order that changes from one process to the next,
    and adapters are told apart by their bytes. The format: eight bytes of the header's length, then the header as JSON.
    """
    with file.open("r+b") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        sorted_ = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(sorted_) != length:
            raise ValueError(f"{file}: the header is not plain JSON of {length} bytes")
        f.seek(8)
        f.write(sorted_)


def describe(folder: str | Path) -> dict:
    """egomill.json of an adapter. ValueError where the folder holds none."""
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter of ours: {ABOUT} is missing; `egomill register` takes a LoRA of others")
    return json.loads(path.read_text())


def misfit(found: dict, profile: Profile, revision: str) -> str:
    """Why an adapter of that description cannot be used with a base of that revision and the profile's method; "" where it can."""
    method = of(profile)
    if found["method"] != method.name:
        return f"it is of method {found['method']}, not of {method.name}"
    if found["base_revision"] != revision:
        return f"it was trained on base {found['base_revision']}, not on {revision}"
    apart = method.apart(profile, found)
    return f"it knows {apart}" if apart else ""


def load(net: Any, folder: str | Path, revision: str) -> dict:
    """Put an adapter on a fresh net and return its description. ValueError where it was made for another base, or does not fit the net."""
    found = describe(folder)
    if found["base_revision"] != revision:
        raise ValueError(f"adapter {folder} was trained on base {found['base_revision']}, not on {revision}")
    if any(name.startswith(TRANSFORMER) for name in _all(folder)):
        net.transformer.load_lora_adapter(
            str(folder), weight_name=WEIGHTS, prefix=TRANSFORMER.rstrip("."), local_files_only=True, use_safetensors=True
        )
    _load_own(net, folder)
    return found


def restore(net: Any, folder: str | Path) -> None:
    """Put a checkpoint's adapter into a net that has one of the same kind. ValueError where it does not fit."""
    if saved := tensors(folder):
        lora.restore(net.transformer, saved)
    _load_own(net, folder)


def tensors(folder: str | Path) -> dict[str, Tensor]:
    """LoRA's tensors by their names within the transformer."""
    return {name.removeprefix(TRANSFORMER): tensor for name, tensor in _all(folder).items() if name.startswith(TRANSFORMER)}


def _all(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / WEIGHTS)


def _load_own(net: Any, folder: str | Path) -> None:
    own = {name: tensor for name, tensor in _all(folder).items() if not name.startswith(TRANSFORMER)}
    wanted = {name for name in net.state_dict() if not name.startswith(TRANSFORMER)}
    if own.keys() != wanted:
        raise ValueError(f"adapter {folder} does not fit the method's net: {', '.join(sorted(own.keys() ^ wanted)[:5])} on one side only")
    net.load_state_dict(own, strict=False)


def sha256(folder: str | Path) -> str:
    return file_sha256(Path(folder) / WEIGHTS)
