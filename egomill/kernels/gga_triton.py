"""Geometry-guided attention of the ego queries in one fused kernel, forward and backward (Triton).

Flash attention, with one thing added: a pair's weight is multiplied in after the exponential,

    p_mn = exp(s_mn - max s) · g_mn,    g = exp(bias), by `Geometry.knee` from a product of four-vectors (`Geometry.factors`)

so that there is no log, the maximum over the plain logits stays a valid bound, and the backward pass is that of flash attention with p
including g; g gets no gradient. The product runs on the matrix units too: each of the four single-precision numbers is written as the sum
of two half-precision ones, and the four cross products of the two halves make 16 channels, the depth of one matrix instruction. That is
exact to single precision for the λ that `fused_fits` lets in, whatever the precision of q, k and v.

The keys' directions differ by query frame: a table of 32 bytes a token for each, made at every call from points, centres and rays, and
not kept for the backward pass. A block of queries reads the table of its frame; one that lies across two frames reads both. Inputs in
single precision are multiplied as three TF32 products each, which keeps nearly all of their digits.

Block sizes are chosen by autotuning, at the first call for a number of tokens, among candidates that compile for compute capability 9.0.
Neither they nor the kernels have run or been timed on a GPU. On CPU the same code runs in Triton's interpreter
(TRITON_INTERPRET=1) in single and half precision; the interpreter cannot multiply bfloat16.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from egomill.kernels.gga_geometry import Geometry
from egomill.kernels.gga_programs import _backward_keys, _backward_queries, _forward


def fused(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, N, d] each, any strides -> ego rows [B, H, f·h·w_ego, d] in the order (f, h, w_ego), with the bias. Differentiable in q, k, v.

    Geometry of batch 1 serves every batch. An opaque operator: torch.compile calls it and does not look inside. Under autocast it takes the
    lower precision, as the stock attention does.
    """
    g = geometry
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
    return torch.ops.egomill.gga(q, k, v, g.exo_points, g.exo_valid, g.ego_rays, g.ego_valid, g.centres, g.lambda_g, g.formula)[0]


# Forward and backward as operators -----------------------------------------------------------------------------------------------------


@torch.library.custom_op("egomill::gga", mutates_args=())
def _gga(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    points: Tensor,
    exo_valid: Tensor,
    rays: Tensor,
    ego_valid: Tensor,
    centres: Tensor,
    lambda_g: float,
    formula: str,
) -> tuple[Tensor, Tensor]:
    """Ego rows and their log2 of the sum of weights [B, H, f·h·w_ego]."""
    geometry = Geometry(points, exo_valid, rays, ego_valid, centres, lambda_g, formula)
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    out, lse = _empty(q, rays)
    common, sizes = _common(q, geometry)

    def grid(meta):
        return triton.cdiv(out.shape[2], meta["BLOCK_M"]), q.shape[0] * q.shape[1]

    with _on(q):
        _forward[grid](q, k, v, *common, out, lse, *_strides(q, k, v, out), **sizes)
    return out, lse


@_gga.register_fake
def _(q, k, v, points, exo_valid, rays, ego_valid, centres, lambda_g, formula):
    return _empty(q, rays)


@torch.library.custom_op("egomill::gga_backward", mutates_args=())
def _gga_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    points: Tensor,
    exo_valid: Tensor,
    rays: Tensor,
    ego_valid: Tensor,
    centres: Tensor,
    lambda_g: float,
    formula: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (zero at exo tokens), k and v."""
    geometry = Geometry(points, exo_valid, rays, ego_valid, centres, lambda_g, formula)
    q, k, v, grad = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v, grad))
    dq, dk, dv = _like(q).zero_(), _like(k), _like(v)
    delta = torch.empty_like(lse)
    common, sizes = _common(q, geometry)
    pairs = q.shape[0] * q.shape[1]

    def by_query(meta):
        return triton.cdiv(out.shape[2], meta["BLOCK_M"]), pairs

    def by_key(meta):
        return triton.cdiv(q.shape[2], meta["BLOCK_N"]), pairs

    with _on(q):
        strides = _strides(q, k, v, out, grad)
        _backward_queries[by_query](q, k, v, *common, out, grad, lse, delta, dq, *strides, *_strides(dq), **sizes)
        strides = _strides(q, k, v, grad)
        _backward_keys[by_key](q, k, v, *common, grad, lse, delta, dk, dv, *strides, *_strides(dk, dv), **sizes)
    return dq, dk, dv


@_gga_backward.register_fake
def _(grad, out, lse, q, k, v, points, exo_valid, rays, ego_valid, centres, lambda_g, formula):
    return _like(q), _like(k), _like(v)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.lambda_g, ctx.formula = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad, _grad_lse):
    if grad is None:
        return (None,) * 10
    out, lse, *tensors = ctx.saved_tensors
    return *torch.ops.egomill.gga_backward(grad, out, lse, *tensors, ctx.lambda_g, ctx.formula), *(None,) * 7


_gga.register_autograd(_gradients, setup_context=_save)


# What the kernels are given ------------------------------------------------------------------------------------------------------------


def _common(q: Tensor, geometry: Geometry) -> tuple[tuple, dict]:
    """The sixteen-channel tables of queries [B, f, h·w_ego, 16] and keys [B, f, N, 16], and the sizes that all kernels are told."""
    f, h, w_exo, w_ego = geometry.layout
    (qh, ql), (kh, kl) = (_halves(t) for t in geometry.factors())
    tables = torch.cat((qh, qh, ql, ql), dim=-1), torch.cat((kh, kl, kh, kl), dim=-1)
    steps = tuple(0 if len(geometry.centres) == 1 else t.stride(0) for t in tables)
    low, slope, offset = geometry.knee
    sizes = {
        "low": low,
        "slope": slope,
        "offset": offset,
        "scale": q.shape[-1] ** -0.5,
        "heads": q.shape[1],
        "tokens": q.shape[2],
        "FRAMES": f,
        "PER": h * w_ego,
        "W_EXO": w_exo,
        "W_EGO": w_ego,
        "D": q.shape[-1],
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[-1])),
        "BENDS": slope < 1,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }
    return (*tables, *steps), sizes


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.half()
    return high, (x - high).half()


def _empty(q: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the ego rows, laid out as the transformer wants them next (tokens before heads), and for their log-sums."""
    rows = rays.shape[1] * rays.shape[2] * rays.shape[3]
    out = q.new_empty(q.shape[0], rows, q.shape[1], q.shape[3]).transpose(1, 2)
    return out, q.new_empty(q.shape[0], q.shape[1], rows, dtype=torch.float32)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _strides(*tensors: Tensor) -> list[int]:
    """(batch, head, token) of each."""
    return [t.stride(i) for t in tensors for i in range(3)]


def _on(x: Tensor):
    return torch.cuda.device_of(x)
