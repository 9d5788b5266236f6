"""Recipes as rows: what made a derived row but for its inputs, written once for all rows of one making.

A row's fingerprint says only *that* something changed. Its recipe and its inputs, kept beside it, say what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from egomill.schemas.fingerprint import digest
from egomill.tasks.lake.tables import Lake

JSON_PARTS = ("reads", "config", "code", "constants")
PARTS = ("stage", *JSON_PARTS, "weights", "columns")


def record(lake: Lake, parts: dict[str, Any]) -> str:
    """Keep a recipe, if it is not kept yet; returns its digest."""
    name = digest(parts)
    if not lake.rows("recipes", [name], ["recipe"]):
        texts = {k: json.dumps(parts[k], sort_keys=True) for k in JSON_PARTS}
        lake.upsert("recipes", [{**parts, **texts, "recipe": name, "created": datetime.now(UTC)}])
    return name


def read(lake: Lake, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{digest: parts} of those that the lake knows."""
    rows = lake.rows("recipes", set(names))
    return {r["recipe"]: {k: json.loads(r[k]) if k in JSON_PARTS else r[k] for k in PARTS} for r in rows}


def differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[tuple[str, str]]:
    """[(why, what)]: ("changed setting", "relative_error: 0.001 -> 0.002"), ("changed code", "egomill/kernels/depth.py"), ...

    `old` is None where the lake does not know the recipe.
    """
    if old is None:
        return [("unknown recipe", "")]
    found = [("changed setting", line) for line in _changed(_flat(old["config"]), _flat(new["config"]))]
    for module in sorted({*old["code"], *new["code"]}):
        if old["code"].get(module) != new["code"].get(module):
            how = "" if module in old["code"] and module in new["code"] else " (new)" if module in new["code"] else " (not used any more)"
            found.append(("changed code", module.replace(".", "/") + ".py" + how))
    if old["weights"] != new["weights"]:
        found.append(("changed weights", f"{old['weights']} -> {new['weights']}"))
    found += [("changed key", line) for line in _changed(_flat(old["constants"]), _flat(new["constants"]))]
    if old["reads"] != new["reads"]:
        found.append(("changed reads", f"{', '.join(old['reads'])} -> {', '.join(new['reads'])}"))
    if old["columns"] != new["columns"]:
        found.append(("changed table", "columns of " + new["stage"]))
    return found


def inputs_changed(reads: list[str], old: list[str] | None, new: list[str]) -> list[tuple[str, str]]:
    """[("changed input", table), ...]; a take's only input is what lies on disk."""
    names = reads or ["files or annotations on disk"]
    if old is None or not len(old) == len(new) == len(names):
        return [("changed input", ", ".join(names))]
    return [("changed input", name) for name, a, b in zip(names, old, new, strict=True) if a != b]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, one in value.items() for k, v in _flat(one, f"{prefix}.{name}" if prefix else name).items()}


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    absent = "absent"
    pairs = {key: (old.get(key, absent), new.get(key, absent)) for key in sorted({*old, *new})}
    return [f"{key}: {a} -> {b}" for key, (a, b) in pairs.items() if digest(a) != digest(b)]
