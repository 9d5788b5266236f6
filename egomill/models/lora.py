"""LoRA on a stock transformer through peft, in the form that `load_lora_weights` takes. No I/O.

The alpha travels with the weights: a file without it loads with alpha = rank, which is right only by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from egomill.models.sharding import whole


def add(transformer: Any, rank: int, alpha: int, targets: Sequence[str], seed: int = 0) -> dict[str, nn.Parameter]:
    """Add an adapter that changes nothing yet and alone is trained; returns its parameters by name, in float32 whatever the base's dtype.

    The start depends on the seed only, not on what was drawn before.
    """
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.requires_grad_(False)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=True))
    found = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def state(transformer: Any) -> dict[str, Any]:
    """The adapter's tensors as diffusers names them: `blocks.0.attn1.to_q.lora_A.weight`, ... whole and on the CPU.

    Of a sharded transformer, every worker has to ask at once.
    """
    from peft import get_peft_model_state_dict

    return {k: whole(v.detach()).cpu().contiguous() for k, v in get_peft_model_state_dict(transformer).items()}


def restore(transformer: Any, tensors: dict[str, Tensor]) -> None:
    """Put saved tensors into an adapter that `add` has made. ValueError where they do not fit."""
    from peft import set_peft_model_state_dict

    if set(tensors) != set(state(transformer)):
        raise ValueError("the saved adapter has other layers than this one")
    set_peft_model_state_dict(transformer, tensors)


def config(transformer: Any) -> dict:
    """peft's own description (rank, alpha, targets), JSON-ready."""
    described = transformer.peft_config["default"].to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in described.items()}
