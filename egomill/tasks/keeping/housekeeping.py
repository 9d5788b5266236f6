"""Housekeeping: few files, quick look-ups, and no more of the past on disk than somebody named.

Safe beside rebuilds and training: compaction gives way to commits, releases' tags keep their versions, and what a writer is about to
commit is younger than what clean-up takes (see `Lake.clean`). A run that lives keeps whatever was the newest since it began. Only readers
that are no runs lose a version that no release names, when it was replaced over `days` ago.
"""

from __future__ import annotations

from datetime import timedelta

from egomill.schemas.tables import TABLES
from egomill.tasks.lake import heartbeat, upkeep
from egomill.tasks.lake.tables import Lake


def keep(lake: Lake, days: float = 7.0) -> list[dict]:
    """Compact, index and clean every table. One line a table: {table, rows, files_before, files, freed_mb, versions_removed, ...}.

    `days`: how long versions that no release names stay readable after they were replaced. ValueError where it is negative.
    """
    if days < 0:
        raise ValueError(f"--days {days:g}: versions are kept for 0 days or more")
    heartbeat.sweep(lake)
    begun = [r["started"] for r in lake.read("runs", ["started"], "status = 'running' AND flow <> 'housekeeping'").to_pylist()]
    since = min(begun) - timedelta(seconds=heartbeat.QUIET) if begun else None  # clocks of hosts differ
    done = []
    for table in TABLES:
        before = upkeep.files(lake, table)
        compacted, indexed = upkeep.compact(lake, table), upkeep.index(lake, table)
        went = upkeep.clean(lake, table, timedelta(days=days), since)
        line = {
            "table": table,
            "rows": lake.count(table),
            "files_before": before,
            "files": upkeep.files(lake, table),
            "compacted": compacted,
        }
        line |= {"indexed": indexed, "freed_mb": went["bytes"] / 1e6, "versions_removed": went["versions"], "files_removed": went["files"]}
        done.append(line)
    return done
