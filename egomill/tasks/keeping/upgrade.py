"""A lake of the format before, brought to the present one: nothing is computed, nothing is lost, and killed at any moment the same command
finishes it.

Format 1 held a clip's latents in one row, a column each; format 2 holds one tensor a row (`LONG`). The rows are copied into a folder of
their own, version by version of those that releases pin, oldest first, so that each release finds exactly its rows at one version again.
Then releases, recipes and what names the old rows' contents are told of it, then the lake's format is written, and last the old folder
goes. Every step looks at what is done already.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from egomill.schemas.fingerprint import content_of, digest
from egomill.schemas.tables import FORMAT, TABLES, as_stored, columns, silent
from egomill.schemas.tensors import TENSOR
from egomill.tasks.lake import damage, heartbeat, recipes, releases, upkeep
from egomill.tasks.lake.tables import FORMAT_NOTE, Lake, Upgrading, one_of

log = logging.getLogger(__name__)
NAMES = ("exo", "prior", "ego", "cover", "text", "image")  # the columns of format 1 that are rows now
READ = {"generations": ("exo", "prior", "cover", "text", "image"), "scores": ("ego",)}  # of them, by which stage
MADE = ("fingerprint", "run_id", "recipe", "inputs")
ROWS = 16  # wide rows that are held at a time: megabytes each
STATE = "upgrade.json"  # {old version of latents: new version}

# latents as format 1 had them.
_WIDE = pa.schema([*list(TABLES["latents"])[:2], *list(TABLES["latents"])[3:8], *(pa.field(name, TENSOR) for name in NAMES)])


def upgrade(uri: str) -> dict[str, Any]:
    """Bring the lake to the present format. Returns {lake, format, was, versions (of latents), clips, restamped (rows, by table)}.

    Errors: ValueError where there is no lake, where it is of another format than 1, where a run is under way, and, before anything is
    written, for what cannot be carried over.
    """
    lake = Upgrading(uri)
    was = _format(lake)
    if was == FORMAT:
        lake.drop_note(STATE)
        if lake.exists("latents"):
            old(lake).remove("latents")
        return {"lake": lake.uri, "format": FORMAT, "was": was, "versions": 0, "clips": 0, "restamped": {}}
    standing = [release for release in releases.every(lake) if not release["withdrawn"]]
    _look(lake, standing)
    renamed = _recipes(lake)
    versions = _copy(lake, standing, renamed)
    restamped = _restamp(lake, renamed, _contents(lake))
    _releases(lake, standing, versions)
    lake.note(FORMAT_NOTE, json.dumps({"format": FORMAT}))
    old(lake).remove("latents")
    lake.drop_note(STATE)
    clips = len(set(lake.read("latents", ["clip_id"])["clip_id"].to_pylist()))
    return {"lake": lake.uri, "format": FORMAT, "was": was, "versions": len(versions), "clips": clips, "restamped": restamped}


def old(lake: Lake) -> Upgrading:
    """The lake with the latents of format 1."""
    return Upgrading(lake.uri, former=("latents",))


def _format(lake: Upgrading) -> int:
    number = lake.said()
    if number is None:
        if not any(lake.exists(table) for table in TABLES if table != "latents"):
            raise ValueError(f"no lake at {lake.uri}: none of its tables is there. Check --lake")
        number = 1
    if number not in (1, FORMAT):
        raise ValueError(f"lake {lake.uri} is of format {number}, and this version upgrades from 1 to {FORMAT}. Nothing was changed")
    return number


def _look(lake: Upgrading, standing: list[dict]) -> None:
    """ValueError where something runs, or cannot be carried over: nothing was written yet."""
    for row in lake.read("runs", ["run_id", "flow"], "status = 'running'").to_pylist():
        if heartbeat.alive(lake, row["run_id"]):
            raise ValueError(f"run {row['run_id']} ({row['flow']}) is under way in {lake.uri}: wait for it, or cancel it, then upgrade")
    if not old(lake).exists("latents"):
        return
    for version in {r["tables"]["latents"] for r in standing if not _carried(lake, r)} | {old(lake).version("latents")}:
        unknown = set(old(lake).open("latents", version).schema.names) - set(_WIDE.names)
        if unknown:
            raise ValueError(
                f"latents of {lake.uri}, version {version}: no format has the columns {', '.join(sorted(unknown))}. Nothing was changed; "
                "remove them with the program that added them, then upgrade"
            )


# -- the rows -----------------------------------------------------------------------------------------------------------


def _copy(lake: Upgrading, standing: list[dict], renamed: dict[str, str]) -> dict[int, int]:
    """{old version: new version} of latents, for all that a release pins and the newest."""
    done = {int(a): b for a, b in json.loads(lake.noted(STATE) or "{}").items()}
    source = old(lake)
    if not source.exists("latents"):
        return done
    wanted = {r["tables"]["latents"] for r in standing if not _carried(lake, r)} | {source.version("latents")}
    for version in sorted(wanted - done.keys()):
        done[version] = _to(lake, source, version, renamed)
        lake.note(STATE, json.dumps(done))
    return done


def _to(lake: Upgrading, source: Upgrading, version: int, renamed: dict[str, str]) -> int:
    """Make the new table hold what the old one does at a version; returns the new version."""
    asked = ["clip_id", "model", *MADE]
    there = {_marks(row) for row in lake.read("latents", asked).to_pylist()}
    rows = {_marks(_named(row, renamed)) for row in source.read("latents", asked, version=version).to_pylist()}
    for some in _parts(there - rows, 1000):
        gone = " OR ".join(f"({one_of('clip_id', [clip])} AND {one_of('model', [model])})" for clip, model, *_ in some)
        lake.commit("latents", None, replace=gone)
    for some in _parts(rows - there, ROWS):
        wide = [_named(row, renamed) for row in source.rows("latents", {clip for clip, *_ in some}, None, version)]
        wide = [row for row in wide if _marks(row) in some]
        lake.commit("latents", lake.write_fragments("latents", [one for row in wide for one in long(row)]))
    return lake.version("latents")


def _parts(found: Iterable[tuple], size: int) -> Iterator[list[tuple]]:
    found = sorted(found)
    for first in range(0, len(found), size):
        yield found[first : first + size]


def _named(row: dict, renamed: dict[str, str]) -> dict:
    """A row with the recipe that it has in format 2, where the table has other columns, and the fingerprint that follows."""
    recipe = renamed.get(row["recipe"], row["recipe"])
    return row if recipe == row["recipe"] else {**row, "recipe": recipe, "fingerprint": digest(recipe, row["inputs"])}


def _marks(row: dict) -> tuple:
    """What tells one making of a clip's latents from another."""
    return (row["clip_id"], row["model"], *(json.dumps(row[name]) for name in MADE))


def long(row: dict) -> list[dict]:
    """A row of format 1 as rows of format 2."""
    names = [name for name in NAMES if row.get(name) is not None]
    about = {name: row[name] for name in ("clip_id", "model", *MADE)} | {"names": sorted(names)}
    stored = as_stored("latents", [{**about, "name": name, "tensor": row[name]} for name in names])
    return [{**one, "content": content_of(one, silent("latents", one))} for one in stored]


def _contents(lake: Upgrading) -> dict[tuple[str, str], dict[str, str]]:
    """{(clip, content of its latents in format 1): {stage: what it stands for now}}, of the newest version."""
    if not old(lake).exists("latents"):
        return {}
    now: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in lake.read("latents", ["clip_id", "model", "name", "content"]).to_pylist():
        now.setdefault((row["clip_id"], row["model"]), []).append((row["name"], row["content"]))
    found = {}
    for row in old(lake).read("latents", ["clip_id", "model", "content"]).to_pylist():
        named = now.get((row["clip_id"], row["model"]), [])
        stands = {stage: digest(*sorted(pair for pair in named if pair[0] in names)) for stage, names in READ.items()}
        found[row["clip_id"], row["content"]] = stands
    return found


# -- what names them ----------------------------------------------------------------------------------------------------

Contents = dict[tuple[str, str], dict[str, str]]


def _recipes(lake: Lake) -> dict[str, str]:
    """{recipe of latents: the same with the columns that the table has now}."""
    known = recipes.read(lake, lake.read("recipes", ["recipe"], "stage = 'latents'")["recipe"].to_pylist())
    former = {name: parts for name, parts in known.items() if parts["columns"] == str(_WIDE)}
    return {name: recipes.record(lake, {**parts, "columns": columns("latents")}) for name, parts in former.items()}


def _restamp(lake: Lake, renamed: dict[str, str], contents: Contents) -> dict[str, int]:
    """Give rows the recipes and the inputs that they have in the present format, and the fingerprints that follow. Returns how many, by
    table."""
    names = {row["recipe"] for table in ("generations", "scores") for row in lake.read(table, ["recipe"]).to_pylist() if row["recipe"]}
    reads: dict[str, list[str]] = {name: parts["reads"] for name, parts in recipes.read(lake, names).items()}

    def labels(stage: str, key: str, row: dict) -> dict | None:
        recipe, inputs = renamed.get(row["recipe"], row["recipe"]), [*(row["inputs"] or ())]
        for place, table in enumerate(reads.get(row["recipe"], ())):
            if table == "latents" and place < len(inputs):
                inputs[place] = contents.get((key, inputs[place]), {}).get(stage, inputs[place])
        if (recipe, inputs) == (row["recipe"], list(row["inputs"] or ())):
            return None
        return {"fingerprint": digest(recipe, inputs), "recipe": recipe, "inputs": inputs}

    done = {}
    for table in READ:
        done[table] = upkeep.relabel(
            lake, table, "", lambda row, table=table: labels(table, row["clip_id"], row), ["fingerprint", "recipe", "inputs"]
        )
    failed = [(row, labels(row["stage"].partition("/")[0], row["key"], row)) for row in lake.read("failures").to_pylist()]
    told = [{**row, **new} for row, new in failed if new]
    lake.upsert("failures", told)
    return done | {"failures": len(told)}


def _carried(lake: Lake, release: dict) -> bool:
    """Whether a release names a version of the new table, which holds what it says."""
    try:
        return releases.digests(lake, {"latents": release["tables"]["latents"]})["latents"] == release["content"]["latents"]
    except (ValueError, OSError):
        return False


def _releases(lake: Lake, standing: list[dict], versions: dict[int, int]) -> None:
    """Let each release name the new table's version, with the digests of its rows and files."""
    rows = {row["name"]: row for row in lake.read("releases").to_pylist()}
    for release in standing:
        if _carried(lake, release):
            continue
        name, version = release["name"], versions[release["tables"]["latents"]]
        upkeep.tag(lake, "latents", version, f"release-{name}")
        files = releases.file_digests(lake, name)
        if files is not None:
            files["latents"] = {path: damage.sha256(lake, "latents", path) for path in damage.files_of(lake, "latents", version)}
            releases.note_files(lake, name, files)
        tables = {**release["tables"], "latents": version}
        content = {**release["content"], **releases.digests(lake, {"latents": version})}
        lake.upsert("releases", [{**rows[name], "tables": json.dumps(tables), "content": json.dumps(content)}])
