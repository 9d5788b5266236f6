"""MultiExoCon: the exo videos as tokens that the stock cross-attention reads in place of a text (Exo2EgoSyn).

"Latent tokens of the exo videos, in every block" is what the paper's summary gives; the rest is our reading:

    X = Patch(Z) + e_view + e_time,row,column         Patch: a copy of the transformer's own patch embedding
    T = c₀ + W LayerNorm(X)                           W starts at zero, c₀ at the transformer's own answer to an empty prompt

So that the start is the stock model with an empty prompt: many copies of one token act as one. To the cross-attention its tokens are a set;
without places and views among them a model could learn average colours only. A missing view is masked out: zero tokens are not neutral.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from egomill.models.positions import sinusoid


class ViewTokens(nn.Module):
    """For latents of `channels` and at most `views` views, beside this transformer. Takes its text embedder away: c₀ is what that says of
    nothing, and tokens of the transformer's width pass as they are."""

    def __init__(self, transformer: Any, channels: int, views: int) -> None:
        super().__init__()
        whole = transformer.patch_embedding
        self.patch = nn.Conv3d(channels, whole.out_channels, whole.kernel_size, whole.stride)
        width = whole.out_channels
        embedder = transformer.condition_embedder.text_embedder
        with torch.no_grad():
            self.patch.weight.copy_(whole.weight[:, :channels])
            self.patch.bias.copy_(whole.bias)  # type: ignore[union-attr]
            nothing = torch.zeros(1, 1, transformer.config.text_dim, dtype=whole.weight.dtype, device=whole.weight.device)
            self.null = nn.Parameter(embedder(nothing)[0, 0].float())
        self.view = nn.Parameter(0.02 * torch.randn(views, width))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)
        transformer.condition_embedder.text_embedder = nn.Identity()

    def forward(self, exo: Tensor, shown: Tensor) -> Tensor:
        """Normalised latents [B, V, C, f, h, w] → tokens [B, V·f·h'·w', D] in that order. Where `shown` [B] is false a sample's tokens are
        all c₀, which is what guidance turns away from."""
        b, v = exo.shape[:2]
        x = self.patch(exo.flatten(0, 1)).movedim(1, -1).unflatten(0, (b, v))
        x = x + sinusoid(x.shape[-1], *x.shape[2:5]).to(x) + self.view[:v, None, None, None]
        x = self.out(self.norm(x.flatten(1, 4)))
        return self.null + torch.where(shown[:, None, None], x, 0)


class TokenAttention(WanAttnProcessor):
    """Wan's cross-attention that leaves out the tokens of missing views (`State.known`), and keeps keys and values between the steps of a
    sampler (`State.kept`): the tokens are the same at every noise level."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None) -> Tensor:
        known, kept = self.state.known, self.state.kept
        if known is None and kept is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        if kept is None or id(attn) not in kept:
            key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1))
            value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1))
            if kept is not None:
                kept[id(attn)] = key, value
        else:
            key, value = kept[id(attn)]
        mask = None if known is None else known[:, None, None]
        out = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


class State:
    """Shared by all cross-attentions of one transformer, for the batch at hand and until its backward pass is done."""

    known: Tensor | None = None  # [B, N] bool: which tokens there are; None: all
    kept: dict[int, tuple[Tensor, Tensor]] | None = None  # keys and values by layer; None: made anew at every step


def install(transformer: Any) -> State:
    """Give every cross-attention of a stock transformer the processor; returns the state they share."""
    state = State()
    for block in transformer.blocks:
        block.attn2.set_processor(TokenAttention(state))
    return state
