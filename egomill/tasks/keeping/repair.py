"""What lies on disk is not what was written: take the damaged part out of the tables, so that the next run makes it again.

A file is damaged where it is gone, cut, cannot be read, or has another digest than when a release was published; a row, where its values
are not those that were committed. The fragment that holds it leaves the newest version, and its rows are pending like any that are missing.
A manifest that cannot be opened gives way to the one before it. A release that stands on damage is withdrawn: nobody trains on it.

Rows that nobody can make again (which runs there were, which releases, what was forgotten) are lost with their file. The answer says so.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from egomill.schemas.tables import TABLES
from egomill.tasks.keeping.verify import deep
from egomill.tasks.lake import damage, releases
from egomill.tasks.lake.tables import Damaged, Lake

RECORDS = ("runs", "releases", "forgotten", "failures", "recipes")  # read by every command, and the ones to mend first


def repair(lake: Lake) -> dict[str, Any]:
    """Mend all tables. Nothing else may run. Returns {mended: [{table, what, rows}], withdrawn: {release: why}}; `rows` that left the table
    are pending, or, in tables of `RECORDS`, lost.
    """
    sha256 = cache(partial(damage.sha256, lake))
    mended, withdrawn = records(lake), {}
    good: dict[tuple[str, str], str] = {}  # digests that releases were published with
    for release in (r for r in releases.every(lake) if not r["withdrawn"]):
        for table, files in (releases.file_digests(lake, release["name"]) or {}).items():
            good |= {(table, path): was for path, was in files.items()}
        wrong = [f"{d['what']} of {t['table']}" for t in deep(lake, release, sha256) for d in t["damaged"]]
        if wrong:
            texts = {k: json.dumps(release[k]) for k in ("tables", "content", "checks", "profile")}
            withdrawn[release["name"]] = f"damaged on disk: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
            lake.upsert("releases", [{**release, **texts, "withdrawn": datetime.now(UTC), "why": withdrawn[release["name"]]}])
    for table in TABLES:
        if table not in RECORDS:
            mended += _mend(lake, table, {path: was for (of, path), was in good.items() if of == table}, sha256)
    return {"mended": mended, "withdrawn": withdrawn}


def records(lake: Lake) -> list[dict[str, Any]]:
    """Mend the tables that every run reads and writes, that of runs among them."""
    return [line for table in RECORDS for line in _mend(lake, table, {}, partial(damage.sha256, lake))]


def _mend(lake: Lake, table: str, good: dict[str, str], sha256: Any) -> list[dict[str, Any]]:
    if not lake.exists(table):
        return []
    done: list[dict[str, Any]] = []
    try:
        lake.open(table)
    except Damaged:
        version = damage.step_back(lake, table)
        done.append(
            {
                "table": table,
                "what": f"stands at version {version} again" if version else "begins anew; its files are put aside",
                "rows": None,
            }
        )
    bad = damage.lacking(lake, table)
    for path in damage.files_of(lake, table).keys() & good.keys():
        if path not in bad and sha256(table, path) != good[path]:
            bad[path] = "is not what was published"
    if any(path.startswith("_indices/") for path in bad):
        damage.drop_indices(lake, table)
        done.append({"table": table, "what": "an index was damaged and is dropped; housekeeping makes it again", "rows": 0})
    holders = damage.holders(lake, table)
    parts = {holders[path]: f"{path} {why}" for path, why in bad.items() if path in holders}
    parts |= {number: why for number, why in damage.altered(lake, table).items() if number not in parts}
    if parts:
        rows = damage.drop(lake, table, parts)
        done.append({"table": table, "what": "; ".join(list(parts.values())[:3]), "rows": rows})
    return done
