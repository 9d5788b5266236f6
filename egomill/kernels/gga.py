"""Geometry-guided attention (EgoX 3.3): ego queries favour exo keys that lie in the direction they look in.

    s'_mn = s_mn + log((1 + cos(q_m, k_n)) λ)        eq. 4-5, for ego queries m and exo keys n; every other pair is untouched

Directions are unit vectors from the ego centre of the *query's* latent frame, so exo keys have other directions for every query frame.
Before the log the bias is a product of four-vectors (`Geometry.factors`), so it is never stored. Three paths agree:

    triton     one fused kernel, forward and backward (kernels/gga_triton.py): what a GPU takes
    chunked    stock attention over some query frames at a time, their bias made on the fly: exact, differentiable, any device
    dense      one attention with the whole N×N bias: the reference that the other two are tested against

`attend` is where the path is chosen. Tokens lie in the order (f, h, w) with the exo columns left of the ego columns; tensors are
[batch, heads, tokens, channels]. FlexAttention is left out: on CPU it cannot run backward, and on a GPU the fused kernel does its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

FLOOR = 1e-6
PATHS = ("triton", "chunked", "dense")
HAS_TRITON = find_spec("triton") is not None
ROWS = 768  # the CPU kernel takes its largest blocks from this many queries on
KEEP = 128 << 20  # bytes of bias that may wait for the backward pass; more is made again there


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
    """The same for the ego queries only, some latent frames at a time: [B, H, N, d] -> [B, H, f·h·w_ego, d] in the order (f, h, w_ego).
    Holds one tile of a frame, or of about `ROWS` queries, over all tokens; the backward pass makes the tiles anew where they are many.
    """
    f, h, w_exo, w_ego = geometry.layout
    ego = q.unflatten(2, (f, h, w_exo + w_ego))[:, :, :, :, w_exo:].flatten(3, 4)
    queries, keys = geometry.factors()
    low, slope, offset = geometry.knee

    def part(ego: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        with torch.autocast(ego.device.type, enabled=False):  # directions are single precision in any model
            weight = queries @ keys.mT
        if slope < 1:
            weight = torch.maximum(weight, weight * slope + offset)
        bias = weight.clamp_(min=low).log_().flatten(1, 2)[:, None].to(ego.dtype)
        return scaled_dot_product_attention(ego.flatten(2, 3), k, v, attn_mask=bias)

    again = torch.is_grad_enabled() and queries.shape[0] * f * h * w_ego * q.shape[2] * q.element_size() > KEEP
    parts = max(1, min(f, f * h * w_ego // ROWS))
    rows = []
    for i in range(parts):
        some = slice(f * i // parts, f * (i + 1) // parts)
        inputs = ego[:, :, some], k, v, queries[:, some], keys[:, some]
        rows.append(checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False) if again else part(*inputs))
    return torch.cat(rows, dim=2)


def attend(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, path: str | None = None) -> Tensor:
    """Attention of the ego queries over all keys, with the bias: [B, H, N, d] -> [B, H, f·h·w_ego, d]. Without a `path` the fused kernel
    where it can run (`fused_fits`), else chunked; a path asked for by name is taken or refused."""
    path = path or ("triton" if q.is_cuda and fused_fits(q, geometry) else "chunked")
    if path == "triton":
        if not fused_fits(q, geometry):
            raise ValueError(f"the fused kernel cannot take {q.dtype} with {q.shape[-1]} channels a head and lambda {geometry.lambda_g}")
        from egomill.kernels.gga_triton import fused

        return fused(q, k, v, geometry)
    if path == "chunked":
        return chunked(q, k, v, geometry)
    if path == "dense":
        f, h, w_exo, w_ego = geometry.layout
        return dense(q, k, v, geometry).unflatten(2, (f, h, w_exo + w_ego))[:, :, :, :, w_exo:].flatten(2, 4)
    raise ValueError(f"path {path!r}: one of {', '.join(PATHS)}")


def fused_fits(q: Tensor, geometry: Geometry) -> bool:
    """Whether the fused kernel can take these queries: Triton installed, at most 128 channels a head, at most single precision, a λ that
    two half-precision numbers hold (kernels/gga_triton.py), and places within a head that 31 bits count."""
    small = q.shape[-1] <= 128 and q.shape[2] * q.stride(2) < 2**31
    return HAS_TRITON and small and q.dtype != torch.float64 and 0.01 <= geometry.lambda_g <= 1000
