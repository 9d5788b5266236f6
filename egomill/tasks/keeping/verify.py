"""Is a release what it says? Random rows of every table are made again, from the inputs that the release pins, and compared bit for bit.

A row is `ok` or `differs`; or it `cannot` be told: the settings or weights are not at hand, what lies on disk changed, or the code changed
since *and* makes something else now. Code that changed and makes the same is ok.

`deep` makes nothing again: it reads every file that the release stands on, and every row, and holds them against their digests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from egomill.schemas.fingerprint import content_of, file_sha256, folder_sha256
from egomill.schemas.tables import silent
from egomill.tasks.keeping.rederive import differences, on_disk, rederive, stored
from egomill.tasks.keeping.standing import survey
from egomill.tasks.lake import damage, recipes, releases
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Damaged, Lake

Sha256 = Callable[[Path], str]


def verify(lake: Lake, release: dict, stages: Iterable[Stage], sample: int = 3, seed: int | None = None) -> list[dict[str, Any]]:
    """[{table, rows, ok, differs, cannot, details}] for the stages of the release's own profile, `sample` inputs a table."""
    sha256 = cache(file_sha256)  # tables share the files of a take
    allow = release["profile"]["ingest"].get("allow", ())
    return [_table(lake, release["tables"], stage, sample, random.Random(seed), sha256, allow) for stage in stages]


def deep(lake: Lake, release: dict, sha256: Callable[[str, str], str] | None = None) -> list[dict[str, Any]]:
    """[{table, version, files, damaged: [{what, why}]}] for every table of a release: each byte of its files, each value of its rows.

    A release that was published before digests of files were kept is held against those of rows alone.
    """
    told, sha256 = releases.file_digests(lake, release["name"]), sha256 or partial(damage.sha256, lake)
    found = []
    for table, version in release["tables"].items():
        answer: dict[str, Any] = {"table": table, "version": version, "files": 0, "damaged": []}
        found.append(answer)
        wrong: dict[str, str] = {}
        kept = (told or {}).get(table, {})
        answer["files"] = len(kept)
        for path, was in kept.items():
            now = sha256(table, path)
            if now != was:
                wrong[f"{lake.folder(table)}/{path}"] = "is not what was published" if now else "is gone, or cannot be read"
        try:
            if kept and set(damage.files_of(lake, table, version)) != set(kept):
                wrong[f"version {version}"] = "stands on other files than when it was published"
            wrong |= {f"fragment {number}": why for number, why in damage.altered(lake, table, version).items()}
            releases.hold(lake, {**release, "content": {t: c for t, c in release["content"].items() if t == table}})
        except Damaged as error:
            wrong.setdefault(f"version {version}", str(error))
        answer["damaged"] = [{"what": what, "why": why} for what, why in wrong.items()]
    return found


def _table(
    lake: Lake, at: dict[str, int], stage: Stage, sample: int, chance: random.Random, sha256: Sha256, allow: Iterable[str]
) -> dict[str, Any]:
    versions = {table: at[table] for table in stage.reads}
    items = None if stage.reads else on_disk(lake, at["takes"], allow)
    now = survey(stage, lake, versions, 1, None, None if items is None else list(items.values()))
    rows = lake.read(stage.name, [stage.parent, "recipe", "inputs"], stage.mine or None, at[stage.name]).to_pylist()
    by_key = {r[stage.parent]: r for r in rows}
    keys = chance.sample(sorted(by_key), min(sample, len(by_key)))
    known = recipes.read(lake, {by_key[key]["recipe"] for key in keys})
    answer: dict[str, Any] = {"table": stage.id, "rows": len(rows), "ok": 0, "differs": 0, "cannot": 0, "details": []}

    def tell(key: str, verdict: str, what: str = "", column: str = "") -> None:
        answer[verdict] += 1
        if what:
            answer["details"].append({"row": key, "verdict": verdict, "column": column, "what": what})

    for key in keys:
        changed = recipes.differences(known.get(by_key[key]["recipe"]), stage.parts)
        obstacles = [f"{why} {what}".strip() for why, what in changed if why != "changed code"]
        if not obstacles and by_key[key]["inputs"] != now.inputs.get(key):
            obstacles = [what for _, what in recipes.inputs_changed(list(stage.reads), by_key[key]["inputs"], now.inputs.get(key, []))]
            obstacles = [f"changed since, or not in the release: {', '.join(obstacles)}"]
        if not obstacles and stage.reads:
            obstacles = _sources(lake, at, key, sha256)
        if obstacles:
            tell(key, "cannot", "; ".join(obstacles))
            continue
        old = stored(stage, lake, key, at[stage.name])
        if stage.reads and any(row["content"] != content_of(row, silent(stage.name, row)) for row in old):
            tell(key, "differs", "stored values are not those that were committed", "content")
            continue
        ((_, result),) = rederive(stage, lake, versions, [key], items)
        found = differences(stage.name, old, result)
        code = ", ".join(what for _, what in changed)
        if found and code:
            tell(
                key, "cannot", f"code changed since ({code}), and {found[0]['column'] or 'the row'} comes out otherwise", found[0]["column"]
            )
        elif found:
            tell(key, "differs", found[0]["what"], ", ".join(f["column"] for f in found))
        else:
            tell(key, "ok")
    return answer


def _sources(lake: Lake, at: dict[str, int], key: str, sha256: Sha256) -> list[str]:
    """Which files of the key's take are gone or changed since they were ingested."""
    uid = key
    if clip := lake.rows("clips", [key], ["take_uid"], at["clips"]):
        uid = clip[0]["take_uid"]
    (take,) = lake.rows("takes", [uid], ["root", "files"], at["takes"])
    found = ((Path(take["root"]) / name, file["sha256"]) for name, file in json.loads(take["files"]).items())
    return [f"{path} is gone or changed" for path, told in found if not path.exists() or _digest(path, sha256) != told]


def _digest(path: Path, sha256: Sha256) -> str:
    return folder_sha256(path) if path.is_dir() else sha256(path)
