"""What every training worker does: the LoRA loop, data-parallel or sharded, from a release's latents to checkpoints.

Nothing in it depends on history: batches and noise are functions of the step (samples.py), the learning rate too. A checkpoint is the
adapter, the optimiser's moments and the step, as safetensors and JSON; that is all a resumed run needs to end where an uninterrupted one
would. A batch whose loss or gradient is not finite is skipped by all workers; a number of them in a row end the training, without the
restarts, which would do the same again. Metrics go to MLflow from rank 0 alone; `ray.train.report` is called with checkpoints only, as
each call waits for the controller.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from egomill.models import attention, batch, egox, lora, sharding
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import check_code, digest
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.media import stills
from egomill.tasks.networks import bases
from egomill.tasks.training import adapters, samples

log = logging.getLogger(__name__)
FLUSH = 20  # steps between writes to MLflow
DRAWS = 4  # fixed noises of each held-out clip
SKIPPED = 5  # batches in a row that may be skipped for what is not finite; one clip or one step's luck is fewer
REPORT = "step.json"
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
    held_out: list[str] = field(default_factory=list)  # that validation looks at
    code: dict[str, str] = field(default_factory=dict)  # of this module, as the driver has it


class Objective(nn.Module):
    """Transformer and loss as one module, so that data parallelism sees a forward pass."""

    def __init__(self, transformer: nn.Module, shift: float) -> None:
        super().__init__()
        self.transformer, self.shift = transformer, shift

    def forward(self, given: egox.Condition, ego: Tensor, generators: list[torch.Generator]) -> Tensor:
        return egox.training_loss(self.transformer, given, ego, generators, self.shift)


def loop(plan: Plan) -> str:
    """One worker from first (or last checkpointed) to last step. Runs inside a Ray Train worker group.

    Returns why the training was given up, "" where it was not: an exception would start the group again.
    """
    import ray.train
    from ray.train.torch import get_device, prepare_model

    check_code(__name__, plan.code)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings, model, device = plan.profile.train, plan.profile.model, get_device()
    assert isinstance(device, torch.device)
    torch.manual_seed(settings.seed)
    parts = bases.load(model, "transformer", "vae", device=str(device))
    lora.add(parts.transformer, settings.rank, settings.alpha, settings.targets, settings.seed)
    state = attention.install_gga(parts.transformer)
    if settings.gradient_checkpointing:
        parts.transformer.enable_gradient_checkpointing()
    checkpoint, first, skipped, in_a_row = ray.train.get_checkpoint(), 0, 0, 0
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        if folder:
            first, skipped, in_a_row = (read_report(Path(folder)).get(name, 0) for name in ("step", "skipped", "in_a_row"))
            lora.restore(parts.transformer, adapters.tensors(Path(folder) / "adapter"))
        if settings.sharding == "fsdp":
            sharding.shard(parts.transformer)
        objective = Objective(parts.transformer, settings.shift)
        if settings.sharding == "ddp":
            objective = prepare_model(objective)
        parameters = {name: p for name, p in parts.transformer.named_parameters() if p.requires_grad}
        optimiser = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        if folder:
            read_moments(Path(folder), optimiser, parameters)
    data = samples.Samples(plan.lake, plan.versions, plan.revision, plan.clips)
    held_out = samples.Samples(plan.lake, plan.versions, plan.revision, plan.held_out)
    book = Book(plan.tracker, plan.run_id, rank == 0)
    if first == 0 and rank == 0:
        shown = data.get(samples.batch_indices(len(data), min(4, len(data)), settings.seed, 0))
        if (image := picture(parts.vae, shown)) is not None:
            plan.tracker.image(plan.run_id, image, "samples/first-batch.png")

    def loss_of(module: nn.Module, found: list[dict[str, Tensor]], generators: list[torch.Generator]) -> Tensor:
        columns = samples.stack(found)
        state.geometry = batch.geometry(columns, model.gga, model.lambda_g, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return module(batch.condition(columns, model.mask, device), columns["ego"].to(device), generators)

    for step in range(first, settings.steps):
        started = time.monotonic()
        indices = samples.batch_indices(len(data), settings.batch * world * settings.accumulate, settings.seed, step)
        rate = settings.learning_rate * min(1.0, (step + 1) / max(settings.warmup, 1))
        for group in optimiser.param_groups:
            group["lr"] = rate
        objective.train()
        optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in range(settings.accumulate):
            places = samples.places(settings.batch, rank, world, part)
            found = data.get([indices[place] for place in places])
            with sharding.synchronised(objective, part + 1 == settings.accumulate):
                loss = loss_of(objective, found, [samples.noise_generator(settings.seed, step, place) for place in places]).mean()
                (loss / settings.accumulate).backward()
            total += loss.detach() / settings.accumulate
        norm = sharding.whole(nn.utils.clip_grad_norm_(parameters.values(), settings.clip_norm))
        mean = average(total, world)
        report: dict = {"step": step + 1}
        if math.isfinite(mean) and norm.isfinite():  # the same numbers for all workers: they decide alike
            optimiser.step()
            in_a_row, report["loss"] = 0, mean
            values = {"loss": mean, "grad_norm": norm.item(), "learning_rate": rate, "memory_gib": sharding.peak_memory(device)}
            book.add(step, {**values, "samples_per_second": len(indices) / (time.monotonic() - started)})
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            names = ", ".join(dict.fromkeys(plan.clips[index] for index in indices[:20]))
            why = f"step {step}: loss {mean:g}, gradient {norm.item():g}, of clips {names}"
            book.add(step, {"skipped": skipped})
            if rank == 0:
                log.warning("%s: not finite, so the batch is skipped, the %d. of this training", why, skipped)
            if in_a_row >= min(SKIPPED, settings.steps):
                book.flush()
                return f"{in_a_row} batches in a row had a loss or gradient that is not finite; the last is {why}"
        last = step + 1 == settings.steps
        if last or (step + 1) % settings.checkpoint_every == 0:
            report |= {"skipped": skipped, "in_a_row": in_a_row}
            if len(held_out):
                report["val_loss"] = validate(partial(loss_of, inner(objective).eval()), held_out, settings.seed, rank, world, device)
                book.add(step, {"val_loss": report["val_loss"]})
            book.flush(last)
            adapter, moments = lora.state(parts.transformer), whole_moments(optimiser, parameters)  # all workers: they gather
            with tempfile.TemporaryDirectory() as folder:
                saved = None
                if rank == 0:
                    description = adapters.about(plan.profile, plan.revision, step + 1, plan.release)
                    adapters.save(adapter, lora.config(parts.transformer), Path(folder) / "adapter", description)
                    save(Path(folder), moments, report)
                    saved = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(report, checkpoint=saved)
    state.geometry = None
    return ""


def inner(module: nn.Module) -> nn.Module:
    """The module itself: without gradients the data-parallel shell would only synchronise."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def average(value: Tensor, world: int) -> float:
    """Mean over the workers."""
    if world > 1:
        torch.distributed.all_reduce(value)
    return value.item() / world


@torch.no_grad()
def validate(loss_of, held_out: samples.Samples, seed: int, rank: int, world: int, device: torch.device) -> float:
    """Mean loss on held-out clips, each at noises of its own that never change; the workers share the clips.

    All take equally many turns, since a sharded model is gathered by all at once; a turn beyond the last clip counts nothing.
    """
    total = torch.zeros(2, device=device)
    for turn in range(0, len(held_out), world):
        index = turn + rank
        counts, index = index < len(held_out), min(index, len(held_out) - 1)
        name = int(digest(held_out.clips[index])[:8], 16)
        generators = [samples.noise_generator(seed, PROBE + draw, name) for draw in range(DRAWS)]
        losses = loss_of(held_out.get([index]) * DRAWS, generators)
        total += counts * torch.tensor([losses.sum().item(), DRAWS], device=device)
    if world > 1:
        torch.distributed.all_reduce(total)
    return (total[0] / total[1]).item()


def whole_moments(optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """AdamW's moments and step counts, whole and on the CPU, as `name|kind`."""
    return {f"{n}|{k}": sharding.whole(v).cpu().contiguous() for n, p in parameters.items() for k, v in optimiser.state[p].items()}


def save(folder: Path, moments: dict[str, Tensor], report: dict) -> None:
    """The optimiser's moments beside `folder/adapter`, and the step with what was measured at it last: where it lies, all is whole."""
    save_file(moments, folder / "optimiser.safetensors")
    (folder / REPORT).write_text(json.dumps(report))


def read_report(folder: Path) -> dict:
    """What `save` was told: {step to go on with, loss, val_loss, skipped batches, of those in a row}."""
    return json.loads((folder / REPORT).read_text())


def read_moments(folder: Path, optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    """Put the optimiser back to where it was; each worker takes its share."""
    for key, value in load_file(folder / "optimiser.safetensors").items():
        name, _, kind = key.rpartition("|")
        parameter = parameters[name]
        optimiser.state[parameter][kind] = value if kind == "step" else sharding.cut(value, parameter)


def picture(vae, found: list[dict[str, Tensor]]) -> np.ndarray | None:
    """The first batch as the codec shows it: exo, prior and true ego view, first, middle and last frame; without what is not finite."""
    rows = {}
    for i, sample in enumerate(found[:4]):
        for name in ("exo", "prior", "ego"):
            if (shown := batch.to_frames(vae, sample[name])) is not None:
                rows[f"{i} {name}"] = shown
    if not rows:
        return None
    frames = len(next(iter(rows.values())))
    return stills.contact_sheet(rows, [0, frames // 2, frames - 1])


class Book:
    """Metrics of rank 0, written in batches. Other ranks keep none."""

    def __init__(self, tracker: Tracker, run_id: str, writes: bool) -> None:
        self.tracker, self.run_id, self.writes = tracker, run_id, writes
        self.rows: list[tuple[int, dict[str, float]]] = []

    def add(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            self.rows.append((step, values))
            if len(self.rows) % FLUSH == 0:
                self.flush()

    def flush(self, last: bool = False) -> None:
        """Write what is there. Only the `last` time it is an error that the server was away for longer than MLflow waits for it."""
        try:
            if self.rows:
                self.tracker.metrics(self.run_id, self.rows)
            self.rows = []
        except Exception as error:
            if last:
                raise
            log.warning("no metrics could be written, training goes on, and they are written later: %s", error)
