"""A stage's rows on their way to its worker and back: whole rows read, what the worker asks for handed on, its answer finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from egomill.schemas.fingerprint import content_of
from egomill.schemas.tables import KEYS, LONG, TABLES, as_stored, silent
from egomill.tasks.lake.fragments import all_of
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Damaged, Lake, intact, one_of

Reads = dict[str, tuple[str, ...]]


def read_rows(lake: Lake, reads: Reads, versions: dict[str, int], keys: list[str], where: str = "") -> tuple[dict[str, dict], int]:
    """Each key's whole rows, {key: {table: {column: value}}}, of `LONG` tables a list of rows; and how many bytes that is. `where` is of
    the first table. See `handed`."""
    rows: dict[str, dict] = {key: {} for key in keys}
    nbytes = 0
    for i, (table, names) in enumerate(reads.items()):
        key = KEYS[table][0]
        named = one_of("name", names) if table in LONG else ""
        found = lake.read(table, None, all_of(one_of(key, keys), where if i == 0 else "", named), versions[table])
        nbytes += found.nbytes
        for values in found.to_pylist():
            if table in LONG:
                rows[values[key]].setdefault(table, []).append(values)
            else:
                rows[values[key]][table] = values
    return rows, nbytes


def handed(reads: Reads, inputs: dict) -> dict:
    """What a worker gets of whole rows: the key and the columns that it reads. Damaged where a row is not what was committed."""
    if not reads:
        return inputs
    if "damaged" in inputs:
        raise inputs["damaged"]
    for table, found in inputs.items():
        for row in found if table in LONG else (found,):
            intact(table, row)
    whole = {t: opened(t, found, reads[t]) if t in LONG else found for t, found in inputs.items()}
    return {t: {c: row.get(c) for c in dict.fromkeys((KEYS[t][0], *reads[t]))} for t, row in whole.items()}


def opened(table: str, rows: list[dict], wanted: Iterable[str] = ()) -> dict:
    """Rows of one key of a `LONG` table as one: {key column: key, name: value, ...}. Damaged where one that is wanted is gone."""
    first, value = KEYS[table][0], TABLES[table].names[-1]
    lacking = {name for row in rows for name in row["names"] or ()} & set(wanted) - {row["name"] for row in rows}
    if lacking:
        raise Damaged(f"table {table} has no row {rows[0][first]} {sorted(lacking)[0]} any more: `egomill repair`, then rebuild")
    return {first: rows[0][first], **{row["name"]: row[value] for row in rows}}


def finished(stage: Stage, key: str, result: dict | list[dict]) -> list[dict]:
    """A worker's answer as rows of the stage's table, with their content: its own word for it, or the digest of all values."""
    rows = result if isinstance(result, list) else [{stage.parent: key, **result}]
    stored = as_stored(stage.name, [{**r, **stage.constants} for r in rows])
    return [{**r, "content": r["content"] or content_of(r, silent(stage.name, r))} for r in stored]


@contextmanager
def one_thread() -> Iterator[None]:
    """Arithmetic as in a stage's actors: sums depend on how many threads share them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
