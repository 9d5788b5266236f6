"""What a base's files say of it before any weight is read: where they lie, its parts' configurations, how it cuts a video up."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from egomill.models.layout import Layout
from egomill.models.method import of
from egomill.schemas.config import Model, Profile

ASSETS = Path(__file__).parents[2] / "assets"
EMBEDDED = {"embedded": ASSETS / "base", "embedded-pictures": ASSETS / "picture-base"}
_WAN = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "rope_max_seq_len": 1024,
}
_WAN_14B = {"num_attention_heads": 40, "in_channels": 36, "out_channels": 16, "ffn_dim": 13824, "num_layers": 40}
_TI2V_5B = {"num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336, "num_layers": 30}
_SD_BLOCKS = {"cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 9, "sample_size": 64}
_SD_CODEC = {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.18215}
# What config.json says of the parts, for the hub ids of the profiles that come with the package: sizes need no download.
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": {"transformer": {**_WAN, **_WAN_14B, "image_dim": 1280, "added_kv_proj_dim": 5120}},
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {
        "transformer": {**_WAN, **_TI2V_5B},
        "vae": {"z_dim": 48, "scale_factor_temporal": 4, "scale_factor_spatial": 16},
    },
    "stable-diffusion-v1-5/stable-diffusion-inpainting": {"unet": _SD_BLOCKS, "vae": _SD_CODEC},
}


def resolve(base: str, revision: str | None = None) -> Path:
    """The folder of a base: a key of EMBEDDED, a folder, or a hub id (which alone may download). ValueError where there is none."""
    folder = EMBEDDED.get(base) or Path(base)
    if (folder / "model_index.json").is_file():
        return folder
    if base in EMBEDDED or folder.exists() or len(folder.parts) != 2:
        raise ValueError(f"{folder} is no folder with a model_index.json")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    return Path(snapshot_download(base, revision=revision or None, allow_patterns=patterns))


def part_config(base: str, part: str) -> dict[str, Any]:
    """The configuration of a base's part, of a hub id that is known here without a download; {} where its folder has no such part."""
    folder = EMBEDDED.get(base) or Path(base)
    if not folder.is_dir() and base in KNOWN:
        return KNOWN[base].get(part, {})
    path = folder / part / "config.json"
    return {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("_")} if path.is_file() else {}


def layout(model: Model) -> Layout:
    """How the base cuts a video up. ValueError where there is no such base."""
    return _layout(model.base, model.revision)


@lru_cache(maxsize=8)
def _layout(base: str, revision: str) -> Layout:
    where = base if base in KNOWN else str(resolve(base, revision or None))
    return Layout.of(part_config(where, "vae"), part_config(where, "transformer") or part_config(where, "unet"))


def check(profile: Profile) -> None:
    """ValueError where the sizes of clips, the base and the method do not go together, and on a base of two experts, of which an adapter
    would train one."""
    base = profile.model.base
    if base not in KNOWN:
        index = json.loads((resolve(base, profile.model.revision or None) / "model_index.json").read_text())
        if any(index.get("transformer_2") or ()):
            raise ValueError(
                f"the base {base} has two transformers, each for its own noise levels; name one of a single one with model.base"
            )
    cut, recipe = layout(profile.model), profile.clips
    cut.check(recipe.frames, *recipe.exo_size, recipe.ego_size)
    of(profile).check(profile, cut)
