"""Between pixels and what a transformer sees: any base's codec, its latents normalised. No diffusers here: the codec is handed in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def normalise(vae: Any, latent: Tensor) -> Tensor:
    """(z − mean) / std of a codec's config, per channel: what the transformer sees. Latents [B, z, f, h, w]."""
    mean, std = _moments(vae, latent)
    return (latent - mean) / std


def of_pictures(vae: Any) -> bool:
    """Whether a codec knows single pictures only (AutoencoderKL): each frame is a picture to it."""
    return "latent_channels" in vae.config


def denormalise(vae: Any, latent: Tensor) -> Tensor:
    """The inverse of `normalise`: what the codec decodes."""
    mean, std = _moments(vae, latent)
    return latent * std + mean


def encode_video(vae: Any, video: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Video [B, 3, F, H, W] in [-1, 1] -> normalised latents [B, z, f, h, w] by the mode, so that no other clip's random numbers matter."""
    with torch.no_grad():
        if of_pictures(vae):
            latent = vae.encode(video.to(vae.dtype).transpose(1, 2).flatten(0, 1)).latent_dist.mode()
            return normalise(vae, latent.unflatten(0, (len(video), -1)).transpose(1, 2).to(dtype))
        return normalise(vae, vae.encode(video.to(vae.dtype)).latent_dist.mode().to(dtype))


def decode_video(vae: Any, latent: Tensor) -> Tensor:
    """Normalised latents [B, z, f, h, w] -> video [B, 3, F, H, W] float32 in [-1, 1]."""
    with torch.no_grad():
        latent, count = denormalise(vae, latent).to(vae.dtype), len(latent)
        if of_pictures(vae):
            pictures = vae.decode(latent.transpose(1, 2).flatten(0, 1)).sample
            return pictures.unflatten(0, (count, -1)).transpose(1, 2).float().clamp(-1, 1)
        return vae.decode(latent).sample.float().clamp(-1, 1)


def to_latent(vae: Any, frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] → normalised latents [z, f, h, w], float32 on the CPU."""
    pixels = torch.from_numpy(frames).to(vae.device).movedim(-1, 0).float()[None] / 127.5 - 1
    return encode_video(vae, pixels)[0].float().cpu()


def to_frames(vae: Any, latent: Tensor) -> np.ndarray | None:
    """Normalised latents [z, f, h, w] → uint8 [F, H, W, 3]; None where latents or pixels are not finite."""
    pixels = decode_video(vae, latent[None].to(vae.device, torch.float32))[0]
    if not (latent.isfinite().all() and pixels.isfinite().all()):
        return None
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(0, -1).cpu().numpy()


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    if of_pictures(vae):  # AutoencoderKL has one number for all channels
        return torch.zeros((), dtype=like.dtype, device=like.device), torch.tensor(1 / vae.config["scaling_factor"]).to(like)
    shape = (1, -1, 1, 1, 1)
    return tuple(torch.tensor(vae.config[k], dtype=like.dtype, device=like.device).view(shape) for k in ("latents_mean", "latents_std"))  # pyright: ignore[reportReturnType]
