"""Releases: a name for one version of every table, written last, so that it exists whole or not at all.

Checks run against the pinned versions, then every one is tagged (clean-up cannot erase a tagged version), then one row is written.
Training reads a release, never "the newest", and only where its tables still hold what it was made of: digests of rows stand in the
release's own row, those of files in `releases/NAME.json` beside the tables. A release that held a take which was forgotten, or that was
damaged on disk, is withdrawn: its row stays.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime

from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.tables import KEYS, RELEASED, take_of
from egomill.tasks.lake import damage, upkeep
from egomill.tasks.lake.tables import Damaged, Lake


def publish(lake: Lake, run_id: str, profile: Profile, name: str = "") -> tuple[dict, bool]:
    """The release of the tables as they stand, and whether it is new: the same content as in the last one means that one, whatever
    compaction or `adopt` did to the tables since.

    Errors: ValueError where a check fails or there is no clip (and then no release exists), and where `name` is taken by other versions or
    is no name.
    """
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*", name):
        raise ValueError(f"release {name!r} cannot be named so: letters, digits, - and _ and single dots, beginning with a letter or digit")
    # Children first: what another rebuild adds meanwhile to a parent does no harm, a child without its parent would.
    tables = {table: lake.version(table) for table in reversed(RELEASED)}
    last = latest(lake)
    content = digests(lake, tables)
    clips = len(set(lake.read("latents", ["clip_id"], version=tables["latents"])["clip_id"].to_pylist()))
    if not clips:
        raise ValueError(f"no release of {lake.uri}: no clip has come through all stages. {why_none(lake)}")
    if last and _held(last["content"]) == _held(content) and name in ("", last["name"]):
        return last, False
    name = name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{run_id[:6]}"
    if any(r["name"] == name for r in lake.read("releases", ["name"]).to_pylist()):
        raise ValueError(f"release {name!r} exists already, with other versions: choose another name")
    checks = check(lake, tables)
    broken = [f"{k}: {v}" for k, v in checks.items() if v != "passed"]
    if broken:
        raise ValueError(f"release {name!r} refused: {'; '.join(broken)}")
    known = (file_digests(lake, last["name"]) if last else None) or {}
    files = {
        t: {path: known.get(t, {}).get(path) or damage.sha256(lake, t, path) for path in damage.files_of(lake, t, v)}
        for t, v in tables.items()
    }
    if gone := [f"{lake.folder(t)}/{path}" for t, found in files.items() for path, sha256 in found.items() if not sha256]:
        raise Damaged(f"release {name!r} refused: {', '.join(gone)} of {lake.uri} cannot be read: `egomill repair`, then rebuild")
    for table, version in tables.items():
        upkeep.tag(lake, table, version, f"release-{name}")
    note_files(lake, name, files)
    row = {
        "name": name,
        "created": datetime.now(UTC),
        "run_id": run_id,
        "tables": json.dumps(tables),
        "content": json.dumps(content),
        "checks": json.dumps(checks),
        "profile": profile.model_dump_json(),
        "clips": clips,
    }
    lake.upsert("releases", [row])
    return _open(lake.rows("releases", [name])[0]), True


def _held(content: dict[str, str]) -> dict[str, str]:
    """Without tables that hold nothing: one that came to the format later changes no release."""
    return {table: told for table, told in content.items() if told != digest([])}


def note_files(lake: Lake, name: str, files: dict[str, dict[str, str]]) -> None:
    """Keep what `file_digests` gives."""
    lake.note(_place(name), json.dumps({"files": files, "digest": digest(files)}))


def file_digests(lake: Lake, name: str) -> dict[str, dict[str, str]] | None:
    """{table: {path within it: sha256}} of the files that a release stood on when it was published; None where that is not at hand."""
    try:
        told = json.loads(lake.noted(_place(name)) or "")
        return told["files"] if told["digest"] == digest(told["files"]) else None
    except (ValueError, TypeError, KeyError):
        return None


def why_none(lake: Lake) -> str:
    """The most frequent reasons for which rows were rejected or failed, in words."""
    rows = lake.read("failures", ["stage", "reason"], "reason <> 'upstream'").to_pylist()
    counts = Counter((r["reason"], r["stage"].partition("/")[0]) for r in rows)
    said = (
        ", ".join(f"{n} {reason} ({stage})" for (reason, stage), n in counts.most_common(3)) or "nothing was rejected, and nothing failed"
    )
    return f"{said}; `egomill failures --lake {lake.uri}` tells more"


def digests(lake: Lake, tables: dict[str, int]) -> dict[str, str]:
    """{table: digest of its rows' keys and contents} at these versions, whatever order the rows lie in and whoever made them."""
    found = {}
    for table, version in tables.items():
        rows = lake.read(table, [*KEYS[table], "content"], version=version)
        found[table] = digest(sorted(map(list, zip(*(column.to_pylist() for column in rows.columns), strict=True)), key=repr))
    return found


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
    gone = set(lake.read("forgotten", ["take"])["take"].to_pylist())
    there = {take_of(t, (key,)) for t, v in tables.items() for key in lake.read(t, [KEYS[t][0]], version=v)[0].to_pylist()}
    back = sum(digest(uid) in gone for uid in there) if gone else 0
    found["no take that was forgotten"] = "passed" if back == 0 else f"{back} came back"
    return found


def every(lake: Lake) -> list[dict]:
    """All releases, newest first, withdrawn ones too."""
    return sorted((_open(r) for r in lake.read("releases").to_pylist()), key=lambda r: r["created"], reverse=True)


def latest(lake: Lake) -> dict | None:
    """The newest that was not withdrawn."""
    return next((r for r in every(lake) if not r["withdrawn"]), None)


def get(lake: Lake, name: str = "", withdrawn: bool = False) -> dict:
    """A release by name ("" is the newest). ValueError where there is none, or it was withdrawn and `withdrawn` ones are not asked for, and
    where its tables do not hold what it was made of any more: damaged, or a table was made anew and its versions count from one again.
    """
    releases = [r for r in every(lake) if withdrawn or name == r["name"] or not r["withdrawn"]]
    found = next((r for r in releases if name in ("", r["name"])), None)
    if found is None:
        raise ValueError(f"no release {name!r} in {lake.uri}" if releases else f"no release in {lake.uri} yet: run `egomill rebuild`")
    if found["withdrawn"] and not withdrawn:
        raise ValueError(f"release {found['name']!r} was withdrawn on {found['withdrawn']:%F}: {found['why']}")
    if not found["withdrawn"]:
        hold(lake, found)
    return found


def hold(lake: Lake, release: dict) -> None:
    """Damaged where a table, at the version that the release names, holds other rows than it did. Reads keys and digests, no values."""
    for table, was in release["content"].items():
        version = release["tables"][table]
        try:
            now = digests(lake, {table: version})
        except Damaged as error:
            raise Damaged(f"release {release['name']!r} is damaged: {error}") from None
        if now[table] != was:
            raise Damaged(
                f"release {release['name']!r} is damaged: version {version} of table {table} holds other rows than when it was published. "
                f"`egomill repair --lake {lake.uri}` withdraws the release; then rebuild"
            )


def _place(name: str) -> str:
    return f"releases/{name}.json"


def _open(row: dict) -> dict:
    return {**row, **{name: json.loads(row[name] or "{}") for name in ("tables", "content", "checks", "profile")}}
