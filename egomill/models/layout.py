"""How a base cuts a video up, as its own configuration says: the one place that knows channels, cells and patches of a base.

A codec of cells t×s×s makes n + 1 latent frames of tn + 1 frames (frame 0 by itself, as Wan's causal VAE has it) and one latent pixel of
s×s pixels; a picture codec has t = 1. The transformer takes p×p latent pixels for a token.

    base                        channels   cell      token      input channels
    Wan 2.1 I2V, the embedded   16         4×8×8     4×16×16    36
    Wan 2.2 TI2V-5B             48         4×16×16   4×32×32    48
    Stable Diffusion inpaint    4          1×8×8     1×8×8      9
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    channels: int  # of a latent
    temporal: int  # frames of a latent frame, but for the first
    spatial: int  # px across a latent pixel
    patch: int  # latent pixels across a token
    inputs: int  # channels that the transformer takes
    image_branch: bool = False  # whether its attention takes an image embedding beside the text (Wan 2.1 I2V)

    @staticmethod
    def of(codec: Mapping[str, Any], transformer: Mapping[str, Any]) -> Layout:
        """From the two configurations as diffusers writes them. What a configuration leaves out is as its class has it."""
        picture = "latent_channels" in codec  # AutoencoderKL; Wan's and ours say z_dim
        channels = codec["latent_channels"] if picture else codec.get("z_dim", 16)
        temporal = 1 if picture else codec.get("scale_factor_temporal", 4)
        spatial = 2 ** (len(codec.get("block_out_channels", (0,))) - 1) if picture else codec.get("scale_factor_spatial", 8)
        patch = transformer.get("patch_size", 1)  # a U-Net has none
        token = patch if isinstance(patch, int) else patch[-1]
        return Layout(channels, temporal, spatial, token, transformer.get("in_channels", channels), image_branch(transformer))

    @property
    def token(self) -> int:
        """Pixels across a token."""
        return self.spatial * self.patch

    @property
    def cell(self) -> tuple[int, int, int]:
        """What a token stands for: frames, rows, columns."""
        return self.temporal, self.token, self.token

    def latents(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of a clip's latents. ValueError where it does not fit."""
        self.check(frames, height, width)
        return (frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial

    def check(self, frames: int, *sides: int) -> None:
        """ValueError where a clip of so many frames and such sides in px is not cut up without a rest."""
        if frames < 1 or (frames - 1) % self.temporal or any(side % self.token for side in sides):
            wanted = "a positive number of" if self.temporal == 1 else f"{self.temporal}n + 1"
            raise ValueError(
                f"a clip has {wanted} frames and sides that are multiples of {self.token} px with this base, not {frames} frames and "
                f"{', '.join(map(str, sides))} px: set clips.frames, clips.exo_size and clips.ego_size"
            )


def image_branch(config: Mapping[str, Any]) -> bool:
    """Whether a transformer of this configuration attends to an image beside the text."""
    return config.get("added_kv_proj_dim") is not None or bool(config.get("image_dim"))
