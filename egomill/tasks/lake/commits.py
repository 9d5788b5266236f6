"""What was done becomes visible: shards are committed as they come back, their rows first, then their failures."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute

from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, one_of

PATIENCE = 10.0  # seconds that finished rows wait to be committed with others at most
AT_ONCE = 5000  # rows in one commit at most: filters that name a hundred thousand keys are slow

# What travels of a row: its line of the ledger, and on the way back with status, reason and detail.
Result = tuple[list[str], list[dict]]  # fragments as `lake.write_fragments` gives them, outcomes


def record(stage: Stage, lake: Lake, run_id: str, fragments: list[str], outcomes: list[dict]) -> None:
    """Make shards visible: their rows first, then their failures. A crash between the two costs a recomputation of the failures."""
    stale = [o["key"] for o in outcomes if o["made"] is not None]
    counts = {status: str(sum(o["status"] == status for o in outcomes)) for status in ("outputs", "rejected", "failed")}
    lake.commit(stage.name, fragments, stage.rows_of(stale) if stale else "", {"run_id": run_id, "stage": stage.id, **counts})
    about = {"stage": stage.id, "recipe": stage.recipe, "run_id": run_id, "at": datetime.now(UTC)}
    columns = ("key", "fingerprint", "status", "reason", "detail", "attempt")
    bad = [o for o in outcomes if o["status"] != "outputs"]
    lake.upsert("failures", [{**about, "inputs": json.loads(o["inputs"]), **{c: o[c] for c in columns}} for o in bad])
    healed = [o["key"] for o in outcomes if o["status"] == "outputs" and o["noted"]]
    if healed:
        lake.commit("failures", None, replace=f"{one_of('stage', [stage.id])} AND {one_of('key', healed)}")


def blocked(rows: pa.Table) -> Iterator[Result]:
    for part in slices(rows, AT_ONCE):
        yield [], [{**row, "status": "rejected", "reason": "upstream", "detail": row["missing"]} for row in part.to_pylist()]


def as_they_come(results: Generator[Result]) -> Iterator[Result]:
    """All results that arrived while the last ones were committed and for a while after, at once, so that commits take a tenth of the time:
    where rows are made faster than they are committed, commits grow.

    Whoever stops asking (a commit failed) ends the work behind it at its next result, so that its actors hold no processor any more.
    """
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    stop = threading.Event()

    def pump() -> None:
        try:
            with closing(results):
                for result in results:
                    arrived.put(result)
                    if stop.is_set():
                        return
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=pump, daemon=True).start()
    due = 0.0
    try:
        while True:
            fragments, outcomes, got = [], [], arrived.get()
            while isinstance(got, tuple):
                fragments += got[0]
                outcomes += got[1]
                if len(outcomes) >= AT_ONCE:
                    break
                try:
                    got = arrived.get(timeout=max(0.0, due - time.monotonic()))
                except queue.Empty:
                    break
            if outcomes:
                begun = time.monotonic()
                yield fragments, outcomes
                took = time.monotonic() - begun
                due = begun + took + min(9 * took, PATIENCE)
            if isinstance(got, BaseException):
                raise got
            if got is None:
                return
    finally:
        stop.set()


def slices(rows: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(rows), size):
        yield rows.slice(start, size)
