"""Run a stage over what is pending.

What is pending (pending.py) is handed to actors in shards (actors.py), and committed as it comes back (commits.py). Killing it at any
moment costs the shards in flight and nothing else: the next run asks again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow.compute

from egomill.schemas.config import Resources
from egomill.schemas.item import Item
from egomill.schemas.outcome import Report, StageFailed
from egomill.tasks.lake import recipes
from egomill.tasks.lake.actors import few, here, on_ray
from egomill.tasks.lake.commits import AT_ONCE, as_they_come, blocked, record, slices
from egomill.tasks.lake.pending import STATES, pending
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, one_of

log = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # which makes its functions while it is imported: type checkers cannot see them
SHOWN = 5  # failed rows of one reason that are logged with all they left; the table holds them all


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
    ledger = pending(stage, lake, keys, items, resources.attempts, versions)
    states = {state: ledger.filter(pc.equal(ledger["state"], state)) for state in STATES}
    report = Report(stage.id, inputs=len(ledger) - len(states["gone"]), outputs=len(states["current"]))
    for status in ("rejected", "failed"):
        setattr(report, status, len(states[status]))
        report.reasons.update({c["values"]: c["counts"] for c in states[status]["reason"].value_counts().to_pylist()})

    for gone in slices(states["gone"], AT_ONCE):
        replace = stage.rows_of(gone["key"].to_pylist())
        lake.commit(stage.name, None, replace=replace, properties={"run_id": run_id, "retired": str(len(gone))})
        report.retired += len(gone)

    if len(states["pending"]) or len(states["blocked"]):
        recipes.record(lake, stage.parts)
    made = None
    if len(states["pending"]):
        from egomill.tasks.lake.cluster import connect

        at_hand = few(stage, len(states["pending"]), resources)
        if not at_hand:
            connect()  # here, and not where results are waited for: a local Ray dies with the thread that started it
        made = (here if at_hand else on_ray)(stage, lake, run_id, versions, states["pending"], items, resources)
    seen, todo = 0, len(states["blocked"]) + len(states["pending"])
    for fragments, outcomes in itertools.chain(blocked(states["blocked"]), as_they_come(made) if made else ()):
        record(stage, lake, run_id, fragments, outcomes)
        for outcome in outcomes:
            for level, text in outcome.get("said", ()):
                log.log(level, "%s %s: %s", stage.id, outcome["key"], text)
            setattr(report, outcome["status"], getattr(report, outcome["status"]) + 1)
            if outcome["status"] == "outputs":
                report.computed += 1
                continue
            report.reasons[outcome["reason"]] += 1
            if outcome["status"] == "failed" and report.reasons[outcome["reason"]] <= SHOWN:
                log.warning("%s %s failed: %s\n%s", stage.id, outcome["key"], outcome["reason"], outcome["detail"])
        seen += len(outcomes)
        if progress:
            progress(seen, todo)

    report.seconds = time.monotonic() - started
    if report.failed > resources.failure_threshold * max(report.inputs, 1):
        raise StageFailed(report)
    return report


def retry(lake: Lake, reason: str, stage: str = "") -> int:
    """Make the rejected and failed rows of this reason (and of this stage's id; "": of all) pending again, with all their attempts.

    They stay among the failures until they are tried. Returns how many; ValueError where no row has that reason.
    """
    where = " AND ".join(one_of(column, [value]) for column, value in (("reason", reason), ("stage", stage)) if value)
    rows = lake.read("failures", where=where).to_pylist()
    if not rows:
        known = sorted(set(lake.read("failures", ["reason"])["reason"].to_pylist()))
        raise ValueError(f"no row failed with {reason!r}{f' in {stage}' if stage else ''}; there are: {', '.join(known) or 'no failures'}")
    lake.upsert("failures", [{**row, "fingerprint": "", "attempt": 0} for row in rows])
    return len(rows)
