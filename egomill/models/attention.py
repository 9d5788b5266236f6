"""Geometry-guided attention inside the *stock* Wan transformer: a processor for its self-attention, and no fork.

The transformer never hands keyword arguments to its processors, so all of them share one `GGAState`, set before a forward pass (and kept
until the backward pass is done: gradient checkpointing runs the forward again). With the state empty the stock processor itself runs, bit
for bit. With it set, exo queries still take the stock attention kernel; only ego queries see the bias (kernels/gga.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformer3DModel
from torch import Tensor

from egomill.kernels import gga


@dataclass
class GGAState:
    """Shared by all self-attention layers of one transformer: the geometry of the batch at hand, or None for plain attention; and the path
    of `gga.attend` to take, or None for the fastest that runs here."""

    geometry: gga.Geometry | None = None
    path: str | None = None


class GGAProcessor(WanAttnProcessor):
    """Wan self-attention with biased ego queries. Refuses context parallelism: its shards would cut the (f, h, w) order apart."""

    def __init__(self, state: GGAState) -> None:
        super().__init__()
        self.state = state

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None) -> Tensor:
        geometry = self.state.geometry
        if geometry is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if self._parallel_config is not None:
            raise NotImplementedError("geometry-guided attention does not run under context parallelism")
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("geometry-guided attention is for self-attention without a mask")
        f, h, w_exo, w_ego = geometry.layout
        batch, tokens, _ = hidden_states.shape
        if tokens != f * h * (w_exo + w_ego) or geometry.exo_points.shape[0] not in (1, batch):
            raise ValueError(f"{batch} x {tokens} tokens for geometry of {geometry.exo_points.shape[0]} x {f}x{h}x({w_exo}+{w_ego})")

        projected = attn.to_qkv(hidden_states).chunk(3, dim=-1) if attn.fused_projections else None
        q, k, v = projected or (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        q, k = attn.norm_q(q).unflatten(2, (attn.heads, -1)), attn.norm_k(k).unflatten(2, (attn.heads, -1))
        v = v.unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            q, k = _rotate(q, *rotary_emb), _rotate(k, *rotary_emb)

        grid = q.unflatten(1, (f, h, w_exo + w_ego))
        exo_queries = grid[:, :, :, :w_exo].flatten(1, 3)
        exo = dispatch_attention_fn(exo_queries, k, v, backend=self._attention_backend)
        ego = gga.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), geometry, self.state.path).transpose(1, 2)
        exo, ego = exo.unflatten(1, (f, h, w_exo)), ego.unflatten(1, (f, h, w_ego))
        mixed = torch.cat((exo, ego), dim=3).flatten(1, 3).flatten(2, 3).type_as(q)
        return attn.to_out[1](attn.to_out[0](mixed))


def install_gga(transformer: WanTransformer3DModel) -> GGAState:
    """Give every self-attention of a stock transformer the processor; returns the state they share. Before or after adding LoRA."""
    state = GGAState()
    for block in transformer.blocks:
        block.attn1.set_processor(GGAProcessor(state))  # type: ignore[union-attr, operator]
    return state


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding the way the stock processor applies it: pairs of neighbouring channels."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)
