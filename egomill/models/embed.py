"""Text and image embeddings the way the base expects them: one function each, for training and inference alike.

Trainers have been seen to encode text without the attention mask, or to keep the embeddings of padding, where inference does otherwise;
the adapter then meets at night what it never saw. So: masked, and zero behind the last token, always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def embed_text(tokenizer: Any, encoder: Any, texts: Sequence[str], tokens: int) -> Tensor:
    """Embeddings [B, tokens, c] float32; longer texts are cut, shorter ones padded with zeros."""
    cleaned = [" ".join(text.split()) for text in texts]
    padding = {"padding": "max_length", "max_length": tokens, "truncation": True}
    ids = tokenizer(cleaned, **padding, return_attention_mask=True, return_tensors="pt")
    mask = ids.attention_mask.to(encoder.device)
    hidden = encoder(ids.input_ids.to(encoder.device), mask).last_hidden_state.float()
    return hidden * mask[..., None]


@torch.no_grad()
def embed_image(processor: Any, encoder: Any, frame: np.ndarray) -> Tensor:
    """The second-last hidden state [257, c] float32 of a picture uint8 [H, W, 3] (the exo view: the true ego view is not to be seen)."""
    pixels = processor(images=[frame], return_tensors="pt")["pixel_values"].to(encoder.device, encoder.dtype)
    return encoder(pixels, output_hidden_states=True).hidden_states[-2][0].float()
