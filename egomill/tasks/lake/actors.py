"""Who does it: actors that hold the stage's worker, on Ray (the only `map_batches`) or in processes of our own.

Only keys travel: actors read their rows at pinned versions and write their results as files that the driver then commits. A handful of rows
is made in processes of our own: a Ray would take longer to come up.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from egomill.schemas.config import Resources
from egomill.schemas.fingerprint import check_code
from egomill.schemas.item import Item
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import KEYS, TABLES
from egomill.tasks.lake.commits import Result, slices
from egomill.tasks.lake.rows import finished, handed, read_rows
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Damaged, Lake
from egomill.tasks.lake.watch import Journal, Watch

MEMORY = 64 * 1024**2  # bytes of inputs, and of results, that an actor holds at a time (a single row may be more)
FEW = 8  # rows that need no Ray


class Actor:
    """A process of a stage: holds the worker (and its models), turns shards of keys into written fragments and outcomes.

    Its name `me` is that of the process before it, where that died; `ask(method, *arguments)` reaches the journal of both.
    """

    def __init__(
        self, stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], resources: Resources, me: str, ask: Callable[..., Any]
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # actors share the machine; parallelism is theirs
        if torch := sys.modules.get("torch"):  # else whoever imports it finds the 1
            torch.set_num_threads(1)
        self.stage, self.lake, self.run_id, self.versions, self.least = stage, lake, run_id, versions, resources.shard
        seconds = resources.timeouts.get(stage.name, resources.timeout)
        self.watch = Watch(Path(tempfile.gettempdir()) / f"egomill-{me}.words", ask, seconds, resources.timeout_per_second)
        self.watch.making(f"worker {me}")
        check_code(stage.parts["code"])  # which the driver wrote down
        self.worker = stage.worker()
        self.watch.made(f"worker {me}")

    def work(self, rows: list[dict]) -> Result:
        fragments, outcomes, made, size = [], [], [], 0
        with self.watch.shard([row["key"] for row in rows]) as lost:
            for row, inputs in self._read(rows, lost):
                with self.watch.row(row["key"]), heard() as said:
                    results, outcome, nbytes = self._one(row, inputs)
                made, size = made + results, size + nbytes
                outcomes.append({**row, **outcome, "said": said})
                if size > MEMORY:
                    fragments.append(self.lake.write_fragments(self.stage.name, made))
                    made, size = [], 0
            if made:
                fragments.append(self.lake.write_fragments(self.stage.name, made))
            for row in rows:
                if row["key"] in lost:
                    reason, detail = lost[row["key"]]
                    outcomes.append({**row, "status": "failed", "reason": reason, "detail": detail})
        return fragments, outcomes

    def _one(self, row: dict, inputs: dict) -> tuple[list[dict], dict, int]:
        """A row's results, its outcome, and the bytes of the results. A result that does not fit the table is a failure like any other."""
        try:
            result = self.worker(handed(self.stage.reads, inputs))
            if isinstance(result, Rejected):
                return [], {"status": "rejected", "reason": result.reason, "detail": result.detail[:8000]}, 0
            made_by = {"recipe": self.stage.recipe, "inputs": json.loads(row["inputs"]), "run_id": self.run_id}
            results = [{**r, "fingerprint": row["fingerprint"], **made_by} for r in finished(self.stage, row["key"], result)]
            if len({tuple(r[column] for column in KEYS[self.stage.name]) for r in results}) < len(results):
                raise ValueError("the worker made two rows of one key")
            return results, {"status": "outputs"}, pa.Table.from_pylist(results, TABLES[self.stage.name]).nbytes
        except (Exception, SystemExit) as error:
            detail = "".join(traceback.format_exception(error))[-8000:]
            return [], {"status": "failed", "reason": type(error).__name__, "detail": detail}, 0

    def _read(self, rows: list[dict], lost: dict) -> Iterator[tuple[dict, dict]]:
        """Rows with their inputs; as many are read at a time as memory allows."""
        rows = [row for row in rows if row["key"] not in lost]
        size = self.least
        while rows:
            part, rows = rows[:size], rows[size:]
            if "item" in part[0]:
                yield from ((row, row.pop("item")) for row in part)
                continue
            try:
                inputs, nbytes = read_rows(self.lake, self.stage.reads, self.versions, [row["key"] for row in part], self.stage.where)
            except Damaged as error:
                if len(part) > 1:  # not all of them: one by one
                    size, rows = 1, part + rows
                    continue
                inputs, nbytes = {part[0]["key"]: {"damaged": error}}, MEMORY
            size = max(self.least, len(part) * MEMORY // max(nbytes, 1))
            yield from ((row, inputs[row["key"]]) for row in part)


class _RayActor(Actor):
    """On Ray, where the journal is an actor, too."""

    def __init__(self, journal: Any, **arguments: Any) -> None:
        import ray

        context = ray.get_runtime_context()
        ray.get(journal.met.remote(context.current_actor))

        def ask(method: str, *arguments: Any) -> Any:  # calls arrive in their order; whose answer nobody needs is not waited for
            answer = getattr(journal, method).remote(*arguments)
            return ray.get(answer) if method == "begin" else None

        super().__init__(**arguments, me=str(context.get_actor_id()), ask=ask)  # the same after a restart

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": [json.dumps(self.work(json.loads(str(batch["job"][0]))))]}


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.said) < 50 and record.levelno >= (logging.INFO if record.name.startswith("egomill") else logging.WARNING):
            self.said.append((record.levelno, self.format(record)[:8000]))


@contextmanager
def heard() -> Iterator[list[tuple[int, str]]]:
    """Collect what is logged meanwhile, (level, text): our own information and everybody's warnings. It reaches the driver with the row."""
    ear, root = _Ear(), logging.getLogger()
    ours = logging.getLogger("egomill")
    if ours.level != logging.INFO:  # which every setting makes all loggers forget
        ours.setLevel(logging.INFO)
    root.addHandler(ear)
    try:
        yield ear.said
    finally:
        root.removeHandler(ear)


def _shards(rows: pa.Table, items: list[Item] | None, resources: Resources, at_once: int) -> list[list[dict]]:
    """Lines of the ledger, of items with the item, in parts for `at_once` actors."""
    at_hand = {item.key: {"item": item.row} for item in items or []}
    each = -(-len(rows) // (resources.shard * at_once))  # shards for every actor the same, or at the end one works alone
    size = -(-len(rows) // min(each * at_once, resources.shards))
    return [[{**row, **at_hand.get(row["key"], {})} for row in part.to_pylist()] for part in slices(rows, size)]


def few(stage: Stage, rows: int, resources: Resources) -> bool:
    """Whether so many rows are sooner made in processes of our own. What asks for GPUs, or for more than is here, Ray places or refuses."""
    from egomill.tasks.lake.cluster import address, cpus

    return rows <= FEW and not address() and not resources.gpus.get(stage.name) and resources.cpus.get(stage.name, 1.0) <= cpus()


def here(
    stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], rows: pa.Table, items: list[Item] | None, resources: Resources
) -> Generator[Result]:
    """As `on_ray`, in processes of our own."""
    from ray import cloudpickle  # code of ours for a process of ours, as it travels to Ray's

    from egomill.tasks.lake import child, cluster

    cpus = resources.cpus.get(stage.name, 1.0)
    at_once = min(len(rows), resources.actors.get(stage.name, len(rows)), int(cluster.cpus() / cpus) if cpus else len(rows))
    arguments = {"stage": stage, "lake": lake, "run_id": run_id, "versions": versions, "resources": resources}
    yield from child.each(_shards(rows, items, resources, at_once), at_once, max(1, int(cpus)), cloudpickle.dumps((Actor, arguments)))


def on_ray(
    stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], rows: pa.Table, items: list[Item] | None, resources: Resources
) -> Generator[Result]:
    """Results as shards finish, in whatever order. Ray restarts an actor that dies and gives it its shard again; `watch` bounds that.

    However it ends, its actors end with it: after an error Ray Data leaves them, and the next stage would wait for their processors.
    """
    import ray.data
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from egomill.tasks.lake.cluster import require

    # The journal stays on the driver's machine: one that dies must not take it along.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    journal: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Journal).remote()
    arguments = {"stage": stage, "lake": lake, "run_id": run_id, "versions": versions, "resources": resources, "journal": journal}
    cpus, gpus = resources.cpus.get(stage.name, 1.0), resources.gpus.get(stage.name, 0.0)
    require(f"resources: an actor of {stage.name}", cpus, gpus)
    there, most = ray.cluster_resources(), resources.actors.get(stage.name, len(rows))
    fit = [int(there.get(kind, 0) / each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    at_once = max(1, min(most, len(rows), *fit))
    jobs = [{"job": json.dumps(shard)} for shard in _shards(rows, items, resources, at_once)]
    table = ray.data.from_items(jobs, override_num_blocks=len(jobs))
    # Ray Data would start with one actor and add others when half of a short stage is over.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(jobs)), initial_size=min(at_once, len(jobs)))
    done = table.map_batches(_RayActor, fn_constructor_kwargs=arguments, batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus or None)
    try:
        for row in done.iter_rows():
            fragments, outcomes = json.loads(row["result"])
            yield fragments, outcomes
    finally:
        if ray.is_initialized():
            with suppress(RayError):  # Ray itself went: so did they
                for process in (*ray.get(journal.met.remote(), timeout=10), journal):
                    ray.kill(process)
