"""Runs as rows: who ran what, with which settings, code and libraries, and how every stage's inputs came out."""

from __future__ import annotations

import json
import os
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import code_of
from egomill.schemas.outcome import Report
from egomill.schemas.tables import TABLES
from egomill.schemas.text import plain
from egomill.tasks.lake import heartbeat
from egomill.tasks.lake.tables import Lake, ask

RECORDED = [
    "egomill", "prefect", "ray", "pylance", "mlflow", "torch", "torchvision", "diffusers", "peft", "transformers",
    "easypytorch3d", "av", "decord", "numpy", "pyarrow", "opencv-python-headless",
]  # fmt: skip


ALONE = ("forget", "repair")  # flows beside which nothing else may run


@dataclass
class Run:
    """A run under way. Stages add their reports; the row is written when it starts, after every stage, and when it ends."""

    lake: Lake
    flow: str
    profile: Profile
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    reports: list[Report] = field(default_factory=list)
    release_in: str = ""
    release_out: str = ""
    detail: str = ""
    module: str = ""  # that holds the flow, where it is not named like it

    def add(self, report: Report) -> Report:
        self.reports.append(report)
        self.write("running")
        return report

    @property
    def computed(self) -> int:
        return sum(r.computed + r.retired for r in self.reports)

    def write(self, status: str) -> None:
        row = {
            "run_id": self.id,
            "flow": self.flow,
            "started": self.started,
            "ended": None if status == "running" else datetime.now(UTC),
            "status": status,
            "profile": self.profile.model_dump_json(),
            "code": code_of(self.module or f"egomill.flows.{self.flow}"),
            "environment": json.dumps(environment()),
            "release_in": self.release_in,
            "release_out": self.release_out,
            "stages": json.dumps([r.to_dict() for r in self.reports]),
            "detail": self.detail,
        }
        self.lake.upsert("runs", [row])


@contextmanager
def recorded(lake: Lake, flow: str, profile: Profile, module: str = "") -> Iterator[Run]:
    """A run whose row says how it ended: "completed", "failed", "cancelled", or, after kill -9, "died": that the next run writes there.

    ValueError where there is no lake (a rebuild makes one), and where a run is under way that this one must not run beside.
    """
    if flow != "rebuild":
        ask(lake.uri)
    heartbeat.sweep(lake)
    run = Run(lake, flow, profile, module=module)
    with heartbeat.beating(lake, run.id):
        run.write("running")
        try:
            _give_way(lake, run)
            yield run
        except BaseException as error:
            run.detail = plain("".join(traceback.format_exception(error))[-8000:], most=None, lines=True)
            run.write("failed" if isinstance(error, Exception) else "cancelled")
            raise
        run.write("completed")


def _give_way(lake: Lake, run: Run) -> None:
    """Each writes itself down and then looks who else is there: so of two that start at once one sees the other, if not both."""
    found = lake.read("runs", ["run_id", "flow", "started"], f"status = 'running' AND run_id <> '{run.id}'").to_pylist()
    if busy := [f"{r['run_id']} ({r['flow']}, {r['started']:%F %T})" for r in found if {r["flow"], run.flow} & set(ALONE)]:
        raise ValueError(f"{run.flow} cannot run now, since these runs are under way: {', '.join(busy)}; wait for them, or cancel them")


def environment() -> dict[str, str]:
    """Versions of the libraries that could change a result: recorded, not fingerprinted."""
    found = {"video reader": os.environ.get("EGOMILL_VIDEO_READER", "") or "pyav"}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def history(lake: Lake, limit: int = 20) -> list[dict]:
    """Newest first, JSON columns opened."""
    rows = sorted(lake.read("runs").to_pylist(), key=lambda r: r["started"], reverse=True)[:limit]
    return [
        {**r, "stages": json.loads(r["stages"]), "profile": json.loads(r["profile"]), "environment": json.loads(r["environment"])}
        for r in rows
    ]


def stage_table(lake: Lake) -> list[dict]:
    """Each stage's newest report, in the order in which the stages last ran."""
    newest: dict[str, dict] = {}
    for run in reversed(history(lake, limit=1000)):
        for report in run["stages"]:
            newest.pop(report["stage"], None)
            newest[report["stage"]] = {**report, "run_id": run["run_id"]}
    return list(newest.values())


def failures(lake: Lake, stage: str = "", reason: str = "") -> list[dict]:
    """Rows of `failures` of a stage, for a reason ("": of all), each with its `cause`: of a row that is only `upstream`, the row of its key
    that began it, as {stage, reason}; else None. And, with the status "left out", what takes go without."""
    rows = lake.read("failures").to_pylist()
    by_key: dict[str, list[dict]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(row)
    out = [row | {"cause": _cause(row, by_key[row["key"]])} for row in rows]
    for take in lake.read("takes", ["take_uid", "run_id", "left_out"]).to_pylist():
        for name, (why, detail) in json.loads(take["left_out"] or "{}").items():
            told = {"key": f"{take['take_uid']} {name}", "stage": "takes", "status": "left out", "reason": why, "detail": detail}
            out.append(dict.fromkeys(TABLES["failures"].names) | told | {"run_id": take["run_id"], "cause": None})
    return [row for row in out if stage in ("", row["stage"]) and reason in ("", row["reason"])]


def _cause(row: dict, same: list[dict]) -> dict | None:
    """What began an upstream row among the rows of its key; its first missing table where no row tells."""
    cause, rest = row, [other for other in same if other is not row]
    while cause["reason"] == "upstream":
        missing = cause["detail"].split(", ")
        found = next((r for table in missing for r in rest if r["stage"].partition("/")[0] == table), None)
        if found is None:
            return {"stage": missing[0], "reason": "upstream"}
        cause, rest = found, [other for other in rest if other is not found]
    return None if cause is row else {"stage": cause["stage"], "reason": cause["reason"]}


def by_cause(rows: list[dict]) -> list[dict]:
    """Rows as `failures` gives them, those that are only `upstream` told in the column `upstream` of the row that began it, if it is among
    them: stages."""
    causes = {(r["key"], r["stage"]): {**r, "upstream": []} for r in rows}
    for row in rows:
        began = causes.get((row["key"], row["cause"]["stage"])) if row["cause"] else None
        if began:
            began["upstream"].append(row["stage"])
            del causes[row["key"], row["stage"]]
    return list(causes.values())
