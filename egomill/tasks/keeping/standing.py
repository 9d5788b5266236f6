"""How a stage's table stands to what it ought to be, key by key: the ledger of `stage.pending` for those who ask why. Writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from egomill.schemas.item import Item
from egomill.tasks.lake.pending import pending
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, one_of


@dataclass(frozen=True)
class Survey:
    """Keys are those of the inputs."""

    inputs: dict[str, list[str]]  # contents of what each row is to be made from
    wanted: dict[str, str]  # the fingerprints that this gives
    missing: dict[str, str]  # tables upstream that have no row for the key
    retired: set[str]  # keys in the made table without any input
    past: dict[str, dict]  # rows of failures
    pending: list[str]


def survey(
    stage: Stage,
    lake: Lake,
    versions: dict[str, int],
    attempts: int,
    keys: Iterable[str] | None = None,
    items: list[Item] | None = None,
) -> Survey:
    """See `stage.pending`, which this opens up into dictionaries."""
    rows = pending(stage, lake, keys, items, attempts, versions).to_pylist()
    there = [row for row in rows if row["state"] != "gone"]
    return Survey(
        inputs={row["key"]: json.loads(row["inputs"]) for row in there},
        wanted={row["key"]: row["fingerprint"] for row in there},
        missing={row["key"]: row["missing"] for row in there if row["missing"]},
        retired={row["key"] for row in rows if row["state"] == "gone"},
        past={row["key"]: row for row in lake.read("failures", where=one_of("stage", [stage.id])).to_pylist()},
        pending=[row["key"] for row in there if row["state"] in ("pending", "blocked")],
    )
