"""After a refactor: show on a sample that the present code makes what is stored, and only then call the stored rows current.

For changed code alone. A row is a candidate where its settings, weights, table and inputs are the present ones and only modules differ.
Rejections are rows too: the sample holds some, and they have to come out with the same reason. Nothing below has to be told: inputs count
by their content, and that is the same.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from egomill.schemas.item import Item
from egomill.schemas.outcome import Rejected
from egomill.tasks.keeping.rederive import differences, rederive, stored
from egomill.tasks.keeping.standing import survey
from egomill.tasks.lake import recipes, upkeep
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake


def adopt(
    stage: Stage, lake: Lake, sample: int = 5, tolerance: float = 0.0, seed: int | None = None, items: dict[str, Item] | None = None
) -> dict[str, Any]:
    """Compare a random sample of at least one row a recipe and outcome; if none differs, relabel all candidates in one transaction.

    Returns {stage, candidates, compared, differs, adopted, code, skipped}; `differs` lists row and column, and then nothing was changed.
    ValueError on a sample below 1.
    """
    if sample < 1:
        raise ValueError(f"--sample {sample} compares nothing: take 1 or more")
    versions = {table: lake.version(table) for table in stage.reads}
    now = survey(stage, lake, versions, 1, None, None if items is None else list(items.values()))
    made = lake.read(stage.name, [stage.parent, "recipe", "inputs", "fingerprint"], stage.mine or None).to_pylist()
    rows = {r[stage.parent]: r for r in made}
    rows |= {key: r for key, r in now.past.items() if r["status"] == "rejected" and r["reason"] != "upstream" and key not in rows}
    known = recipes.read(lake, {r["recipe"] for r in rows.values() if r["recipe"]})
    changes = {name: recipes.differences(known.get(name), stage.parts) for name in {r["recipe"] for r in rows.values()}}

    skipped: Counter[str] = Counter()
    pools: dict[tuple[str, str], list[str]] = {}
    for key, row in sorted(rows.items()):
        if row["recipe"] == stage.recipe or key not in now.inputs:
            continue
        other = [f"{why} {what}" for why, what in changes[row["recipe"]] if why != "changed code"]
        if row["inputs"] != now.inputs[key]:
            other.append("changed input")
        skipped.update(other)
        if not other:
            pools.setdefault((row["recipe"], row.get("reason", "")), []).append(key)
    candidates = {key for pool in pools.values() for key in pool}
    chance = random.Random(seed)
    picked = {chance.choice(pool) for pool in pools.values()}
    rest = sorted(candidates - picked)
    picked |= set(chance.sample(rest, min(len(rest), max(0, sample - len(picked)))))

    differs = []
    for key, result in rederive(stage, lake, versions, sorted(picked), items):
        if "status" not in rows[key]:
            differs += differences(stage.name, stored(stage, lake, key), result, tolerance)
        elif not isinstance(result, Rejected) or result.reason != rows[key]["reason"]:
            said = result.reason if isinstance(result, Rejected) else type(result).__name__ if isinstance(result, Exception) else "rows"
            differs.append({"row": key, "column": "", "what": f"rejected as {rows[key]['reason']}, now {said}"})
    code = sorted({what for recipe, _ in pools for _, what in changes[recipe]})
    answer = {"stage": stage.id, "candidates": len(candidates), "compared": sorted(picked), "tolerance": tolerance}
    answer |= {"differs": differs, "adopted": 0, "code": code, "skipped": dict(skipped)}
    if differs or not candidates:
        return answer

    recipes.record(lake, stage.parts)
    labels = {rows[key]["fingerprint"]: {"fingerprint": now.wanted[key], "recipe": stage.recipe} for key in candidates}
    upkeep.relabel(lake, stage.name, stage.mine, lambda row: labels.get(row["fingerprint"]), ["fingerprint", "recipe"])
    lake.upsert("failures", [{**rows[key], **labels[rows[key]["fingerprint"]]} for key in candidates if "status" in rows[key]])
    return {**answer, "adopted": len(candidates)}
