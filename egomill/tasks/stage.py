"""Run a stage over what is pending: the only `map_batches`.

A stage is a value; its worker is a plain callable, a row in, a row (or several, or `Rejected`) out, and runs as well without Ray. The
runner asks three questions of the tables (what goes in, what is there already, what has failed before), hands shards of keys to Ray actors,
and commits each shard as it comes back. Killing it at any moment costs the shards in flight and nothing else: the next run asks again.

Only keys travel through Ray: actors read their rows at pinned versions and write their results as files that the driver then commits.
"""

from __future__ import annotations

import functools
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from egomill.schemas.config import Resources
from egomill.schemas.fingerprint import code_parts, content_of, digest
from egomill.schemas.outcome import Rejected, Report, StageFailed
from egomill.schemas.tables import KEYS, NO_CONTENT, TABLES, as_stored
from egomill.tasks import recipes
from egomill.tasks.lake import Lake, one_of
from egomill.tasks.standing import Survey, survey

log = logging.getLogger(__name__)
Worker = Callable[[dict], dict | list[dict] | Rejected]


@dataclass(frozen=True)
class Stage:
    """What makes a table. `reads` names tables and columns; the first is iterated, and the worker gets {table: {column: value}}."""

    name: str
    reads: dict[str, tuple[str, ...]]
    config: dict
    worker: Callable[[], Worker]  # called once an actor: heavy models load here
    weights: str = ""
    constants: dict[str, str] = field(default_factory=dict)  # further key columns, the same for all rows
    where: str = ""  # SQL filter on the first table; name a table of several keys first, and pick one of its rows a clip here

    @property
    def id(self) -> str:
        """The stage's name in failures and reports."""
        return "/".join((self.name, *self.constants.values()))

    @property
    def parent(self) -> str:
        """The column of the made table that holds the input's key: takes make clips, clips make the rest."""
        return KEYS[next(iter(self.reads))][0] if self.reads else KEYS[self.name][0]

    @property
    def mine(self) -> str:
        """SQL filter: this stage's rows in its table, which it may share with other adapters' or models' ("" where it is alone)."""
        return " AND ".join(f"{column} = '{value}'" for column, value in self.constants.items())

    @property
    def module(self) -> str:
        made_by = self.worker.func if isinstance(self.worker, functools.partial) else self.worker
        return made_by.__module__

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """What makes every row of the stage: what is read, settings, code, weights, the shape of the table."""
        made = {
            "stage": self.name,
            "reads": list(self.reads),
            "config": self.config,
            "code": code_parts(self.module),
            "weights": self.weights,
        }
        made |= {"columns": str(TABLES[self.name]), "constants": self.constants}
        return json.loads(json.dumps(made))  # tuples as lists, as the lake gives them back

    @functools.cached_property
    def recipe(self) -> str:
        return digest(self.parts)

    def fingerprint(self, inputs: list[str]) -> str:
        """What makes one row: the recipe, and the contents of what the row is made from."""
        return digest(self.recipe, inputs)


@dataclass(frozen=True)
class Item:
    """An input that lies in no table: a take on disk. `digest` tells whether it changed since the last look."""

    key: str
    digest: str
    row: dict


def run(
    stage: Stage,
    lake: Lake,
    run_id: str,
    resources: Resources,
    keys: Iterable[str] | None = None,
    items: list[Item] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Make what is missing or stale of `stage`'s table, over `keys` (None: all inputs) or over `items`.

    Returns the report; raises StageFailed, with the report as its argument, above `resources.failure_threshold`.
    """
    started = time.monotonic()
    versions = {table: lake.version(table) for table in stage.reads}
    now = survey(stage, lake, versions, resources.attempts, keys, items)
    wanted, missing, have, past, done, pending = now.wanted, now.missing, now.have, now.past, now.done, now.pending

    report = Report(stage.id, inputs=len(wanted))
    report.reasons.update(past[key]["reason"] for key, status in done.items() if status != "outputs")
    if pending:
        recipes.record(lake, stage.parts)

    gone = [key for key in have if key in now.retired]
    if gone:
        lake.commit(stage.name, None, replace=_among(stage, gone), properties={"run_id": run_id, "retired": str(len(gone))})
        report.retired = len(gone)

    blocked = [key for key in pending if key in missing]
    ready = [key for key in pending if key not in missing]
    results: Iterator[tuple[str | None, list[dict]]] = iter(())
    if blocked:
        results = iter([(None, [{"key": k, "status": "rejected", "reason": "upstream", "detail": missing[k]} for k in blocked])])
    if ready:
        by_item = {item.key: item for item in items or []}
        shards = [ready[i : i + resources.shard] for i in range(0, len(ready), resources.shard)]
        jobs = [_Job(c, [now.inputs[k] for k in c], [by_item[k].row for k in c] if items is not None else None) for c in shards]
        results = _chain(results, _on_ray(stage, lake, run_id, versions, jobs, resources))

    seen = 0
    for fragments, outcomes in results:
        _record(stage, lake, run_id, fragments, outcomes, now)
        for outcome in outcomes:
            done[outcome["key"]] = outcome["status"]
            if outcome["status"] == "outputs":
                report.computed += 1
            else:
                report.reasons[outcome["reason"]] += 1
        seen += len(outcomes)
        if progress:
            progress(seen, len(pending))

    for status in done.values():
        setattr(report, status, getattr(report, status) + 1)
    report.seconds = time.monotonic() - started
    if report.failed > resources.failure_threshold * max(report.inputs, 1):
        raise StageFailed(report)
    return report


@dataclass(frozen=True)
class _Job:
    keys: list[str]
    inputs: list[list[str]]
    rows: list[dict] | None


def _among(stage: Stage, keys: Iterable[str]) -> str:
    return " AND ".join(filter(None, (one_of(stage.parent, keys), stage.mine)))


def _chain(*iterators: Iterator) -> Iterator:
    for iterator in iterators:
        yield from iterator


def _record(stage: Stage, lake: Lake, run_id: str, fragments: str | None, outcomes: list[dict], now: Survey) -> None:
    """Make one shard visible: its rows first, then its failures. A crash between the two costs a recomputation of the failures."""
    wanted, past = now.wanted, now.past
    stale = [o["key"] for o in outcomes if o["key"] in now.have]
    counts = {status: str(sum(o["status"] == status for o in outcomes)) for status in ("outputs", "rejected", "failed")}
    replace = _among(stage, stale) if stale else ""
    lake.commit(stage.name, fragments, replace, {"run_id": run_id, "stage": stage.id, **counts})
    bad = [o for o in outcomes if o["status"] != "outputs"]
    at = datetime.now(UTC)
    rows = []
    for o in bad:
        before = past.get(o["key"])
        again = before is not None and before["fingerprint"] == wanted[o["key"]]
        attempt = before["attempt"] + 1 if before is not None and again else 1
        made = {"fingerprint": wanted[o["key"]], "recipe": stage.recipe, "inputs": now.inputs[o["key"]], "run_id": run_id}
        rows.append({**o, **made, "stage": stage.id, "attempt": attempt, "at": at})
    lake.upsert("failures", rows)
    healed = [o["key"] for o in outcomes if o["status"] == "outputs" and o["key"] in past]
    if healed:
        lake.commit("failures", None, replace=f"stage = '{stage.id}' AND {one_of('key', healed)}")


class _Actor:
    """One Ray actor of a stage: holds the worker (and its models), turns shards of keys into written fragments and outcomes."""

    def __init__(self, stage: Stage, lake: Lake, run_id: str, versions: dict[str, int]) -> None:
        import torch

        torch.set_num_threads(1)  # actors share the machine; parallelism is theirs
        self.stage, self.lake, self.run_id, self.versions = stage, lake, run_id, versions
        self.worker = stage.worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        job = _Job(**json.loads(str(batch["job"][0])))
        fragments, outcomes = self.work(job)
        return {"result": [json.dumps({"fragments": fragments, "outcomes": outcomes})]}

    def work(self, job: _Job) -> tuple[str | None, list[dict]]:
        made: list[dict] = []
        outcomes: list[dict] = []
        given = job.rows or read_rows(self.stage, self.lake, self.versions, job.keys)
        for key, inputs, row in zip(job.keys, job.inputs, given, strict=True):
            try:
                result = self.worker(row)
                rows = [] if isinstance(result, Rejected) else finished(self.stage, key, result)
            except Exception as error:
                detail = "".join(traceback.format_exception(error))[-8000:]
                outcomes.append({"key": key, "status": "failed", "reason": type(error).__name__, "detail": detail})
                continue
            if isinstance(result, Rejected):
                outcomes.append({"key": key, "status": "rejected", "reason": result.reason, "detail": result.detail[:8000]})
                continue
            label = {"fingerprint": self.stage.fingerprint(inputs), "recipe": self.stage.recipe, "inputs": inputs, "run_id": self.run_id}
            made += [{**r, **label} for r in rows]
            outcomes.append({"key": key, "status": "outputs"})
        return (self.lake.write_fragments(self.stage.name, made) if made else None), outcomes


def read_rows(stage: Stage, lake: Lake, versions: dict[str, int], keys: list[str]) -> list[dict]:
    """What the worker gets for each key: {table: {column: value}}."""
    rows: dict[str, dict] = {key: {} for key in keys}
    for i, (table, columns) in enumerate(stage.reads.items()):
        key_column = KEYS[table][0]
        where = stage.where if i == 0 else ""
        for row in lake.rows(table, keys, [*dict.fromkeys((key_column, *columns))], versions[table], where):
            rows[row[key_column]][table] = row
    return [rows[key] for key in keys]


def finished(stage: Stage, key: str, result: dict | list[dict]) -> list[dict]:
    """A worker's answer as rows of the stage's table, with their content: its own word for it, or the digest of all values."""
    rows = result if isinstance(result, list) else [{stage.parent: key, **result}]
    stored = as_stored(stage.name, [{**r, **stage.constants} for r in rows])
    return [{**r, "content": r["content"] or content_of(r, NO_CONTENT)} for r in stored]


def _on_ray(
    stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], jobs: list[_Job], resources: Resources
) -> Iterator[tuple[str | None, list[dict]]]:
    """Results as shards finish, in whatever order."""
    import ray.data

    from egomill.tasks.cluster import connect

    connect()
    cpus, gpus = resources.cpus.get(stage.name, 1.0), resources.gpus.get(stage.name, 0.0)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=len(jobs))
    table = ray.data.from_items([{"job": json.dumps(job.__dict__)} for job in jobs], override_num_blocks=len(jobs))
    arguments = {"stage": stage, "lake": lake, "run_id": run_id, "versions": versions}
    done = table.map_batches(_Actor, fn_constructor_kwargs=arguments, batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus or None)
    for row in done.iter_rows():
        result = json.loads(row["result"])
        yield result["fragments"], result["outcomes"]
