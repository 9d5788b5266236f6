"""Few files, quick look-ups, and no more of the past on disk than releases name."""

from __future__ import annotations

from prefect import flow

from egomill.flows.steps import do, say
from egomill.schemas.config import Profile
from egomill.tasks.keeping import housekeeping as tasks
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.tables import Lake


@flow(name="housekeeping", log_prints=True, validate_parameters=False)
def housekeeping(lake: str, days: float = 7.0) -> dict:
    """Compact and index the tables, delete versions older than `days` that no release names. Returns {freed_mb, tables}."""
    with recorded(Lake(lake), "housekeeping", Profile.load("local")) as run:
        tables = do("housekeeping", tasks.keep, run.lake, days)
    freed = sum(t["freed_mb"] for t in tables)
    files = sum(t["files"] for t in tables)
    say(f"housekeeping: {files} data files ({sum(t['files_before'] for t in tables)} before), {freed:.1f} MB freed", "bold")
    for t in tables:
        if not t["compacted"]:
            say(f"  warning: {t['table']} was not compacted, others were writing it", "yellow")
    return {"freed_mb": freed, "tables": tables}
