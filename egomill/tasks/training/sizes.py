"""What a profile will cost, before anybody pays: tokens, parameters, memory and arithmetic of a training step, hours, storage.

Nothing is estimated that can be counted. One training step of the very model, with the adapter, the attention and the checkpointing that
the profile asks for, runs on *fake* tensors: they have shapes and types and no memory, so that 14 B parameters fit into a laptop. While
it runs, the live bytes are summed up (their peak is what a GPU must hold) and PyTorch's own counter counts the floating-point operations.
Hours follow from those and from a rate that was measured somewhere; it is an argument, since no formula knows it. What is not in the
count: the allocator's fragmentation, a kernel's workspace, a library's own buffers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from egomill.models import lora
from egomill.models.layout import Layout
from egomill.models.method import Phase, of
from egomill.schemas.config import Profile
from egomill.tasks.networks import configs

GIB = 2**30


def _attention_flop(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Two products of [B, H, n, d] with [B, H, m, d]."""
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


def _attention_backward_flop(_grad: Any, q: Any, k: Any, *rest: Any, **__: Any) -> int:
    """Five products: the scores again, and four gradients."""
    return 10 * q[0] * q[1] * q[2] * k[2] * q[3]


ON_CPU = {  # PyTorch's counter knows the GPU's attention kernels only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


class Live(TorchDispatchMode):
    """Bytes of all tensors that are made while it is entered and still alive, and their peak. `before`: what was there already."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def transformer_config(profile: Profile) -> dict:
    """The configuration of the transformer, or U-Net, of a profile's base. ValueError for a hub id whose sizes are not known here."""
    base = profile.model.base
    if config := configs.part_config(base, "transformer") or configs.part_config(base, "unet"):
        return config
    raise ValueError(f"{base}: no folder with transformer/config.json, and its sizes are not known without a download")


def layout(profile: Profile) -> Layout:
    """How a profile's base cuts a video up. ValueError as for `transformer_config`."""
    return Layout.of(configs.part_config(profile.model.base, "vae"), transformer_config(profile))


def tokens(profile: Profile) -> dict[str, int]:
    """Tokens of one clip: {frames, ..., all}, from the recipe's sizes and the base's. ValueError where they do not go together."""
    method, cut = of(profile), layout(profile)
    if method.tokens is None:
        raise ValueError(f"method {method.name} does not say how many tokens a clip has")
    method.check(profile, cut)
    return method.tokens(profile, cut)


def step(profile: Profile, phase: Phase | None = None) -> dict[str, float]:
    """One worker's pass over a batch, forward and backward, in a phase of the training (None: the last one, which holds most).

    {parameters, trained, base_gib, adapter_gib (weights, gradients and two moments), activations_gib (peak beyond all those), tflop}.
    A transformer is the same block many times: two short ones are run, and the rest follows exactly, being linear in the depth. A U-Net is
    run as it is.
    """
    layers, phase = transformer_config(profile).get("num_layers"), phase or of(profile).phases[-1]
    if layers is None:
        return _counted(profile, None, phase)
    two, three = _counted(profile, 2, phase), _counted(profile, 3, phase)
    return {name: two[name] + (layers - 2) * (three[name] - two[name]) for name in two}


def _counted(profile: Profile, layers: int | None, phase: Phase) -> dict[str, float]:
    from diffusers import UNet2DConditionModel, WanTransformer3DModel

    settings, model = profile.train, profile.model
    kept = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, model.dtype))
    try:
        with torch.device("meta"):
            config = transformer_config(profile)
            whole = UNet2DConditionModel(**config) if layers is None else WanTransformer3DModel(**{**config, "num_layers": layers})
            transformer: Any = whole
    finally:
        torch.set_default_dtype(kept)
    if settings.targets:
        with torch.device("meta"):
            lora.add(transformer, settings.rank, settings.alpha, settings.targets)
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialise(transformer)
        method, generators = of(profile), [torch.Generator() for _ in range(settings.batch)]
        net = method.build(SimpleNamespace(transformer=transformer, text_encoder=None, layout=layout(profile)), profile)
        batch = method.blank(profile, layout(profile), transformer.config)  # type: ignore[misc]
        net.phase = phase.name  # type: ignore[assignment]
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name.startswith(phase.trains))

        def work() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
                loss = net(batch, generators)
            loss.mean().backward()
            net.zero_grad()

        with Live([*net.parameters(), *net.buffers()]) as live:
            work()
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            work()
    trained = [p for p in net.parameters() if p.requires_grad]
    frozen = [p for p in net.parameters() if not p.requires_grad]
    adapter = sum(p.numel() * p.element_size() for p in trained)
    return {
        "parameters": sum(p.numel() for p in frozen),
        "trained": sum(p.numel() for p in trained),
        "base_gib": sum(p.numel() * p.element_size() for p in frozen) / GIB,
        "adapter_gib": 4 * adapter / GIB,
        "activations_gib": (live.peak - adapter) / GIB,  # the gradients are in the peak, and counted above
        "tflop": counter.get_total_flops() / 1e12,
    }


def estimate(profile: Profile, tflop_per_second: float = 0.0) -> dict:
    """All of it for a profile: {tokens, step, memory_gib (per worker), tflop (per worker, of the whole training), hours, stored_gib}; hours
    are None without a rate.

    `tflop_per_second`: what one worker is known to reach on such a step (`egomill plan --rate`).
    """
    counted, settings, recipe = step(profile), profile.train, profile.clips
    shared = counted["base_gib"] + counted["adapter_gib"]
    if settings.sharding == "fsdp":
        shared /= settings.workers
    phases = [(phase, len(steps)) for phase, steps in of(profile).steps(settings.steps)]
    of_phase = [counted["tflop"], *(step(profile, phase)["tflop"] for phase, _ in reversed(phases[:-1]))]
    tflop = settings.accumulate * sum(one * steps for one, (_, steps) in zip(reversed(of_phase), phases, strict=True))
    passes = settings.steps * settings.accumulate
    found = tokens(profile)
    clips = recipe.train + recipe.test + recipe.unseen
    config = SimpleNamespace(**{"image_dim": None, **transformer_config(profile)})
    stored = sum(2 * t.numel() for t in _tensors(of(profile).blank(profile, layout(profile), config))) // settings.batch  # type: ignore[misc]
    return {
        "profile": profile.name,
        "tokens": found,
        "step": counted,
        "memory_gib": shared + counted["activations_gib"],
        "workers": settings.workers,
        "samples": settings.batch * settings.workers * passes,
        "tflop": tflop,
        "hours": tflop / tflop_per_second / 3600 if tflop_per_second else None,
        "clips": clips or None,
        "stored_gib": clips * stored / GIB if clips else None,
    }


def _tensors(batch: Any) -> list[torch.Tensor]:
    """Of a batch and the dataclasses in it."""
    parts = [getattr(batch, field.name) for field in fields(batch)]
    nested = [_tensors(part) if is_dataclass(part) else [part] for part in parts]
    return [part for some in nested for part in some if isinstance(part, torch.Tensor)]


def _materialise(module: nn.Module) -> None:
    """Meta parameters become fake ones, which operators treat like real ones."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
