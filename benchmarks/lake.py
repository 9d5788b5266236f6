"""What keeping books costs: nothing to do at 100,000 clips, a little to do, a thousand clips, a million rows.

    python benchmarks/lake.py [--clips 100000] [--rows 1000000] [--json]

The stage is captions from clips, with a worker that sleeps. `changed_1pct_ratio`: what a rebuild costs after 1 % of the clips (whole takes
of fifty) changed, over what the first build cost, at `--sleep` seconds a row. `overhead_1000`: what a stage of 100 ms a row takes beyond
its rows' 100 ms, on one actor. Starting Ray and its actors, which costs the same for one row and for a million, is left out of both (from
the ledger to the first result; `start_s`); `changed_1pct_wall_ratio` leaves nothing out. Tables are real; the clips have no poses.
"""

from __future__ import annotations

import json
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import pyarrow as pa
import typer

from egomill.schemas.config import Profile, Resources
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Report
from egomill.tasks.keeping import lineage
from egomill.tasks.lake import releases
from egomill.tasks.lake.pending import pending
from egomill.tasks.lake.runner import run
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, one_of
from egomill.tasks.stages import clips

PER_TAKE = 50
logging.disable(logging.WARNING)


def captions(seconds: float) -> Stage:
    def make() -> Callable[[dict], dict]:
        def write(row: dict) -> dict:
            time.sleep(seconds)
            return {"text": row["clips"]["take_name"], "source": "benchmark"}

        return write

    return Stage("captions", {"clips": ("take_name",)}, {}, partial(make), where="chosen")


def add(lake: Lake, table: str, rows: list[dict], replace: str = "") -> None:
    """Rows of made-up content in fragments of 64 thousand, one commit."""
    lake.commit(table, [lake.write_fragments(table, rows[i : i + 65536]) for i in range(0, len(rows), 65536)], replace)


def clip_rows(count: int, first: int = 0, version: int = 0) -> list[dict]:
    found = []
    for i in range(first, first + count):
        take = f"take{i // PER_TAKE:06d}"
        about = {"clip_id": f"{take}.cam01.{i % PER_TAKE:06d}", "take_uid": take, "take_name": take, "chosen": True, "split": "train"}
        found.append({**about, "content": digest(i, version), "exo_cam": "cam01", "start": i % PER_TAKE})
    return found


def timed(function: Callable, *args: Any, **kwargs: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


def build(stage: Stage, lake: Lake, resources: Resources, row: float, **inputs: Any) -> tuple[Report, float, float, list[tuple]]:
    """Run the stage; its report, wall clock, the part of it that started actors, and when how many rows were done."""
    look, _ = timed(pending, stage, lake, **inputs)
    begun, done = time.perf_counter(), []
    wall, report = timed(run, stage, lake, "r", resources, **inputs, progress=lambda n, _: done.append((time.perf_counter(), n)))
    start = max(0.0, done[0][0] - begun - look - resources.shard * row) if done else 0.0
    return report, wall, start, done


def many(folder: str, count: int, seconds: float) -> dict[str, float]:
    """A first build of `count` clips, one with nothing to do, one after 1 % changed."""
    lake, stage = Lake(f"{folder}/many"), captions(seconds)
    resources = Resources(cpus={"captions": 0.5}, failure_threshold=0)
    add(lake, "clips", clip_rows(count))
    report, full, full_start, _ = build(stage, lake, resources, seconds)
    assert report.computed == count
    first_peak = peak()
    report, nothing, _, _ = build(stage, lake, resources, seconds)
    assert (report.computed, report.outputs) == (0, count)
    select, chosen = timed(clips.selected, lake, Profile.load().clips)
    changed = max(PER_TAKE, count // 100 // PER_TAKE * PER_TAKE)
    rows = clip_rows(changed, first=count // 2 // PER_TAKE * PER_TAKE, version=1)
    add(lake, "clips", rows, replace=one_of("take_uid", {row["take_uid"] for row in rows}))
    report, little, little_start, _ = build(stage, lake, resources, seconds, keys=chosen)
    assert (report.computed, lake.count("captions")) == (changed, count)
    return {
        "noop_100k_s": nothing,
        "changed_1pct_ratio": (little - little_start) / (full - full_start),
        "changed_1pct_wall_ratio": little / full,
        "full_s": full,
        "full_start_s": full_start,
        "changed_1pct_s": little,
        "changed_1pct_start_s": little_start,
        "selected_s": select,
        "driver_peak_mb": first_peak,
        "driver_peak_rise_mb": peak() - first_peak,
    }


def thousand(folder: str, count: int = 1000, seconds: float = 0.1) -> dict[str, float]:
    """A stage that takes long enough to matter: what it takes beyond its rows' own time."""
    import ray

    lake = Lake(f"{folder}/thousand")
    add(lake, "clips", clip_rows(count))
    one_actor = Resources(cpus={"captions": ray.cluster_resources()["CPU"]}, failure_threshold=0)
    _, _, start, done = build(captions(seconds), lake, one_actor, seconds)
    (begin, before), (end, after) = done[0], done[-1]
    return {"overhead_1000": (end - begin) / ((after - before) * seconds) - 1, "start_s": start}


def million(folder: str, count: int) -> dict[str, float]:
    """Questions to tables of a million rows, written without the stage."""
    lake, stage = Lake(f"{folder}/million"), captions(0)
    for first in range(0, count, 200_000):
        rows = clip_rows(min(200_000, count - first), first)
        add(lake, "clips", rows)
        made = stage.fingerprints(pa.table({"clips": [row["content"] for row in rows]}))[0].to_pylist()
        add(
            lake,
            "captions",
            [{"clip_id": r["clip_id"], "fingerprint": fp, "content": fp, "text": ""} for r, fp in zip(rows, made, strict=True)],
        )
        add(lake, "latents", [{"clip_id": r["clip_id"], "model": "m", "name": "ego", "content": ""} for r in rows])
    before = peak()
    ask, ledger = timed(pending, stage, lake)
    assert (len(ledger), set(ledger["state"].to_pylist())) == (count, {"current"})
    rise = peak() - before
    releases.publish(lake, "r", Profile.load(), "first")
    clip = clip_rows(1, count // 2)[0]["clip_id"]

    class Nobody:  # models are the tracker's to answer for
        def adapters(self, name: str) -> list:
            return []

    where, found = min((timed(lineage.of_clip, lake, Nobody(), "egox", clip) for _ in range(3)), key=lambda t: t[0])
    assert found["releases"] == ["first"]
    return {"pending_1m_s": ask, "lineage_1m_ms": 1000 * where, "pending_1m_peak_rise_mb": rise}


def peak() -> float:
    """Most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    clips: Annotated[int, typer.Option(help="For the rebuild with nothing and with 1 % to do.")] = 100_000,
    rows: Annotated[int, typer.Option(help="For the questions.")] = 1_000_000,
    sleep: Annotated[float, typer.Option(help="Seconds a row of the first build takes.")] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from egomill.tasks.lake.cluster import connect

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = million(folder, rows) if rows else {}
        connect()
        found |= thousand(folder)
        found |= {"clips": clips, "rows": rows, "sleep": sleep, **many(folder, clips, sleep)} if clips else {}
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:26} {value:.4g}")


if __name__ == "__main__":
    typer.run(main)
