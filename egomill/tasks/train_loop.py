"""What every training worker does: the LoRA loop, data-parallel, from a release's latents to checkpoints.

Nothing in it depends on history: batches and noise are functions of the step (samples.py), the learning rate too. A checkpoint is the
adapter, the optimiser's moments and the step, as safetensors and JSON; that is all a resumed run needs to end where an uninterrupted one
would. Metrics go to MLflow from rank 0 alone; `ray.train.report` is called with checkpoints only, as each call waits for the controller.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from egomill.models import attention, batch, egox, lora
from egomill.schemas.config import Profile
from egomill.tasks import adapters, bases, samples, sheets
from egomill.tasks.lake import Lake
from egomill.tasks.tracking import Tracker

FLUSH = 20  # steps between writes to MLflow
VALIDATED, DRAWS = 8, 4  # held-out clips, and fixed noises of each
PROBE = 1 << 30  # the "step" of validation noise


@dataclass(frozen=True)
class Plan:
    """All that a worker is told. Plain values: it travels to other processes."""

    lake: Lake
    release: str
    versions: dict[str, int]
    profile: Profile
    revision: str
    tracker: Tracker
    run_id: str  # in MLflow
    clips: list[str]
    held_out: list[str] = field(default_factory=list)


class Objective(nn.Module):
    """Transformer and loss as one module, so that data parallelism sees a forward pass."""

    def __init__(self, transformer: nn.Module, shift: float) -> None:
        super().__init__()
        self.transformer, self.shift = transformer, shift

    def forward(self, given: egox.Condition, ego: Tensor, generators: list[torch.Generator]) -> Tensor:
        return egox.training_loss(self.transformer, given, ego, generators, self.shift)


def loop(plan: Plan) -> None:
    """One worker from first (or last checkpointed) to last step. Runs inside a Ray Train worker group."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings, model, device = plan.profile.train, plan.profile.model, str(get_device())
    torch.manual_seed(settings.seed)
    parts = bases.load(model, "transformer", "vae", device=device)
    parameters = lora.add(parts.transformer, settings.rank, settings.alpha, settings.targets, settings.seed)
    state = attention.install_gga(parts.transformer)
    if settings.gradient_checkpointing:
        parts.transformer.enable_gradient_checkpointing()
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    first = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            first = resume(Path(folder), parts.transformer, optimiser, parameters)
    objective = prepare_model(Objective(parts.transformer, settings.shift))
    data = samples.Samples(plan.lake, plan.versions, plan.revision, plan.clips)
    held_out = samples.Samples(plan.lake, plan.versions, plan.revision, plan.held_out[:VALIDATED])
    book = Book(plan.tracker, plan.run_id, rank == 0)

    def loss_of(module: nn.Module, found: list[dict[str, Tensor]], generators: list[torch.Generator]) -> Tensor:
        columns = samples.stack(found)
        state.geometry = batch.geometry(columns, model.gga, model.lambda_g, device)
        return module(batch.condition(columns, model.mask, device), columns["ego"].to(device), generators)

    for step in range(first, settings.steps):
        started = time.monotonic()
        everyone = list(enumerate(samples.batch_indices(len(data), settings.batch * world, settings.seed, step)))
        mine = everyone[rank * settings.batch : (rank + 1) * settings.batch]
        found = data.get([index for _, index in mine])
        if step == 0 and rank == 0:
            plan.tracker.image(plan.run_id, picture(parts.vae, found), "samples/first-batch.png")
        rate = settings.learning_rate * min(1.0, (step + 1) / max(settings.warmup, 1))
        for group in optimiser.param_groups:
            group["lr"] = rate
        objective.train()
        loss = loss_of(objective, found, [samples.noise_generator(settings.seed, step, place) for place, _ in mine]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), settings.clip_norm)
        optimiser.step()
        if not torch.isfinite(norm):
            raise ArithmeticError(f"step {step}: gradient is not finite (loss {loss.item()})")
        mean = average(loss.detach(), world)
        took = time.monotonic() - started
        book.add(step, {"loss": mean, "grad_norm": norm.item(), "learning_rate": rate, "samples_per_second": len(everyone) / took})
        last = step + 1 == settings.steps
        if last or (step + 1) % settings.checkpoint_every == 0:
            report = {"step": step + 1, "loss": mean}
            if len(held_out):
                report["val_loss"] = validate(partial(loss_of, inner(objective).eval()), held_out, settings.seed, rank, world, device)
                book.add(step, {"val_loss": report["val_loss"]})
            book.flush()
            with tempfile.TemporaryDirectory() as folder:
                saved = None
                if rank == 0:
                    description = adapters.about(plan.profile, plan.revision, step + 1, plan.release)
                    save(Path(folder), parts.transformer, optimiser, parameters, step + 1, description)
                    saved = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(report, checkpoint=saved)
    state.geometry = None


def inner(module: nn.Module) -> nn.Module:
    """The module itself: without gradients the data-parallel shell would only synchronise."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def average(value: Tensor, world: int) -> float:
    """Mean over the workers."""
    if world > 1:
        torch.distributed.all_reduce(value)
    return value.item() / world


@torch.no_grad()
def validate(loss_of, held_out: samples.Samples, seed: int, rank: int, world: int, device: str) -> float:
    """Mean loss on held-out clips at noises that never change; the workers share the clips."""
    total = torch.zeros(2, device=device)
    for index in range(rank, len(held_out), world):
        generators = [samples.noise_generator(seed, PROBE + draw, index) for draw in range(DRAWS)]
        losses = loss_of(held_out.get([index]) * DRAWS, generators)
        total += torch.tensor([losses.sum().item(), DRAWS], device=device)
    if world > 1:
        torch.distributed.all_reduce(total)
    return (total[0] / total[1]).item()


def save(folder: Path, transformer: nn.Module, optimiser: torch.optim.Optimizer, parameters: dict, step: int, description: dict) -> None:
    """The adapter in `folder/adapter`, the optimiser's moments beside it, and the step last."""
    adapters.save(transformer, folder / "adapter", description)
    moments = {f"{name}|{k}": v.cpu().contiguous() for name, p in parameters.items() for k, v in optimiser.state[p].items()}
    save_file(moments, folder / "optimiser.safetensors")
    (folder / "step.json").write_text(json.dumps({"step": step}))


def resume(folder: Path, transformer: nn.Module, optimiser: torch.optim.Optimizer, parameters: dict) -> int:
    """Put a checkpoint back; returns the step to go on with."""
    lora.restore(transformer, adapters.tensors(folder / "adapter"))
    moments: dict[str, dict] = {name: {} for name in parameters}
    for key, value in load_file(folder / "optimiser.safetensors").items():
        name, _, kind = key.rpartition("|")
        moments[name][kind] = value if kind == "step" else value.to(parameters[name].device)
    for name, parameter in parameters.items():
        optimiser.state[parameter] = moments[name]
    return json.loads((folder / "step.json").read_text())["step"]


def picture(vae, found: list[dict[str, Tensor]]) -> np.ndarray:
    """The first batch as the codec shows it: exo, prior and true ego view, first, middle and last frame."""
    rows = {}
    for i, sample in enumerate(found[:4]):
        for name in ("exo", "prior", "ego"):
            rows[f"{i} {name}"] = batch.to_frames(vae, sample[name])
    frames = len(next(iter(rows.values())))
    return sheets.contact_sheet(rows, [0, frames // 2, frames - 1])


class Book:
    """Metrics of rank 0, written in batches. Other ranks keep none."""

    def __init__(self, tracker: Tracker, run_id: str, writes: bool) -> None:
        self.tracker, self.run_id, self.writes = tracker, run_id, writes
        self.rows: list[tuple[int, dict[str, float]]] = []

    def add(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            self.rows.append((step, values))
            if len(self.rows) >= FLUSH:
                self.flush()

    def flush(self) -> None:
        if self.rows:
            self.tracker.metrics(self.run_id, self.rows)
            self.rows = []
