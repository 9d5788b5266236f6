"""What guided attention is told of a batch: where each token looks, and how that becomes a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

FLOOR = 1e-6


def log_weight(cosine: Tensor, lambda_g: float, formula: str = "paper") -> Tensor:
    """The additive bias of a pair from its cosine: log((1 + cos) λ), floored; or the released formula (see `Geometry`)."""
    if formula == "paper":
        return torch.log((1 + cosine).clamp(min=FLOOR) * lambda_g)
    negative = cosine if lambda_g > 1 else lambda_g * cosine
    return torch.log1p(torch.where(cosine > 0, lambda_g * cosine, negative) + FLOOR)


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
        with torch.autocast(keys.device.type, enabled=False):
            return torch.einsum("bqc,bfhwc->bqfhw", queries, keys).clamp(-1, 1)

    def tile(self, frame: int, dtype: torch.dtype) -> Tensor:
        """The logits' bias for the ego queries of one latent frame over all tokens: [B, 1, h·w_ego, N]."""
        _f, _h, _w_exo, w_ego = self.layout
        bias = log_weight(self.cosines(frame), self.lambda_g, self.formula)
        return torch.nn.functional.pad(bias, (0, w_ego)).flatten(2)[:, None].to(dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Ego queries [B, f, h·w_ego, 4] and, for each query frame, all tokens as keys [B, f, N, 4], float32. Their product is
        λ(1 + cos) ("paper") or 1 + 1e-6 + λ cos ("egox-released") for exo keys and 1 for ego keys; `knee` makes it the weight exp(bias).
        """
        away = self.exo_points[:, None].float() - self.centres[:, :, None, None, None].float()
        exo = self.lambda_g * normalize(away, dim=-1) * self.exo_valid[:, None, ..., None]
        resting = self.lambda_g if self.formula == "paper" else 1 + FLOOR
        exo = torch.nn.functional.pad(exo, (0, 1), value=resting)
        ego = exo.new_tensor((0, 0, 0, 1)).expand(*exo.shape[:4], self.ego_rays.shape[3], 4)
        queries = torch.nn.functional.pad(self.ego_rays.float() * self.ego_valid[..., None], (0, 1), value=1)
        return queries.flatten(2, 3), torch.cat((exo, ego), dim=4).flatten(2, 4)

    @property
    def knee(self) -> tuple[float, float, float]:
        """(low, slope, offset): the weight is max(x, slope·x + offset, low) of the factors' product x. Only the released formula with
        λ > 1 bends, where it leaves negative cosines unscaled."""
        if self.formula == "paper":
            return self.lambda_g * FLOOR, 1.0, 0.0
        slope = min(1.0, 1 / self.lambda_g)
        return FLOOR, slope, (1 + FLOOR) * (1 - slope)
