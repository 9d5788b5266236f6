"""PoseInj: Plücker maps joined to the transformer's hidden states before its first block (Exo2EgoSyn).

    h ← W_f [h ; E(P)] + b_f,     W_f = [I | 0] and b_f = 0 at the start

"Concatenated with the hidden states before the first DiT block" we read as channels of every token; E is a convolution with the
transformer's own patch. The start is the stock model exactly. W_f learns from the first step, E from the second.

The place is a hook on the patch embedding, which lies outside of what gradient checkpointing runs again: on the first block itself the
maps of a later batch would make wrong gradients without a word.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RayFusion(nn.Module):
    """For maps of so many channels; `hidden` is E's width. The maps of the batch at hand are set as `maps` before each pass."""

    def __init__(self, transformer: Any, channels: int, hidden: int = 256) -> None:
        super().__init__()
        patch = transformer.patch_embedding
        width, size = patch.out_channels, patch.kernel_size
        self.encode = nn.Conv3d(channels, hidden, (1, *size[1:]), (1, *size[1:]))
        self.fuse = nn.Linear(width + hidden, width)
        nn.init.zeros_(self.fuse.bias)
        with torch.no_grad():
            self.fuse.weight.copy_(torch.eye(width, width + hidden))
        self.maps: Tensor | None = None
        patch.register_forward_hook(lambda _, __, out: out if self.maps is None else self(out))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, D, f, h', w'] with the maps [B, channels, f, h, w] joined to them."""
        assert self.maps is not None
        joined = torch.cat([hidden.float(), self.encode(self.maps.to(hidden.device).float())], dim=1)
        return self.fuse(joined.movedim(1, -1)).movedim(-1, 1).to(hidden.dtype)
