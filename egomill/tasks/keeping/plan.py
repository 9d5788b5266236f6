"""What a rebuild would compute, and why, before anything runs. Reads the lake, writes nothing.

A row is computed for certain where it has no row yet, its recipe changed, what it was made from changed, or it failed and may be tried
again. It *may* be computed where only something above it is: if that comes out with the content that it had, nothing below is made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from egomill.schemas.item import Item
from egomill.schemas.tables import KEYS
from egomill.tasks.keeping.standing import Survey, survey
from egomill.tasks.lake import recipes
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake

SAMPLE = 3  # keys named with each reason


@dataclass
class Step:
    """One stage of the plan: inputs = current + compute + may + blocked."""

    stage: str
    inputs: int = 0
    current: int = 0
    compute: int = 0
    may: int = 0
    blocked: int = 0  # no row of an earlier stage, and none coming
    retired: int = 0  # rows whose input is no more
    unknown: str = ""  # inputs that nobody can count yet
    reasons: list[dict] = field(default_factory=list)  # {why, what, rows, sample}; a row may have several

    def because(self, key: str, found: Iterable[tuple[str, str]]) -> None:
        for why, what in found:
            entry = next((r for r in self.reasons if (r["why"], r["what"]) == (why, what)), None)
            if entry is None:
                entry = {"why": why, "what": what, "rows": 0, "sample": []}
                self.reasons.append(entry)
            entry["rows"] += 1
            if len(entry["sample"]) < SAMPLE:
                entry["sample"].append(key)


@dataclass
class _Coming:
    """What the stages before will have done to each table, by its first key."""

    touched: dict[str, set[str]] = field(default_factory=dict)  # rows that will, or may, be made again
    fresh: dict[str, set[str]] = field(default_factory=dict)  # rows that are not there yet
    gone: dict[str, set[str]] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)  # inputs of which nobody knows how many rows they give


def plan(lake: Lake, steps: Iterable[tuple[Stage, list[str] | None, list[Item] | None]], attempts: int) -> list[dict]:
    """One `Step` a stage, as a dict. `steps`: stages in their order, each with the keys or items that a rebuild would hand it."""
    coming, found = _Coming(), []
    for stage, keys, items in steps:
        versions = {table: lake.version(table) for table in stage.reads}
        now = survey(stage, lake, versions, attempts, keys, items)
        found.append(asdict(_step(stage, lake, now, coming, keys is None)))
    return found


def _step(stage: Stage, lake: Lake, now: Survey, coming: _Coming, whole: bool) -> Step:
    step = Step(stage.id)
    reads = list(stage.reads)
    first = reads[0] if reads else ""
    gone = coming.gone.get(first, set())
    inputs = [key for key in now.inputs if key not in gone]
    fresh = coming.fresh.get(first, set()) - set(now.inputs) if whole else set()
    made = {r[stage.parent]: r for r in lake.read(stage.name, [stage.parent, "recipe", "inputs"], stage.mine or None).to_pylist()}
    before = {**now.past, **made}
    known = recipes.read(lake, {r["recipe"] for r in before.values() if r["recipe"]})
    pending = set(now.pending)
    again: set[str] = set()
    for key in inputs:
        above = [table for table in reads if key in coming.touched.get(table, ())]
        lacking = [table for table in now.missing.get(key, "").split(", ") if table]
        if lacking and not set(lacking) <= {*above, *(t for t in lacking if key in coming.fresh.get(t, ()))}:
            step.blocked += 1
            step.because(key, [("upstream missing", ", ".join(lacking))])
            continue
        if lacking:
            step.may += 1
            step.because(key, [("new input", ", ".join(lacking))])
        elif key in pending:
            step.compute += 1
            step.because(key, _why(stage, now, key, before.get(key), known))
        elif above:
            step.may += 1
            step.because(key, [("changed input", table) for table in above])
        else:
            step.current += 1
            continue
        again.add(key)
    for key in fresh:
        step.may += 1
        step.because(key, [("new input", first)])
    step.inputs = len(inputs) + len(fresh)
    retired = {key for key in made if key in now.retired or key in gone}
    step.retired = len(retired)
    if retired:
        step.reasons.append({"why": "retired", "what": f"no {first} any more", "rows": len(retired), "sample": sorted(retired)[:SAMPLE]})
    if coming.uncounted.get(first):
        step.unknown = f"{first} of {coming.uncounted[first]} inputs that are new or changed"

    if KEYS[stage.name][0] == stage.parent:
        coming.touched[stage.name] = again & set(made)
        coming.fresh[stage.name] = (again | fresh) - set(made)
        coming.gone[stage.name] = retired
    else:  # several rows an input: those that are there may go or stay, and there may be more
        child = KEYS[stage.name][0]
        rows = lake.read(stage.name, [child, stage.parent]).to_pylist()
        coming.touched[stage.name] = {r[child] for r in rows if r[stage.parent] in again}
        coming.gone[stage.name] = {r[child] for r in rows if r[stage.parent] in retired}
        coming.uncounted[stage.name] = len(again | fresh)
    return step


def _why(stage: Stage, now: Survey, key: str, before: dict | None, known: dict[str, dict]) -> list[tuple[str, str]]:
    if before is None:
        return [("new input", ", ".join(stage.reads) or "on disk")]
    found = []
    if before["recipe"] != stage.recipe:
        found += recipes.differences(known.get(before["recipe"]), stage.parts)
    reads = list(stage.reads)
    if before["inputs"] != now.inputs[key] and not any(why == "changed reads" for why, _ in found):
        found += recipes.inputs_changed(reads, before["inputs"], now.inputs[key])
    return found or [("retry of failures", before.get("reason", ""))]
