"""Which base a profile means: its short revision, by which tables name it, and the parts that a stage asks for, on the device at hand."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from egomill.models.egox import IMAGE_BRANCH_TEXT
from egomill.schemas.config import Model
from egomill.tasks.networks.configs import layout
from egomill.tasks.networks.weights import Base, Parts

SHORT = 16  # hex digits of a revision that tables and adapters carry


def revision(model: Model) -> str:
    """The first 16 hex digits of the digest of the base's weights. Remembered per process: hashing 60 GB takes minutes.

    ValueError where the settings do not go with the base: model.text_tokens other than 512 beside an image branch, whose keys would be
    told apart wrongly without a word.
    """
    if model.text_tokens != IMAGE_BRANCH_TEXT and layout(model).image_branch:
        raise ValueError(
            f"model.text_tokens is {model.text_tokens}, and the base {model.base} has an image branch, which takes {IMAGE_BRANCH_TEXT}: "
            f"set model.text_tokens={IMAGE_BRANCH_TEXT} (latents that were encoded otherwise are then made again)"
        )
    return _revision(model.base, model.revision)


@lru_cache(maxsize=8)
def _revision(base: str, wanted: str) -> str:
    return Base(base, wanted or None).revision[:SHORT]


def load(model: Model, *names: str, device: str = "") -> Parts:
    """The named parts (transformer, vae, text_encoder, ...), frozen, on `device` ("" is the GPU where there is one); the others are None.

    "text" and "image" stand for the encoder and what goes before it.
    """
    base = Base(model.base, model.revision or None, getattr(torch, model.dtype))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = {"text": ("text_encoder", "tokenizer"), "image": ("image_encoder", "image_processor")}
    asked = [part for name in names for part in wanted.get(name, (name,))]
    parts: dict[str, Any] = dict.fromkeys(
        ("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor")
    )
    for name in asked:
        part = base.part(name)
        parts[name] = part.to(device) if isinstance(part, torch.nn.Module) else part
    return Parts(**parts, layout=layout(model), revision=revision(model))
