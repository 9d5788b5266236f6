"""One model over several workers: copies that average their gradients (DDP), or its parameters cut up among them (FSDP2).

Both see the same batches and give the same numbers up to rounding. Sharding costs a gather of every block in both passes and divides the
memory of base, adapter, gradients and moments by the number of workers. `whole` and `cut` are the way to a checkpoint and back: files
hold whole tensors, whatever the workers held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(net: nn.Module) -> None:
    """Cut each part of a net up among the workers of the default process group, in place, a transformer block by block.

    Every block is gathered when it is needed. Make optimisers afterwards: the parameters are other objects now. Arithmetic keeps the
    parameters' own dtypes (autocast does the rest), so that sharded training computes what whole training does.
    """
    keep = MixedPrecisionPolicy()
    parts = [one for part in net.children() for one in (part if isinstance(part, nn.ModuleList) else (part,))]  # a list is never called
    for part in parts:
        for block in getattr(part, "blocks", ()):
            fully_shard(block, mp_policy=keep)
        fully_shard(part, mp_policy=keep)


@contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Workers exchange gradients in the backward passes inside only if `last`: the earlier ones of a step add up locally."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        with nullcontext() if last else module.no_sync():
            yield
        return
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(last, recurse=False)
    yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it would be on one worker. Every worker has to ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """This worker's share of a whole tensor, placed and cut as `like` is."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


def peak_memory(device: torch.device) -> float:
    """The most memory this process has held, in GiB: on the device, or of the process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
