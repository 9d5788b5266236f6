"""A base model's parts from a folder (or hub id) in the diffusers layout: stock classes, or our codec where the folder says so.

Safetensors only, nothing unpickled, nothing downloaded unless a hub id is given. The revision that rows and adapters record is the digest
of the weight files, because a folder's name says nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egomill.models.layout import Layout
from egomill.tasks.networks.configs import resolve


@dataclass(frozen=True)
class Parts:
    """The parts of a base. `image_encoder` and `image_processor` are None for bases without an image branch."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    image_encoder: Any
    image_processor: Any
    revision: str  # sha256 over the weight files
    layout: Layout | None = None  # how the base cuts a video up

    @torch.no_grad()
    def encode_text(self, texts: list[str], tokens: int) -> Tensor:
        """Text embeddings [B, tokens, c]: truncated, masked, and zero beyond the text's end, as the stock pipeline does."""
        return encode_text(self.tokenizer, self.text_encoder, texts, tokens)

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor | None:
        """Image embeddings [B, 257, c] of pictures uint8 [B, H, W, 3] (exo views only), or None without an image branch."""
        if self.image_encoder is None or self.image_processor is None:
            return None
        pixels = self.image_processor(images=list(pictures.cpu().numpy()), return_tensors="pt").pixel_values
        encoder = self.image_encoder
        return encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=True).hidden_states[-2]


@torch.no_grad()
def encode_text(tokenizer: Any, text_encoder: Any, texts: list[str], tokens: int) -> Tensor:
    """See `Parts.encode_text`."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=tokens, return_tensors="pt")
    ids, mask = batch.input_ids.to(text_encoder.device), batch.attention_mask.to(text_encoder.device)
    if text_encoder.config.model_type == "clip_text_model":  # which is told of no padding, and whose pipelines keep what it makes of it
        return text_encoder(ids).last_hidden_state
    return text_encoder(ids, mask).last_hidden_state * mask[..., None].to(text_encoder.dtype)


def digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's safetensors and configs (records and READMEs do not count)."""
    total = hashlib.sha256()
    files = [p for p in folder.rglob("*") if p.suffix == ".safetensors" or (p.suffix == ".json" and p.name != "record.json")]
    for path in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder).as_posix()}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


class Base:
    """A base on disk, its parts loaded when asked for: encoding needs no transformer, training no text encoder."""

    def __init__(self, base: str = "embedded", revision: str | None = None, dtype: torch.dtype = torch.float32):
        self.folder, self.dtype = resolve(base, revision), dtype
        self.index: dict[str, Any] = json.loads((self.folder / "model_index.json").read_text())

    @cached_property
    def revision(self) -> str:
        return digest(self.folder)

    def part(self, name: str) -> Any:
        """A part by its name in model_index.json, or None where the base has none; the transformer of a Stable Diffusion is its "unet".
        ValueError on a class that is not expected there."""
        if name == "transformer" and name not in self.index:
            name = "unet"
        library, kind = self.index.get(name) or (None, None)
        if kind is None:
            return None
        folder = str(self.folder / name)
        cls = _class(name, kind)
        if name in ("tokenizer", "image_processor", "scheduler"):
            return cls.from_pretrained(folder, local_files_only=True)
        precise = {"vae": torch.float32, "image_encoder": torch.float32}.get(name, self.dtype)
        key = "dtype" if library == "transformers" else "torch_dtype"
        model = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, **{key: precise})
        return model.eval().requires_grad_(False)


def load_parts(base: str = "embedded", revision: str | None = None, dtype: torch.dtype = torch.float32) -> Parts:
    """All parts of a base in evaluation mode and frozen; the VAE and the image encoder stay in float32."""
    found = Base(base, revision, dtype)
    names = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor")
    return Parts(**{name: found.part(name) for name in names}, revision=found.revision)


def _class(name: str, kind: str) -> Any:
    if kind == "PatchCodec":
        from egomill.models.codec import PatchCodec

        return PatchCodec
    home = import_module("transformers" if name in ("text_encoder", "tokenizer", "image_encoder", "image_processor") else "diffusers")
    cls = getattr(home, kind, None)
    if cls is None or kind.startswith("_"):
        raise ValueError(f"{name} of the base is a {kind!r}, which {home.__name__} has not")
    return cls
