"""Runs as rows: who ran what, with which settings, code and libraries, and how every stage's inputs came out."""

from __future__ import annotations

import json
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
from egomill.tasks import alive
from egomill.tasks.lake import Lake

RECORDED = [
    "egomill", "prefect", "ray", "pylance", "mlflow", "torch", "torchvision", "diffusers", "peft", "transformers",
    "easypytorch3d", "av", "numpy", "pyarrow", "opencv-python-headless",
]  # fmt: skip


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
    """A run whose row says how it ended: "completed", "failed", "cancelled", or, after kill -9, "died": that the next run writes there."""
    alive.sweep(lake)
    run = Run(lake, flow, profile, module=module)
    with alive.beating(lake, run.id):
        run.write("running")
        try:
            yield run
        except BaseException as error:
            run.detail = "".join(traceback.format_exception(error))[-8000:]
            run.write("failed" if isinstance(error, Exception) else "cancelled")
            raise
        run.write("completed")


def environment() -> dict[str, str]:
    """Versions of the libraries that could change a result: recorded, not fingerprinted."""
    found = {}
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
