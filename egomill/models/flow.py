"""Flow matching, as all methods on Wan have it: x_σ = (1 − σ) x + σ ε, and a net that predicts the velocity ε − x. No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

TIMESTEPS = 1000  # that a transformer is told, at σ = 1


def shifted(uniform: Tensor, shift: float) -> Tensor:
    """Noise levels from uniform numbers: σ = s u / (1 + (s − 1) u). Shift 1 leaves them, larger ones favour much noise."""
    return shift * uniform / (1 + (shift - 1) * uniform)


def set_steps(scheduler: Any, steps: int, device: str | torch.device = "cpu") -> None:
    """Have a scheduler make so many steps, from σ = 1 to 0.

    Euler left to itself spaces them from 1 to its least σ, so that its last step goes from next to nothing to nothing: n steps are n − 1.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), device=device)  # before the shift
    else:
        scheduler.set_timesteps(steps, device=device)


def make_scheduler(kind: str, shift: float) -> Any:
    """ "euler" or "unipc", with the shift stated: loading one scheduler from another's config drops it silently."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=shift)
    if kind == "unipc":
        return UniPCMultistepScheduler(
            num_train_timesteps=TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
            final_sigmas_type="zero",
        )
    raise ValueError(f"scheduler {kind!r}: euler or unipc")
