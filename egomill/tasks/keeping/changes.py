"""What is different between two releases: which clips came, went and changed, by which stage, and why.

A row changed where its content did; one that was made again and came out the same is `remade`. The stage that a change began with is one
whose own recipe changed, or a take whose files did; everything below it follows.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from egomill.schemas.tables import KEYS, RELEASED
from egomill.tasks.lake import recipes, releases
from egomill.tasks.lake.tables import Lake

Rows = dict[tuple, dict]


def diff(lake: Lake, a: str, b: str) -> dict[str, Any]:
    """{a, b, came, went, changed, tables, why}; a clip of a release is one that it holds latents of. ValueError on an unknown or
    withdrawn release."""
    old, new = (releases.get(lake, name) for name in (a, b))
    before, after = ({table: _rows(lake, table, r["tables"].get(table)) for table in RELEASED} for r in (old, new))
    known = recipes.read(lake, {row["recipe"] for side in (before, after) for of in side.values() for row in of.values() if row["recipe"]})
    tables, changes = {}, {}
    for table in RELEASED:
        x, y = before[table], after[table]
        both = x.keys() & y.keys()
        other = {key for key in both if x[key]["content"] != y[key]["content"]}
        remade = sum(x[key]["run_id"] != y[key]["run_id"] for key in both - other)
        tables[table] = {"came": len(y.keys() - x.keys()), "went": len(x.keys() - y.keys()), "changed": len(other), "remade": remade}
        for key in other:
            changes.setdefault(key[0], []).extend((table, *reason) for reason in _why(known, x[key], y[key]))

    at, to = ({key[0] for key in side["latents"]} for side in (before, after))
    failed = {(r["key"], r["stage"].partition("/")[0]): r["reason"] for r in lake.read("failures", ["key", "stage", "reason"]).to_pylist()}
    changed = [_changed(clip, changes, before, after) for clip in sorted(at & to) if clip in changes]
    return {
        "a": old["name"],
        "b": new["name"],
        "came": [{"clip_id": clip, "because": _absent(clip, before, after, {})} for clip in sorted(to - at)],
        "went": [{"clip_id": clip, "because": _absent(clip, after, before, failed)} for clip in sorted(at - to)],
        "changed": changed,
        "tables": tables,
        "why": [
            {"stage": stage, "why": why, "what": what, "clips": n}
            for (stage, why, what), n in Counter(
                (cause["stage"], cause["why"], cause["what"]) for clip in changed for cause in clip["by"]
            ).most_common()
        ],
    }


def _rows(lake: Lake, table: str, version: int | None) -> Rows:
    """A release's rows of a table by key; none of a table that is younger than the release."""
    if version is None:
        return {}
    more = ["take_uid", "chosen", "why"] if table == "clips" else []
    rows = lake.read(table, [*KEYS[table], "content", "recipe", "inputs", "run_id", *more], version=version).to_pylist()
    return {tuple(row[key] for key in KEYS[table]): row for row in rows}


def _why(known: dict[str, dict], old: dict, new: dict) -> list[tuple[str, str]]:
    made = known.get(new["recipe"])
    if made is None:
        return [("unknown recipe", "")]
    found = recipes.differences(known.get(old["recipe"]), made) if old["recipe"] != new["recipe"] else []
    return found + (recipes.inputs_changed(made["reads"], old["inputs"], new["inputs"]) if old["inputs"] != new["inputs"] else [])


def _changed(clip: str, changes: dict[str, list[tuple]], before: dict[str, Rows], after: dict[str, Rows]) -> dict[str, Any]:
    """A clip's changed tables, and the causes among them: what is not merely a changed row of a table of the release."""
    of_take = changes.get(after["clips"][(clip,)]["take_uid"], [])
    found = [(table, why, what) for table, why, what in (*of_take, *changes[clip]) if why != "changed input" or what not in RELEASED]
    by = [{"stage": table, "why": why, "what": what} for table, why, what in dict.fromkeys(found)]
    return {"clip_id": clip, "tables": list(dict.fromkeys(table for table, *_ in changes[clip])), "by": by}


def _absent(clip: str, lacks: dict[str, Rows], has: dict[str, Rows], failed: dict[tuple[str, str], str]) -> str:
    """Why one release has no latents of a clip that the other has."""
    take = has["clips"][(clip,)]["take_uid"] if (clip,) in has["clips"] else clip.rsplit(".", 2)[0]
    if (take,) not in lacks["takes"]:
        return f"no take {take}" + _reason(failed, take, "takes")
    row = lacks["clips"].get((clip,))
    if row is None:
        return "clips: no such window" + _reason(failed, take, "clips")
    if not row["chosen"]:
        return f"clips: {row['why']}"
    for table in RELEASED[2:]:
        if clip not in {key[0] for key in lacks[table]}:
            return f"{table}: no row" + _reason(failed, clip, table)
    return "clips: changed"


def _reason(failed: dict[tuple[str, str], str], key: str, stage: str) -> str:
    return f" ({failed[key, stage]})" if (key, stage) in failed else ""
