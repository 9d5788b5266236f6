"""Geometry-guided attention (EgoX 3.3): ego queries favour exo keys that lie in the direction they look in.

    s'_mn = s_mn + log((1 + cos(q_m, k_n)) λ)        eq. 4-5, for ego queries m and exo keys n; every other pair is untouched

Directions are unit vectors from the ego centre of the *query's* latent frame, so exo keys have other directions for every query frame.
The bias is rank three a query frame, and is never stored: `chunked` builds one frame's tile at a time (exact, differentiable, any device),
`dense` builds the whole N×N matrix and is the reference that the rest is tested against. Tokens lie in the order (f, h, w) with the exo
columns left of the ego columns; tensors are [batch, heads, tokens, channels].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

FLOOR = 1e-6


@dataclass(frozen=True)
class Geometry:
    """What the bias is made from: `exo_points` [B, f, h, w_exo, 3] and `centres` [B, f, 3] in metres, `ego_rays` [B, f, h, w_ego, 3] unit,
    all in one world frame; validity [B, f, h, w]. A token without geometry counts as cos = 0, which favours and disfavours nothing.

    `formula`: "paper" (eq. 4), or "egox-released" for the published adapter: log(1 + 1e-6 + λ max(cos, 0) + min(cos, 0)), in which λ
    scales the positive side only (λ ≤ 1 scales both).
    """

    exo_points: Tensor
    exo_valid: Tensor
    ego_rays: Tensor
    ego_valid: Tensor
    centres: Tensor
    lambda_g: float = 1.0
    formula: str = "paper"

    def __post_init__(self) -> None:
        b, f, h, _, three = self.exo_points.shape
        if three != 3 or self.ego_rays.shape[:3] != (b, f, h) or self.centres.shape != (b, f, 3):
            raise ValueError(
                f"points {tuple(self.exo_points.shape)}, rays {tuple(self.ego_rays.shape)}, centres {tuple(self.centres.shape)}"
            )
        if self.formula not in ("paper", "egox-released") or self.lambda_g <= 0:
            raise ValueError(f"formula {self.formula!r} with lambda {self.lambda_g}: paper or egox-released, lambda > 0")

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """(f, h, w_exo, w_ego) in tokens."""
        f, h, w_exo = self.exo_points.shape[1:4]
        return f, h, w_exo, self.ego_rays.shape[3]

    @property
    def bytes(self) -> int:
        """What is stored for a clip: all there is instead of an N×N matrix."""
        return sum(t.numel() * t.element_size() for t in (self.exo_points, self.exo_valid, self.ego_rays, self.ego_valid, self.centres))

    def cosines(self, frame: int) -> Tensor:
        """cos between the ego tokens of one latent frame and all exo tokens: [B, h·w_ego, f, h, w_exo], float32."""
        away = self.exo_points.float() - self.centres[:, frame, None, None, None].float()
        keys = normalize(away, dim=-1) * self.exo_valid[..., None]
        queries = (self.ego_rays[:, frame].float() * self.ego_valid[:, frame, ..., None]).flatten(1, 2)
        return torch.einsum("bqc,bfhwc->bqfhw", queries, keys).clamp(-1, 1)

    def tile(self, frame: int, dtype: torch.dtype) -> Tensor:
        """The logits' bias for the ego queries of one latent frame over all tokens: [B, 1, h·w_ego, N]."""
        _f, _h, _w_exo, w_ego = self.layout
        bias = log_weight(self.cosines(frame), self.lambda_g, self.formula)
        return torch.nn.functional.pad(bias, (0, w_ego)).flatten(2)[:, None].to(dtype)


def log_weight(cosine: Tensor, lambda_g: float, formula: str = "paper") -> Tensor:
    """The additive bias of a pair from its cosine: log((1 + cos) λ), floored; or the released formula (see `Geometry`)."""
    if formula == "paper":
        return torch.log((1 + cosine).clamp(min=FLOOR) * lambda_g)
    negative = cosine if lambda_g > 1 else lambda_g * cosine
    return torch.log1p(torch.where(cosine > 0, lambda_g * cosine, negative) + FLOOR)


def dense(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
    """The reference: one SDPA over all tokens with the whole N×N bias. Memory grows with N²."""
    f, h, w_exo, w_ego = geometry.layout
    bias = q.new_zeros(len(q), 1, f, h, w_exo + w_ego, q.shape[2])
    for frame in range(f):
        bias[:, :, frame, :, w_exo:] = geometry.tile(frame, q.dtype).unflatten(2, (h, w_ego))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(2, 4))


def chunked(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
    """The same for the ego queries only, a latent frame at a time: [B, H, N, d] -> [B, H, f·h·w_ego, d] in the order (f, h, w_ego)."""
    f, h, w_exo, w_ego = geometry.layout
    ego = q.unflatten(2, (f, h, w_exo + w_ego))[:, :, :, :, w_exo:]
    rows = [
        scaled_dot_product_attention(ego[:, :, frame].flatten(2, 3), k, v, attn_mask=geometry.tile(frame, q.dtype)) for frame in range(f)
    ]
    return torch.cat(rows, dim=2)
