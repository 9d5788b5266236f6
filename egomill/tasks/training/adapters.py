"""An adapter as files: `pytorch_lora_weights.safetensors`, which diffusers' Wan pipelines load, and `egomill.json`, which says what for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import file_sha256

WEIGHTS, ABOUT = "pytorch_lora_weights.safetensors", "egomill.json"


def about(profile: Profile, revision: str, step: int, release: str) -> dict:
    """What somebody has to know to use the adapter: the base, and how it is conditioned."""
    return {
        "method": profile.train.method,
        "base": profile.model.base,
        "base_revision": revision,
        "mask": profile.model.mask,
        "gga": profile.model.gga,
        "lambda_g": profile.model.lambda_g,
        "geometry": profile.directions.geometry,
        "text_tokens": profile.model.text_tokens,
        "rank": profile.train.rank,
        "alpha": profile.train.alpha,
        "step": step,
        "release": release,
        "profile": profile.name,
    }


def save(tensors: dict, metadata: dict, folder: Path, description: dict) -> None:
    """Write lora.state and lora.config of a transformer, and the description last: where it lies the weights are whole."""
    from diffusers import WanImageToVideoPipeline

    folder.mkdir(parents=True, exist_ok=True)
    WanImageToVideoPipeline.save_lora_weights(str(folder), transformer_lora_layers=tensors, transformer_lora_adapter_metadata=metadata)
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
        raise ValueError(f"{folder} holds no adapter of ours: {ABOUT} is missing")
    return json.loads(path.read_text())


def misfit(found: dict, profile: Profile, revision: str) -> str:
    """Why an adapter of that description cannot be used with a base of that revision and the profile's directions; "" where it can."""
    if found["base_revision"] != revision:
        return f"it was trained on base {found['base_revision']}, not on {revision}"
    known = found.get("geometry", "calibrated")  # the only one that early adapters had
    if known != profile.directions.geometry:
        return f"it knows directions.geometry {known!r}, not {profile.directions.geometry!r}"
    return ""


def load(transformer: Any, folder: str | Path, revision: str) -> dict:
    """Put an adapter on a fresh transformer and return its description. ValueError where it was made for another base."""
    found = describe(folder)
    if found["base_revision"] != revision:
        raise ValueError(f"adapter {folder} was trained on base {found['base_revision']}, not on {revision}")
    transformer.load_lora_adapter(str(folder), weight_name=WEIGHTS, prefix="transformer", local_files_only=True, use_safetensors=True)
    return found


def tensors(folder: str | Path) -> dict:
    """The adapter's tensors by their names within the transformer."""
    return {k.removeprefix("transformer."): v for k, v in load_file(Path(folder) / WEIGHTS).items()}


def sha256(folder: str | Path) -> str:
    return file_sha256(Path(folder) / WEIGHTS)
