"""A participant withdraws: a take and all that was made of it leaves the lake, on disk and not only from view.

The order is such that a crash anywhere is mended by asking again: first it is written down that the take is forgotten (from then on no
rebuild takes it and no release may hold it) and what held it; then releases lose their tags, adapters are marked, rows are deleted, and at
last every file that held one of them, or an older version of one, is removed. No run goes on beside it (`runs.recorded`), and a writer that
is none, or was thought dead, is refused by `Lake.commit`. What stays is the fact: a digest of the take's uid, when, how many rows, which
releases and adapters. Whoever knows the uid can recognise the digest; that is what it is for.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from egomill.models.method import split
from egomill.schemas.fingerprint import digest
from egomill.schemas.item import Item
from egomill.schemas.tables import KEYS, TABLES, take_of
from egomill.tasks.lake import releases, upkeep
from egomill.tasks.lake.tables import Lake, one_of
from egomill.tasks.lake.tracking import Tracker

OF_CLIPS = tuple(table for table, keys in KEYS.items() if keys[0] == "clip_id")
TAINTED = "tainted"
SAMPLES = "samples"  # where trainings keep pictures of training clips


def withheld(lake: Lake, items: list[Item]) -> list[Item]:
    """Discovered takes, those that were forgotten replaced by what becomes a nameless rejection `forgotten`."""
    gone = {row["take"]: row["at"] for row in lake.read("forgotten", ["take", "at"]).to_pylist()}
    found: dict[str, Item] = {}
    for item in items:
        take = digest(take_of("takes", (item.key,)))
        if take in gone:
            item = Item(f"forgotten-{take}", digest("forgotten", take), {"fault": ["forgotten", f"withdrawn on {gone[take]:%F}"]})
        found[item.key] = item
    return list(found.values())


def find(lake: Lake, take: str) -> Take:
    """What the lake knows under a uid or a name. ValueError where that is nothing, or several takes."""
    # The newest first; versions without a name last: of a forgetting that was broken off they still know the take's name.
    for version in dict.fromkeys([*reversed(_standing(lake, "takes")), *reversed(upkeep.versions(lake, "takes"))]):
        rows = lake.read("takes", ["take_uid", "take_name"], None, version).to_pylist()
        names = {r["take_uid"]: r["take_name"] for r in rows}
        uids = [uid for uid, name in names.items() if take in (uid, name)]
        if len(uids) > 1:
            raise ValueError(f"several takes are named {take}: {', '.join(sorted(uids))}; say which uid")
        if uids:
            return Take(uids[0], names[uids[0]], _others(lake, uids[0], rows))
    if lake.rows("failures", [take], ["key"]) or lake.rows("forgotten", [digest(take)], ["take"]):
        return Take(take, "", _others(lake, take, []))
    raise ValueError(f"no take {take!r} in {lake.uri}: give its uid or its name, as the data set writes them")


def _others(lake: Lake, uid: str, more: list[dict]) -> str:
    """Uids and names of other takes, now and in `more` rows, and the words that every lake holds."""
    rows = [*lake.read("takes", ["take_uid", "take_name"]).to_pylist(), *more]
    words = [word for row in rows if row["take_uid"] != uid for word in row.values() if word]
    return " ".join((*words, *TABLES, *(column for table in TABLES.values() for column in table.names)))


@dataclass(frozen=True)
class Take:
    """A take, how to find its rows, and which words on disk are its own."""

    uid: str
    name: str
    others: str  # uids and names of all other takes, and words that every lake holds

    def keys(self, lake: Lake, table: str, version: int | None = None, deleted: bool = False) -> set[str]:
        """Key values of its rows in a table; with `deleted` also of rows that are deleted in this version but still lie in its files."""
        column = KEYS[table][0]
        uid = self.uid.replace("'", "''")
        where = f"take_uid = '{uid}'" if table == "takes" else f"starts_with({column}, '{uid}.')"
        found = (
            upkeep.held(lake, table, column, where, version) if deleted else lake.read(table, [column], where, version)[column].to_pylist()
        )
        return {key for key in found if take_of(table, (key,)) == self.uid}

    @property
    def words(self) -> list[bytes]:
        """What can be searched for in files, as texts write it: uid and name, where they are no part of another take's, nor so short or
        common that they could stand anywhere."""
        rare = [w for w in (self.uid, self.name) if len(w) > 4 and not w.isalpha() and w not in self.others]
        forms = (form for w in rare for form in (w, json.dumps(w)[1:-1], html.escape(w), quote(w)))
        return [form.encode() for form in dict.fromkeys(forms)]

    def veiled(self, text: str) -> str:
        """The text without its uid and name."""
        words = "|".join(re.escape(word) for word in sorted({self.uid, self.name}, key=len, reverse=True) if word)
        return re.sub(rf"(?<!\w)(?:{words})(?!\w)", "(a forgotten take)", text)


def forget(lake: Lake, tracker: Tracker | None, take: Take, run_id: str) -> dict[str, Any]:
    """Remove a take. Nothing else may run meanwhile (`runs.ALONE`). Returns what was done, what is marked, and what could not be removed.

    `left` names versions that hold a row of the take, and files of a lake on disk in which `words` can be read: empty when all is well.
    """
    name = digest(take.uid)
    empty = {"take": name, "at": datetime.now(UTC), "run_id": run_id, "rows": "{}", "releases": "{}", "adapters": "[]", "generations": "{}"}
    row: dict[str, Any] = {**next(iter(lake.rows("forgotten", [name])), empty), "done": None}
    told = {k: json.loads(row[k]) for k in ("rows", "releases", "adapters", "generations")}

    def keep(**more: Any) -> None:
        lake.upsert("forgotten", [row | {k: json.dumps(v, sort_keys=True) for k, v in told.items()} | more])

    held, tags = _held_by(lake, take)
    told["releases"] = {**held, **told["releases"]}
    keep()
    _withdraw(lake, told["releases"], tags, f"a take that it held was forgotten on {row['at']:%F}")

    marked = _taint(tracker, told["releases"], name) if tracker else _Marked([], [], [])
    told["adapters"] = list({a["spec"]: a for a in (*told["adapters"], *marked.adapters)}.values())
    tainted = [a["spec"] for a in told["adapters"] if a["trained"]]
    made = Counter(split(adapter)[0] for adapter in lake.read("generations", ["adapter"])["adapter"].to_pylist())
    told["generations"] = {spec: made[spec] for spec in tainted if made[spec]}
    keep()

    counts = _delete(lake, take)
    told["rows"] = {table: told["rows"].get(table, 0) + counts.get(table, 0) for table in {**told["rows"], **counts}}
    keep()
    for table in TABLES:
        upkeep.purge(lake, table)
    pages = _pages(lake, take)
    left = _left(lake, take)
    keep(done=None if left else datetime.now(UTC))
    more = {"pictures": marked.pictures, "pages": pages, "checkpoints": _checkpoints(lake, marked.runs)}
    return {"take": name, **told, **more, "searched": bool(lake.is_local and take.words), "left": left}


def _standing(lake: Lake, table: str) -> list[int]:
    """The versions that a purge spares."""
    return sorted({lake.version(table), *upkeep.tags(lake, table).values()})


def _held_by(lake: Lake, take: Take) -> tuple[dict[str, dict], set[str]]:
    """{release: {trained, rows}} and all tags on versions whose files hold a row of the take; `rows`: whether it still listed them."""
    tags: set[str] = set()
    for table in ("takes", *OF_CLIPS):
        tags |= {
            tag for tag, version in upkeep.tags(lake, table).items() if tag not in tags and take.keys(lake, table, version, deleted=True)
        }
    found = {}
    for release in releases.every(lake):
        if f"release-{release['name']}" in tags and not release["withdrawn"]:
            at = release["tables"]
            clips = one_of("clip_id", take.keys(lake, "clips", at["clips"]))
            trained = lake.count("clips", f"{clips} AND chosen AND split = 'train'", at["clips"]) > 0
            found[release["name"]] = {"trained": trained, "rows": bool(take.keys(lake, "takes", at["takes"]))}
    return found, tags


def _withdraw(lake: Lake, held: dict[str, dict], tags: set[str], why: str) -> None:
    for release in releases.every(lake):
        if release["name"] in held and not release["withdrawn"]:
            texts = {k: json.dumps(release[k]) for k in ("tables", "content", "checks", "profile")}
            old = "" if held[release["name"]]["rows"] else "; the release did not list it any more, but its files held older rows"
            lake.upsert("releases", [{**release, **texts, "withdrawn": datetime.now(UTC), "why": why + old}])
    for table in TABLES:
        for tag in set(upkeep.tags(lake, table)) & {*tags, *(f"release-{name}" for name in held)}:
            upkeep.untag(lake, table, tag)


@dataclass
class _Marked:
    adapters: list[dict]
    pictures: list[dict]
    runs: list[str]


def _taint(tracker: Tracker, held: dict[str, dict], take: str) -> _Marked:
    """Mark in MLflow what was trained on the take, and remove the pictures that its trainings kept."""
    found = _Marked([], [], [])
    mark = {TAINTED: f"trained on a forgotten take, {take}"}
    for name in tracker.names():
        for row in tracker.adapters(name):
            release = row["tags"].get("release", "")
            if release in held:
                about = {"release": release, "run": row["run_id"], "aliases": row["aliases"], "trained": held[release]["trained"]}
                found.adapters.append({"spec": f"{name}@v{row['version']}", **about})
                if about["trained"]:
                    tracker.tag_version(name, row["version"], mark)
    for release in (name for name, about in held.items() if about["trained"]):
        for run in tracker.runs_on(release):
            tracker.tags(run, mark)
            found.runs.append(run)
            found.pictures += [{"run": run, "path": path, "removed": tracker.remove(run, path)} for path in tracker.files(run, SAMPLES)]
    return found


def _delete(lake: Lake, take: Take) -> dict[str, int]:
    """Delete the take's rows and failures, and its names from what other failures and runs say; how many rows, by table."""
    counts = {}
    for table in ("takes", *OF_CLIPS):
        where = one_of(KEYS[table][0], take.keys(lake, table))
        counts[table] = lake.count(table, where)
        lake.commit(table, None, replace=where, fence=True)
    failures = lake.read("failures", ["key", "stage"]).to_pylist()
    mine = [(r["key"], r["stage"]) for r in failures if take_of("failures", (r["key"], r["stage"])) == take.uid]
    counts["failures"] = len(mine)
    where = " OR ".join(f"({one_of('key', [key])} AND {one_of('stage', [stage])})" for key, stage in mine)
    lake.commit("failures", None, replace=where, fence=True)
    for table in ("failures", "runs"):
        rows = [(r, take.veiled(r["detail"] or "")) for r in lake.read(table).to_pylist()]
        lake.upsert(table, [{**r, "detail": said} for r, said in rows if said != (r["detail"] or "")])
    return {table: n for table, n in counts.items() if n}


def _pages(lake: Lake, take: Take) -> list[str]:
    """Report pages in the lake's folder that show the take: removed, since they can be written again."""
    shown = [page for page in Path(lake.uri).glob("*.html") if _spoken_of(page, take)] if lake.is_local else []
    for page in shown:
        page.unlink()
    return [str(page) for page in shown]


def _left(lake: Lake, take: Take) -> list[str]:
    versions = ((table, version) for table in ("takes", *OF_CLIPS) for version in upkeep.versions(lake, table))
    found = [f"{table} version {version}" for table, version in versions if take.keys(lake, table, version, deleted=True)]
    files = (path for path in sorted(Path(lake.uri).rglob("*")) if path.is_file()) if lake.is_local else iter(())
    return found + [str(path) for path in files if _spoken_of(path, take)]


def _spoken_of(path: Path, take: Take) -> bool:
    """Whether one of the take's words stands in a file, read in pieces."""
    words, tail = take.words, b""
    with path.open("rb") as file:
        while words and (block := file.read(1 << 24)):
            if any(word in tail + block for word in words):
                return True
            tail = block[-max(map(len, words)) :]
    return False


def _checkpoints(lake: Lake, runs: list[str]) -> list[str]:
    """What trainings that did not end left in the lake: weights that saw the take."""
    folders = sorted((Path(lake.uri) / "training").glob("*")) if lake.is_local else []
    return [str(folder) for folder in folders if any(folder.name.endswith(run[:8]) for run in runs)]
