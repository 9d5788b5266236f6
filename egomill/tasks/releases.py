"""Releases: a name for one version of every table, written last, so that it exists whole or not at all.

Every pinned version is tagged first (clean-up cannot erase a tagged version), then checks run against those versions, then one row is
written. Training reads a release, never "the newest".
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from egomill.schemas.config import Profile
from egomill.schemas.tables import KEYS, RELEASED
from egomill.tasks.lake import Lake


def publish(lake: Lake, run_id: str, profile: Profile, name: str = "") -> tuple[dict, bool]:
    """The release of the tables as they stand, and whether it is new: nothing changed since the last one means that one.

    Errors: ValueError where a check fails (and then no release exists), or where `name` is taken by other versions.
    """
    tables = {table: lake.version(table) for table in RELEASED}
    last = latest(lake)
    if last and last["tables"] == tables and name in ("", last["name"]):
        return last, False
    name = name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{run_id[:6]}"
    if any(r["name"] == name for r in lake.read("releases", ["name"]).to_pylist()):
        raise ValueError(f"release {name!r} exists already, with other versions")
    checks = check(lake, tables)
    broken = [f"{k}: {v}" for k, v in checks.items() if v != "passed"]
    if broken:
        raise ValueError(f"release {name!r} refused: {'; '.join(broken)}")
    for table, version in tables.items():
        lake.tag(table, version, f"release-{name}")
    row = {
        "name": name,
        "created": datetime.now(UTC),
        "run_id": run_id,
        "tables": json.dumps(tables),
        "checks": json.dumps(checks),
        "profile": profile.model_dump_json(),
        "clips": len(set(lake.read("latents", ["clip_id"], version=tables["latents"])["clip_id"].to_pylist())),
    }
    lake.upsert("releases", [row])
    return _open(row), True


def check(lake: Lake, tables: dict[str, int]) -> dict[str, str]:
    """What must hold before a release exists: keys are unique, and no derived row is without its clip."""
    found = {}
    clips = set(lake.read("clips", ["clip_id"], version=tables["clips"])["clip_id"].to_pylist())
    for table, version in tables.items():
        rows = lake.read(table, list(KEYS[table]), version=version)
        unique = rows.group_by(list(KEYS[table])).aggregate([]).num_rows
        found[f"{table} keys are unique"] = "passed" if unique == rows.num_rows else f"{rows.num_rows - unique} doubled"
        if "clip_id" in KEYS[table] and table != "clips":
            orphans = sum(clip not in clips for clip in rows["clip_id"].to_pylist())
            found[f"{table} rows have clips"] = "passed" if orphans == 0 else f"{orphans} without"
    return found


def every(lake: Lake) -> list[dict]:
    """All releases, newest first."""
    return sorted((_open(r) for r in lake.read("releases").to_pylist()), key=lambda r: r["created"], reverse=True)


def latest(lake: Lake) -> dict | None:
    return next(iter(every(lake)), None)


def get(lake: Lake, name: str = "") -> dict:
    """A release by name ("" is the newest). ValueError where there is none."""
    releases = every(lake)
    found = next((r for r in releases if name in ("", r["name"])), None)
    if found is None:
        raise ValueError(f"no release {name!r} in {lake.uri}" if releases else f"no release in {lake.uri} yet: run `egomill rebuild`")
    return found


def _open(row: dict) -> dict:
    return {**row, "tables": json.loads(row["tables"]), "checks": json.loads(row["checks"]), "profile": json.loads(row["profile"])}
