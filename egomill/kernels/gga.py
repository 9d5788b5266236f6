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

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from egomill.kernels.gga_geometry import Geometry

PATHS = ("triton", "chunked", "dense")
HAS_TRITON = find_spec("triton") is not None
ROWS = 768  # the CPU kernel takes its largest blocks from this many queries on
IN_CACHE = 1 << 19  # weights that a processor makes at a time: what it has just written it still has at hand
KEEP = 128 << 20  # bytes of bias that may wait for the backward pass; more is made again there


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
        weight = queries.new_empty(*queries.shape[:3], keys.shape[2])
        cached = weight.device.type == "cpu" and type(weight) is Tensor  # no fake one, on which sizes are counted
        rows = IN_CACHE // weight.shape[3] + 1 if cached else weight.shape[2]
        for made, asked, looked_at in zip(*(t.flatten(0, 1) for t in (weight, queries, keys)), strict=True):  # frame by frame
            for out, some in zip(made.split(rows), asked.split(rows), strict=True):
                with torch.autocast(ego.device.type, enabled=False):  # directions are single precision in any model
                    torch.mm(some, looked_at.mT, out=out)
                if slope < 1:
                    torch.maximum(out, out * slope + offset, out=out)
                out.clamp_(min=low).log_()
        bias = weight.flatten(1, 2)[:, None].to(ego.dtype)
        return scaled_dot_product_attention(ego.flatten(2, 3), k, v, attn_mask=bias)

    again = torch.is_grad_enabled() and queries.shape[0] * f * h * w_ego * q.shape[2] * q.element_size() > KEEP
    parts = max(1, min(f, f * h * w_ego // ROWS))
    found = []
    for i in range(parts):
        some = slice(f * i // parts, f * (i + 1) // parts)
        inputs = ego[:, :, some], k, v, queries[:, some], keys[:, some]
        found.append(checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False) if again else part(*inputs))
    return torch.cat(found, dim=2)


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
