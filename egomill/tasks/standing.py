"""How a stage's table stands to what it ought to be: what goes in, what is there already, what has failed before. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from egomill.schemas.tables import KEYS
from egomill.tasks.lake import Lake

if TYPE_CHECKING:
    from egomill.tasks.stage import Item, Stage


@dataclass(frozen=True)
class Survey:
    """How a stage's table stands to what it ought to be. Keys are those of the inputs."""

    inputs: dict[str, list[str]]  # contents of what each row is to be made from
    wanted: dict[str, str]  # the fingerprints that this gives
    missing: dict[str, str]  # tables upstream that have no row for the key
    retired: set[str]  # keys in the made table without any input
    have: dict[str, str]  # fingerprints in the made table
    past: dict[str, dict]  # rows of failures
    done: dict[str, str]  # outputs, rejected or failed: what needs no work
    pending: list[str]


def survey(
    stage: Stage,
    lake: Lake,
    versions: dict[str, int],
    attempts: int,
    keys: Iterable[str] | None = None,
    items: list[Item] | None = None,
) -> Survey:
    """Three questions to the tables: what goes in, what is there already, what has failed before."""
    inputs, missing, retired = _inputs(stage, lake, versions, keys, items)
    have = _state(stage, lake)
    past = {row["key"]: row for row in lake.read("failures", where=f"stage = '{stage.id}'").to_pylist()}
    wanted = {key: stage.fingerprint(made_from) for key, made_from in inputs.items()}
    pending: list[str] = []
    done: dict[str, str] = {}
    for key, fingerprint in wanted.items():
        before = past.get(key)
        if have.get(key) == fingerprint:
            done[key] = "outputs"
        elif before and before["fingerprint"] == fingerprint and _final(before, attempts):
            done[key] = before["status"]
        else:
            pending.append(key)
    return Survey(inputs, wanted, missing, retired, have, past, done, pending)


def _inputs(
    stage: Stage, lake: Lake, versions: dict[str, int], keys: Iterable[str] | None, items: list[Item] | None
) -> tuple[dict[str, list[str]], dict[str, str], set[str]]:
    """Contents that the rows are made from; what is missing upstream, by key; keys in the made table without any input."""
    if items is not None:
        return {item.key: [item.digest] for item in items}, {}, set()
    states = {}
    for i, (table, version) in enumerate(versions.items()):
        state = lake.read(table, [KEYS[table][0], "content"], stage.where if i == 0 else None, version)
        states[table] = dict(zip(state[0].to_pylist(), state[1].to_pylist(), strict=True))
    first, *others = states
    every = states[first]
    chosen = every if keys is None else {k: every[k] for k in keys if k in every}
    inputs = {k: [content, *(states[t].get(k, "") for t in others)] for k, content in chosen.items()}
    missing = {k: ", ".join(t for t in others if k not in states[t]) for k in chosen if any(k not in states[t] for t in others)}
    made = lake.read(stage.name, [stage.parent], stage.mine)[0].to_pylist()
    return inputs, missing, set(made) - set(every)


def _state(stage: Stage, lake: Lake) -> dict[str, str]:
    made = lake.read(stage.name, [stage.parent, "fingerprint"], stage.mine)
    return dict(zip(made[0].to_pylist(), made[1].to_pylist(), strict=True))


def _final(before: dict, attempts: int) -> bool:
    """Rejected data stays rejected until it or the check changes; our own failures get a bounded number of attempts."""
    return before["status"] == "rejected" or before["attempt"] >= attempts
