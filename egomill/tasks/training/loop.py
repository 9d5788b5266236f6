"""What every training worker does: a method's loop, data-parallel or sharded, from a release's tensors to checkpoints.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from egomill.models import lora, sharding
from egomill.models.latents import to_frames
from egomill.models.method import Method, Phase, of
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
    code: dict[str, str] = field(default_factory=dict)  # of this module and the method's, as the driver has it


@dataclass
class Work:
    """What a worker holds between two steps."""

    plan: Plan
    method: Method
    rank: int
    world: int
    device: torch.device
    parts: Any  # of the base
    net: Any  # the method's
    data: samples.Samples
    held_out: samples.Samples
    book: Book
    done: int = 0  # steps
    skipped: int = 0  # batches
    in_a_row: int = 0  # of them, last
    learning: dict[str, nn.Parameter] = field(default_factory=dict)  # what is trained in some phase
    phase: Phase | None = None  # the present one, and of it:
    objective: nn.Module = field(default_factory=nn.Module)  # the net, or its data-parallel shell
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    optimiser: Any = None


def loop(plan: Plan) -> str:
    """One worker from first (or last checkpointed) to last step. Runs inside a Ray Train worker group.

    Returns why the training was given up, "" where it was not: an exception would start the group again.
    """
    import ray.train

    settings = plan.profile.train
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        work = begin(plan, Path(folder) if folder else None)
    for phase, steps in work.method.steps(settings.steps):
        if work.done < steps.stop and phase is not work.phase:
            enter(work, phase)
        for number in range(max(work.done, steps.start), steps.stop):
            report, why = step(work, number)
            work.done = number + 1
            if work.in_a_row >= min(SKIPPED, settings.steps):
                work.book.flush()
                return f"{work.in_a_row} batches in a row had a loss or gradient that is not finite; the last is {why}"
            if work.done == settings.steps or work.done % settings.checkpoint_every == 0:
                keep(work, report)
    return ""


def begin(plan: Plan, folder: Path | None) -> Work:
    """The worker's net and data as they start, or as the checkpoint in `folder` left them."""
    import ray.train
    from ray.train.torch import get_device

    settings, model, device, method = plan.profile.train, plan.profile.model, get_device(), of(plan.profile)
    check_code(plan.code)
    assert isinstance(device, torch.device)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(settings.seed)
    parts = bases.load(model, *method.parts, "vae", device=str(device))
    net: Any = method.build(parts, plan.profile).to(device)
    if settings.targets:
        lora.add(net.transformer, settings.rank, settings.alpha, settings.targets, settings.seed)
        if settings.gradient_checkpointing:
            net.transformer.enable_gradient_checkpointing()
    reads = (plan.lake, plan.versions, plan.revision, method.learnt(plan.profile))
    data, held_out = (samples.Samples(*reads, clips) for clips in (plan.clips, plan.held_out))
    work = Work(plan, method, rank, world, device, parts, net, data, held_out, Book(plan.tracker, plan.run_id, rank == 0))
    if folder:
        work.done, work.skipped, work.in_a_row = (read_report(folder).get(name, 0) for name in ("step", "skipped", "in_a_row"))
        adapters.restore(net, folder / "adapter")
    if settings.sharding == "fsdp":
        sharding.shard(net)
    work.learning = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    for phase, steps in method.steps(settings.steps):
        if work.done in steps:
            enter(work, phase)
            if folder and work.done > steps.start:
                read_moments(folder, work.optimiser, work.parameters)
    if work.done == 0 and rank == 0:
        shown = data.get(samples.batch_indices(len(data), min(4, len(data)), settings.seed, 0))
        if (image := picture(parts.vae, method.shown, shown)) is not None:
            plan.tracker.image(plan.run_id, image, "samples/first-batch.png")
    return work


def enter(work: Work, phase: Phase) -> None:
    """Begin a phase: what it trains alone learns, by an optimiser of its own."""
    from ray.train.torch import prepare_model

    settings = work.plan.profile.train
    work.parameters = {name: p for name, p in work.learning.items() if name.startswith(phase.trains)}
    if not work.parameters:
        raise ValueError(f"phase {phase.name} of {work.method.name} trains nothing: no parameter begins with {', '.join(phase.trains)}")
    for name, parameter in work.learning.items():
        parameter.requires_grad_(name in work.parameters)
    work.net.phase = phase.name
    work.phase, work.objective = phase, work.net if settings.sharding == "fsdp" else prepare_model(work.net)
    work.optimiser = torch.optim.AdamW(work.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def loss_of(work: Work, module: nn.Module, found: list[dict[str, Tensor]], generators: list[torch.Generator]) -> Tensor:
    """Loss of every sample [B]."""
    batch = work.method.batch(samples.stack(found), work.plan.profile, work.device)
    with torch.autocast(work.device.type, torch.bfloat16, enabled=work.plan.profile.train.precision == "bfloat16"):
        return module(batch, generators)


def step(work: Work, number: int) -> tuple[dict, str]:
    """One step of the optimiser, or of the skipped batches. Returns what a checkpoint says of it, and of what is not finite in words."""
    settings, started = work.plan.profile.train, time.monotonic()
    indices = samples.batch_indices(len(work.data), settings.batch * work.world * settings.accumulate, settings.seed, number)
    rate = settings.learning_rate * min(1.0, (number + 1) / max(settings.warmup, 1))
    for group in work.optimiser.param_groups:
        group["lr"] = rate
    work.objective.train()
    work.optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=work.device)
    for part in range(settings.accumulate):
        places = samples.places(settings.batch, work.rank, work.world, part)
        found = work.data.get([indices[place] for place in places])
        with sharding.synchronised(work.objective, part + 1 == settings.accumulate):
            generators = [samples.noise_generator(settings.seed, number, place) for place in places]
            loss = loss_of(work, work.objective, found, generators).mean()
            (loss / settings.accumulate).backward()
        total += loss.detach() / settings.accumulate
    norm = sharding.whole(nn.utils.clip_grad_norm_(work.parameters.values(), settings.clip_norm))
    mean = average(total, work.world)
    if math.isfinite(mean) and norm.isfinite():  # the same numbers for all workers: they decide alike
        work.optimiser.step()
        work.in_a_row = 0
        values = {"loss": mean, "grad_norm": norm.item(), "learning_rate": rate, "memory_gib": sharding.peak_memory(work.device)}
        work.book.add(number, {**values, "samples_per_second": len(indices) / (time.monotonic() - started)})
        return {"step": number + 1, "loss": mean}, ""
    work.skipped, work.in_a_row = work.skipped + 1, work.in_a_row + 1
    names = ", ".join(dict.fromkeys(work.plan.clips[index] for index in indices[:20]))
    why = f"step {number}: loss {mean:g}, gradient {norm.item():g}, of clips {names}"
    work.book.add(number, {"skipped": work.skipped})
    if work.rank == 0:
        log.warning("%s: not finite, so the batch is skipped, the %d. of this training", why, work.skipped)
    return {"step": number + 1}, why


def keep(work: Work, report: dict) -> None:
    """Validate and write a checkpoint; rank 0 hands it to Ray Train."""
    import ray.train

    plan = work.plan
    report = {**report, "skipped": work.skipped, "in_a_row": work.in_a_row}
    if len(work.held_out):
        report["val_loss"] = measured = validate(work)
        phases = len(work.method.phases) > 1  # each has a loss of its own
        own = {f"val_loss.{work.phase.name}": measured} if work.phase and phases else {}
        work.book.add(work.done - 1, {"val_loss": measured, **own})
    work.book.flush(work.done == plan.profile.train.steps)
    parts, moments = adapters.state(work.net), whole_moments(work.optimiser, work.parameters)  # all workers: they gather
    with tempfile.TemporaryDirectory() as folder:
        saved = None
        if work.rank == 0:
            adapters.save(*parts, Path(folder) / "adapter", adapters.about(plan.profile, plan.revision, work.done, plan.release))
            save(Path(folder), moments, report)
            saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(report, checkpoint=saved)


def average(value: Tensor, world: int) -> float:
    """Mean over the workers."""
    if world > 1:
        torch.distributed.all_reduce(value)
    return value.item() / world


@torch.no_grad()
def validate(work: Work) -> float:
    """Mean loss on held-out clips, each at noises of its own that never change; the workers share the clips.

    All take equally many turns, since a sharded model is gathered by all at once; a turn beyond the last clip counts nothing.
    """
    held_out, world = work.held_out, work.world
    net = work.net.eval()  # without gradients the data-parallel shell would only synchronise
    total = torch.zeros(2, device=work.device)
    for turn in range(0, len(held_out), world):
        index = turn + work.rank
        counts, index = index < len(held_out), min(index, len(held_out) - 1)
        name = int(digest(held_out.clips[index])[:8], 16)
        generators = [samples.noise_generator(work.plan.profile.train.seed, PROBE + draw, name) for draw in range(DRAWS)]
        losses = loss_of(work, net, held_out.get([index]) * DRAWS, generators)
        total += counts * torch.tensor([losses.sum().item(), DRAWS], device=work.device)
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


def picture(vae: Any, names: tuple[str, ...], found: list[dict[str, Tensor]]) -> np.ndarray | None:
    """The first batch as the codec shows it: the named latents' first, middle and last frame; without what is not finite."""
    rows = {}
    for i, sample in enumerate(found[:4]):
        for name in names:
            if (shown := to_frames(vae, sample[name])) is not None:
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
