"""The embedded video codec: what stands where Wan's VAE stands when no weights are at hand.

A cell of 4×8×8 pixels becomes 16 numbers by a fixed linear map (the leading principal components of such cells), the first frame counting
as four equal ones, so that the latent grid is that of Wan's causal VAE: 9 frames → 3. The way back is the transposed map plus a small
convolutional net over the latent grid, which sees the neighbouring cells and so takes the edges between them away. Trained in minutes on
a CPU, where a VAE from scratch is not; the price is that it knows only linear features, so its ceiling is some 25–30 dB.
Interface of `diffusers.AutoencoderKLWan`: encode(x).latent_dist, decode(z).sample, config.latents_mean and config.latents_std.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

TIME, SPACE = 4, 8
CELL = TIME * SPACE * SPACE * 3


@dataclass
class Decoded(BaseOutput):
    """As diffusers' DecoderOutput, whose module takes all of its autoencoders along: seconds of every stage that encodes."""

    sample: Tensor


class Exact:
    """A distribution with all its mass on one latent."""

    def __init__(self, latent: Tensor):
        self.mean = latent

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Any = None) -> Tensor:
        return self.mean


def to_cells(video: Tensor) -> Tensor:
    """Video [B, 3, 4n+1, 8h, 8w] -> cells [B, n+1, h, w, 768]; ValueError where the sizes do not fit."""
    batch, colours, frames, height, width = video.shape
    if colours != 3 or (frames - 1) % TIME or height % SPACE or width % SPACE:
        raise ValueError(f"a video is 3 x (4n+1) x 8h x 8w, not {tuple(video.shape[1:])}")
    video = torch.cat([video[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), video], dim=2)
    cells = video.reshape(batch, 3, -1, TIME, height // SPACE, SPACE, width // SPACE, SPACE)
    return cells.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def from_cells(cells: Tensor) -> Tensor:
    """The inverse: cells [B, n+1, h, w, 768] -> video [B, 3, 4n+1, 8h, 8w]; of the first cells' four frames, the mean."""
    batch, n, h, w, _ = cells.shape
    video = cells.reshape(batch, n, h, w, TIME, SPACE, SPACE, 3).permute(0, 7, 1, 4, 2, 5, 3, 6)
    video = video.reshape(batch, 3, n * TIME, h * SPACE, w * SPACE)
    return torch.cat([video[:, :, :TIME].mean(dim=2, keepdim=True), video[:, :, TIME:]], dim=2)


class Residual(nn.Module):
    """A convolution over (time, height, width) of the latent grid, added to what comes in."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(nn.functional.silu(x))


class PatchCodec(ModelMixin, ConfigMixin):
    """The codec. `hidden` and `layers` size the refining net (0 layers: the linear map alone)."""

    memory = False  # a cell's latent is its own pixels' alone

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        hidden: int = 64,
        layers: int = 2,
        latents_mean: tuple[float, ...] = (0.0,) * 16,
        latents_std: tuple[float, ...] = (1.0,) * 16,
        scale_factor_temporal: int = TIME,
        scale_factor_spatial: int = SPACE,
    ):
        super().__init__()
        if (scale_factor_temporal, scale_factor_spatial) != (TIME, SPACE):
            raise ValueError("the cells of this codec are 4x8x8")
        self.centre = nn.Parameter(torch.zeros(CELL), requires_grad=False)
        self.basis = nn.Parameter(torch.eye(z_dim, CELL), requires_grad=False)  # orthonormal rows
        # The net sees whitened latents, so that small components count.
        self.scale = nn.Parameter(torch.ones(z_dim), requires_grad=False)
        self.temperal_downsample = [True, True]  # read by diffusers' Wan pipelines, spelt as there
        if layers:
            tail = nn.Linear(hidden, CELL)
            nn.init.zeros_(tail.weight)
            nn.init.zeros_(tail.bias)
            self.body = nn.Sequential(nn.Conv3d(z_dim, hidden, 3, padding=1), *[Residual(hidden) for _ in range(layers)])
            self.tail = tail

    @torch.no_grad()
    def fit(self, cells: Tensor, power: float = 0.5) -> Tensor:
        """Set the linear map from cells [N, 768]; returns the share of variance that each component holds [z_dim].

        The latents are normalised by std^power (times a constant that makes their mean square 1): at power 1 every component would weigh
        the same in a loss, although the first hold nearly all the picture; at power 0 the last would drown in the noise of diffusion.
        """
        self.centre.copy_(cells.mean(dim=0))
        centred = (cells - self.centre).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(cells))
        order = values.argsort(descending=True)[: self.basis.shape[0]]
        self.basis.copy_(vectors[:, order].T)
        deviation = values[order].clamp_min(1e-12).sqrt()
        self.scale.copy_(deviation)
        chosen = deviation**power
        chosen = chosen * (deviation / chosen).square().mean().sqrt()
        self.register_to_config(latents_mean=[0.0] * len(order), latents_std=[float(f"{s:.6g}") for s in chosen])
        return (values[order] / values.sum()).float()

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[Exact]:
        """Video [B, 3, 4n+1, 8h, 8w] in [-1, 1] -> latents [B, z_dim, n+1, h, w], not normalised (as Wan's VAE)."""
        latent = Exact(((to_cells(x) - self.centre) @ self.basis.T).movedim(-1, 1))
        return AutoencoderKLOutput(latent_dist=latent) if return_dict else (latent,)  # pyright: ignore[reportArgumentType]

    def decode(self, z: Tensor, return_dict: bool = True) -> Decoded | tuple[Tensor]:
        """Latents [B, z_dim, n+1, h, w] -> video [B, 3, 4n+1, 8h, 8w], not clamped (a clamp has no gradient)."""
        cells = z.movedim(1, -1) @ self.basis + self.centre
        if self.config["layers"]:
            hidden = self.body(z / self.scale.view(1, -1, 1, 1, 1)).movedim(1, -1)
            cells = cells + self.tail(nn.functional.silu(hidden))
        video = from_cells(cells)
        return Decoded(sample=video) if return_dict else (video,)

    def forward(self, x: Tensor) -> Tensor:
        """There and back again."""
        return self.decode(self.encode(x).latent_dist.mode()).sample  # pyright: ignore[reportAttributeAccessIssue]
