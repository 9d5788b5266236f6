"""From the columns of a lake's rows to what the model is given, and pictures to latents and back: the same for training and generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from egomill.kernels.gga import Geometry
from egomill.models.codec import decode_video, encode_video
from egomill.models.egox import Condition


def condition(columns: dict[str, Tensor], mask: str, device: str | torch.device = "cpu") -> Condition:
    """Columns `exo`, `prior`, `cover`, `text`, `image` [B, ...] of table latents (float16) → the model's condition, float32."""
    given = {name: columns[name].to(device).float() for name in ("exo", "prior", "cover", "text")}
    image = columns["image"].to(device).float() if "image" in columns else None
    return Condition(**given, image=image, mask=mask)


def geometry(columns: dict[str, Tensor], formula: str, lambda_g: float, device: str | torch.device = "cpu") -> Geometry | None:
    """Columns of table directions [B, ...] → what guided attention takes; None with formula "off"."""
    if formula == "off":
        return None
    wanted = {name: columns[name].to(device) for name in ("exo_points", "exo_valid", "ego_rays", "ego_valid", "centres")}
    return Geometry(**wanted, lambda_g=lambda_g, formula=formula)


def to_latent(vae: Any, frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] → normalised latents [16, f, h, w], float32 on the CPU."""
    pixels = torch.from_numpy(frames).to(vae.device).movedim(-1, 0).float()[None] / 127.5 - 1
    return encode_video(vae, pixels)[0].float().cpu()


def to_frames(vae: Any, latent: Tensor) -> np.ndarray | None:
    """Normalised latents [16, f, h, w] → uint8 [F, H, W, 3]; None where latents or pixels are not finite."""
    pixels = decode_video(vae, latent[None].to(vae.device, torch.float32))[0]
    if not (latent.isfinite().all() and pixels.isfinite().all()):
        return None
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(0, -1).cpu().numpy()
