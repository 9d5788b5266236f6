"""A release to a registered adapter: the driver's half of LoRA training on Ray Train.

Training reads a release at its pinned versions, never the newest rows. A training is known by what it is made of: release, settings, base
and code. So the same command after a crash finds the checkpoints and the MLflow run of the training that it is to go on with, and a
command that differs in anything starts another one; nothing is resumed by mistake.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import code_of, code_parts, digest
from egomill.tasks.lake import releases
from egomill.tasks.lake.folders import listed
from egomill.tasks.lake.heartbeat import alive
from egomill.tasks.lake.tables import Damaged, Lake
from egomill.tasks.lake.tracking import BY, Adapter, Tracker
from egomill.tasks.networks import bases, configs
from egomill.tasks.training import adapters, loop, samples

log = logging.getLogger(__name__)
RESTARTS = 2  # of the worker group, from the last checkpoint
KEPT = 2  # checkpoints
PEEK = 5.0  # seconds between two looks at what was measured
MEASURED = (("loss", "loss", ""), ("val_loss", "validation", ""), ("samples_per_second", "", " samples/s"))
VALIDATED = 8  # held-out clips that the loss is measured on


def recipe(profile: Profile) -> str:
    """Digest of all but the data that makes an adapter: settings, base weights, code."""
    method = of(profile)
    settings = profile.train.model_dump(exclude={"checkpoint_every"})
    conditioning = profile.model.model_dump(exclude={"base", "revision"})
    needed = {name.rpartition(".")[2] for name in method.needs}  # folders: what they make is in the release
    own = [getattr(profile, method.section).model_dump(exclude=needed)] if method.section else []
    return digest(settings, conditioning, bases.revision(profile.model), code_of(loop.__name__, method.module), *own)


def existing(lake: Lake, release: dict, profile: Profile, tracker: Tracker) -> Adapter | None:
    """The newest adapter of this recipe and of this release, or of one that agrees with it in the tables that training reads, if there is
    one: nothing to train then."""
    wanted, method = recipe(profile), of(profile)
    same = {release["name"]}
    for other in releases.every(lake):
        if all(other["content"].get(table) == release["content"].get(table) for table in ("clips", *method.reads)):
            same |= set() if other["withdrawn"] else {other["name"]}
    for row in reversed(tracker.adapters(method.name)):
        if row["tags"].get("recipe") == wanted and row["tags"].get("release") in same:
            return tracker.resolve(f"{method.name}@v{row['version']}")
    return None


def train(
    lake: Lake, release: dict, profile: Profile, tracker: Tracker, run_id: str, progress: Callable[[int, int, str], None] | None = None
) -> Adapter:
    """Train on a release (a row of `releases`), or go on where the same training was killed, and register the adapter under the method's
    name.

    `run_id` is that of the lake's run; `progress` is told (steps done, steps, what was measured). Errors: ValueError where the release has
    no training clip of this base, or rows that were made otherwise, where another run is training the same just now, or where batch after
    batch gave no finite loss or gradient; Damaged where a row is not what was committed; what broke a worker otherwise, after the restarts
    are used up.
    """
    versions, revision = release["tables"], bases.revision(profile.model)
    method = of(profile)
    configs.check(profile)
    clips = samples.clips_of(lake, versions, revision, method.learnt(profile), ("train",))
    if not clips:
        raise ValueError(f"release {release['name']} has no training clip with latents of base {revision}: rebuild with this profile")
    if apart := method.apart(profile, release["profile"]):
        raise ValueError(f"release {release['name']} has {apart}")
    held_out = samples.clips_of(lake, versions, revision, method.learnt(profile), ("test", "unseen"))
    name, tags = method.name, {"release": release["name"], "recipe": recipe(profile)}
    mlflow_run = _begun(lake, tracker, name, tags, run_id)
    tracker.params(mlflow_run, profile.model_dump(include={"name", "model", "train", "clips"}))
    tracker.params(mlflow_run, {"clips_train": len(clips), "clips_held_out": len(held_out), "base_revision": revision})
    takes = {row["clip_id"]: row["take_uid"] for row in lake.rows("clips", held_out, ("clip_id", "take_uid"), versions["clips"])}
    validated = samples.spread(takes, VALIDATED)
    tracker.dataset(mlflow_run, release["name"], lake.uri, versions)
    code = code_parts(loop.__name__, method.module)
    plan = loop.Plan(lake, release["name"], versions, profile, revision, tracker, mlflow_run, clips, validated, code)
    try:
        _drop_halves(lake, f"{name}-{mlflow_run}")
        with told(plan, progress):
            checkpoint = fit(plan, f"{name}-{mlflow_run}")
        with checkpoint.as_directory() as folder:
            report = loop.read_report(Path(folder))
            tags |= {"profile": profile.name, "base": revision, "steps": str(report["step"])}
            tags["sha256"] = adapters.sha256(f"{folder}/adapter")
            if report.get("skipped"):
                tags["skipped"] = str(report["skipped"])
            if "val_loss" in report:
                tags["val_loss"] = f"{report['val_loss']:.4f}"
            adapter = tracker.register(name, f"{folder}/adapter", mlflow_run, tags)
        checkpoint.filesystem.delete_dir(os.path.dirname(checkpoint.path))  # registered: the run's checkpoints have served
    except BaseException as error:
        tracker.end(mlflow_run, "FAILED" if isinstance(error, Exception) else "KILLED")
        if not isinstance(error, Exception):
            ray.shutdown()  # cancelled: workers that still write end here
        _drop_halves(lake, f"{name}-{mlflow_run}")
        raise
    tracker.end(mlflow_run)
    return adapter


def _begun(lake: Lake, tracker: Tracker, name: str, tags: dict[str, str], run_id: str) -> str:
    """The MLflow run of this training: the one that it is to go on with, or a new one. ValueError where another run is at it."""
    mlflow_run = tracker.unfinished(tags)
    if mlflow_run:
        other = tracker.started_by(mlflow_run)
        if other != run_id and alive(lake, other):
            raise ValueError(f"run {other} is training the same, of release {tags['release']}, in MLflow run {mlflow_run}")
        tracker.resume(mlflow_run)
        log.info("training goes on in MLflow run %s", mlflow_run)
    else:
        mlflow_run = tracker.start(f"{name}-{tags['release']}", tags)
    tracker.tags(mlflow_run, {BY: run_id})
    return mlflow_run


@contextlib.contextmanager
def told(plan: loop.Plan, progress: Callable[[int, int, str], None] | None) -> Iterator[None]:
    """Meanwhile `progress` hears of the steps, by what the workers write to MLflow: where that cannot be asked, it hears nothing."""
    over = threading.Event()

    def listen() -> None:
        while progress and not over.wait(PEEK):
            with contextlib.suppress(Exception):
                step, values = plan.tracker.newest(plan.run_id)
                words = (f"{word} {values[name]:.3g}{unit}" for name, word, unit in MEASURED if name in values)
                progress(step + 1, plan.profile.train.steps, ", ".join(words))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


def _drop_halves(lake: Lake, name: str) -> None:
    """Delete what was cut off in the middle of being written: checkpoints that Ray's list of whole ones does not name, and where that list
    is itself cut off, all of them: the training then starts anew, and ends the same.
    """
    files, root = FileSystem.from_uri(lake.uri) if "://" in lake.uri else (LocalFileSystem(), lake.uri)
    folder, whole = f"{root.rstrip('/')}/training/{name}", ""
    with contextlib.suppress(FileNotFoundError):
        whole = files.open_input_stream(f"{folder}/checkpoint_manager_snapshot.json").read().decode()
        try:
            json.loads(whole)
        except ValueError:
            log.warning("the list of checkpoints in %s is cut off: training starts anew", folder)
            files.delete_dir(folder)
    for entry in listed(files, folder):
        if entry.base_name.startswith("checkpoint_") and entry.type == FileType.Directory and entry.base_name not in whole:
            files.delete_dir(entry.path)


def fit(plan: loop.Plan, name: str) -> Any:
    """Run the workers; returns the last checkpoint. Under a `name` that has checkpoints Ray goes on from the newest of them.

    Besides the newest, the best by validation are kept while it runs. ValueError where the workers gave up.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from egomill.tasks.lake.cluster import address, connect, interruptible

    connect()
    settings = plan.profile.train
    resources = {"CPU": share(settings.workers, [n["Resources"] for n in ray.nodes() if n["Alive"]], settings.gpu)}
    if settings.gpu:
        resources["GPU"] = 1.0
    root = plan.lake.uri.rstrip("/")
    best_by = "val_loss" if plan.held_out else None
    trainer = TorchTrainer(
        loop.loop,  # type: ignore[arg-type]
        train_loop_config=plan,  # type: ignore[arg-type]
        torch_config=TorchConfig() if address() else beside(),
        scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=settings.gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=f"{root}/training" if "://" in root else os.path.abspath(f"{root}/training"),
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(KEPT, checkpoint_score_attribute=best_by, checkpoint_score_order="min"),
        ),
    )
    try:
        result = interruptible(trainer.fit)
    except TrainingFailedError as error:
        told = [getattr(e, "_base_exc", e) for e in getattr(error, "worker_failures", {}).values()]
        raise next((e for e in told if isinstance(e, Damaged)), error) from None
    if result.return_value:
        raise ValueError(
            f"training {name} was given up: {result.return_value}. Look at these clips, lower train.learning_rate or train.clip_norm, or "
            "set train.precision=float32; with other settings it starts anew"
        )
    if result.checkpoint is None:
        raise RuntimeError(f"training {name} ended without a checkpoint: {result.error}")
    return result.checkpoint


def beside() -> Any:
    """How workers on one machine find each other: by a file that is theirs alone. The server that torch would start instead listens on all
    of the machine's addresses, and believes everybody.
    """
    from ray._private import worker
    from ray.train.torch import config

    class Backend(config._TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(config._set_torch_distributed_env_vars)
            kind = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
            here: Any = worker._global_node
            place = f"{here.get_session_dir_path()}/{uuid.uuid4().hex}"  # another one after a restart
            ways = {"backend": kind, "init_method": f"file://{place}", "world_size": len(worker_group)}
            join = partial(worker_group.execute_single_async, timeout_s=backend_config.timeout_s, **ways)
            ray.get([join(rank, config._setup_torch_process_group, world_rank=rank) for rank in range(len(worker_group))])

    @dataclass
    class Beside(config.TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Beside()


def share(workers: int, machines: list[dict[str, float]], gpu: bool) -> float:
    """CPUs of a worker: a whole one, or so much less (in tenths) that all have room at once on the machines, given by their resources."""
    for tenths in range(10, 0, -1):
        room = [int(10 * m.get("CPU", 0) / tenths) for m in machines]
        if sum(min(n, int(m.get("GPU", 0))) if gpu else n for n, m in zip(room, machines, strict=True)) >= workers:
            return tenths / 10
    return 1.0 if gpu else 0.1
