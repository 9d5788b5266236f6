"""EgoExo-Align: the normalised latent of the first ego frame from the exo views' first frames (Exo2EgoSyn).

The paper names a spatio-temporal transformer that predicts this latent; its inputs, depth and loss could not be read, and all that follows
is our reading. Latent frame 0 of a causal codec is that of the video's first picture alone, so that nothing is encoded twice. The views'
patches and one more frame of learned queries on the ego grid pass through blocks of

    attention within each frame · MLP · attention across the frames at one place of the grid · MLP

and the ego frame is read out. "Across frames at one place" asks for one grid: exo and ego pictures are of one size. The output starts at
zero, the mean latent. A squared error makes a conditional mean, so what comes out is blurred where the views leave it open.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from egomill.models.positions import sinusoid

PATCH = 2  # latent pixels


class Attend(nn.Module):
    """Pre-norm self-attention and MLP, both residual, over tokens [N, n, d]; `known` [N, n] says which may be looked at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if known is None else known[:, None, None]
        x = x + self.out(scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class Align(nn.Module):
    """`channels` of a latent; at most `views` views."""

    def __init__(self, channels: int, views: int, width: int = 512, heads: int = 8, depth: int = 8) -> None:
        super().__init__()
        self.width = width
        self.enter, self.leave = nn.Linear(channels * PATCH**2, width), nn.Linear(width, channels * PATCH**2)
        self.view = nn.Parameter(0.02 * torch.randn(views, width))
        self.ego = nn.Parameter(0.02 * torch.randn(width))
        self.within = nn.ModuleList(Attend(width, heads) for _ in range(depth))
        self.across = nn.ModuleList(Attend(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, first: Tensor, seen: Tensor | None = None) -> Tensor:
        """Latent frame 0 of every view [B, V, C, h, w], normalised, and which views there are [B, V] bool (None: all) → the ego's
        [B, C, h, w]. What stands in place of a missing view changes nothing."""
        b, v, c, h, w = first.shape
        rows, columns = h // PATCH, w // PATCH
        cells = first.reshape(b, v, c, rows, PATCH, columns, PATCH).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
        place = sinusoid(self.width, rows, columns).to(first)
        exo = self.enter(cells) + place + self.view[:v, None, None]
        ego = (place + self.ego).expand(b, 1, rows, columns, -1)
        x = torch.cat([exo, ego], dim=1)
        known = None
        if seen is not None:  # at every place of the grid, and the ego frame always
            known = torch.cat([seen, seen.new_ones(b, 1)], dim=1).repeat_interleave(rows * columns, dim=0)
        for within, across in zip(self.within, self.across, strict=True):
            x = within(x.flatten(0, 1).flatten(1, 2)).unflatten(1, (rows, columns)).unflatten(0, (b, v + 1))
            x = across(x.permute(0, 2, 3, 1, 4).flatten(0, 2), known).unflatten(0, (b, rows, columns)).permute(0, 3, 1, 2, 4)
        out = self.leave(self.norm(x[:, -1])).unflatten(-1, (c, PATCH, PATCH))
        return out.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
