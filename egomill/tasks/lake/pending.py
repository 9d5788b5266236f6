"""What is to be done: three questions to the tables. What goes in, what is there already, what has failed before?

What is asked of whole tables is asked in Arrow; Python sees only the rows that are to be made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute

from egomill.schemas.fingerprint import digest
from egomill.schemas.item import Item
from egomill.schemas.tables import ASIDE, KEYS, LONG, OPTIONAL
from egomill.tasks.lake.fragments import all_of
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, one_of

pc: Any = pyarrow.compute  # which makes its functions while it is imported: type checkers cannot see them
STATES = ("current", "rejected", "failed", "blocked", "pending", "gone")


def pending(
    stage: Stage,
    lake: Lake,
    keys: Iterable[str] | None = None,
    items: list[Item] | None = None,
    attempts: int = 3,
    versions: dict[str, int] | None = None,
) -> pa.Table:
    """What a run of the stage would do, as a table, one row an input, sorted by key. Changes nothing.

    `key`; `fingerprint` that its row ought to have; `inputs`, the contents it would be made from, as JSON; `made`, the fingerprint that it
    has (null: there is no row); `missing`, the tables that have no row for it (null: none); `state`; `reason` of an earlier rejection or
    failure; `attempt`, the number of the next one; `noted`, whether the failures name it. The states: "current"; "rejected" and "failed"
    for good, that is until data or code change; "blocked" by what is missing; "pending"; "gone", a row of the made table whose input is no
    more (all else but key and made null).
    """
    versions = {table: lake.version(table) for table in stage.reads} if versions is None else versions
    wanted, every = _wanted(stage, lake, versions, keys, items)
    made = _made(stage, lake)
    past = lake.read("failures", ["key", "fingerprint", "status", "reason", "attempt"], one_of("stage", [stage.id]))
    past = past.rename_columns(["key", "tried", "status", "reason", "attempt"])
    found = wanted.join(made, "key").join(past, "key").sort_by("key")

    current = pc.fill_null(pc.equal(found["made"], found["fingerprint"]), False)
    again = pc.fill_null(pc.equal(found["tried"], found["fingerprint"]), False)
    # Rejected data stays rejected until it or the check changes; our own failures get a bounded number of attempts.
    over = pc.or_(pc.equal(found["status"], "rejected"), pc.greater_equal(found["attempt"], attempts))
    open_ = pc.if_else(pc.is_valid(found["missing"]), "blocked", "pending")
    state = pc.if_else(current, "current", pc.if_else(pc.fill_null(pc.and_(again, over), False), found["status"], open_))
    columns = {name: found[name] for name in ("key", "fingerprint", "inputs", "made", "missing", "reason")}
    attempt = pc.if_else(again, pc.add(found["attempt"], 1), 1)
    ledger = pa.table({**columns, "state": state, "attempt": attempt, "noted": pc.is_valid(found["tried"])})
    if every is None:
        return ledger
    gone = made.join(every, "key", join_type="left anti").sort_by("key")
    return pa.concat_tables([ledger, gone.append_column("state", pa.array(["gone"] * len(gone), pa.string()))], promote_options="default")


def _wanted(
    stage: Stage, lake: Lake, versions: dict[str, int], keys: Iterable[str] | None, items: list[Item] | None
) -> tuple[pa.Table, pa.Table | None]:
    """(key, fingerprint, inputs, missing) of the inputs; and all keys there are (None: unknown, takes on disk come and go)."""
    if items is not None:
        made, told = stage.fingerprints(pa.table({"on disk": pa.array([item.digest for item in items], pa.string())}))
        missing = pa.nulls(len(items), pa.string())
        return pa.table({"key": [i.key for i in items], "fingerprint": made, "inputs": told, "missing": missing}, _WANTED), None
    first, *others = versions
    inputs = _contents_in(stage, lake, first, versions[first], stage.where)
    every = inputs.select(["key"])
    if keys is not None:
        inputs = inputs.join(pa.table({"key": pa.array(list(keys), pa.string())}), "key", join_type="left semi")
    for table in others:
        inputs = inputs.join(_contents_in(stage, lake, table, versions[table]), "key")
    absent = zip(*(pc.is_null(inputs[table]).to_pylist() for table in versions), strict=True)
    lacking = [", ".join(table for table, gone in zip(versions, row, strict=True) if gone) or None for row in absent]
    missing = pa.array(lacking, pa.string())
    parts = pa.table({table: pc.fill_null(inputs[table], "") for table in versions})
    made, told = stage.fingerprints(parts)
    return pa.table({"key": inputs["key"], "fingerprint": made, "inputs": told, "missing": missing}, _WANTED), every


_WANTED = pa.schema([(name, pa.string()) for name in ("key", "fingerprint", "inputs", "missing")])


def _contents_in(stage: Stage, lake: Lake, table: str, version: int, where: str = "") -> pa.Table:
    """(key, `table`): the content of each key's row, with the columns of `ASIDE` that the stage reads; of a `LONG` table a digest of the
    rows that the stage reads, null where one of them is missing that is not `OPTIONAL`."""
    if table not in LONG:
        aside = [column for column in ASIDE.get(table, ()) if column in stage.reads[table]]
        rows = lake.read(table, [KEYS[table][0], "content", *aside], where, version)
        for column in aside:
            both = zip(rows["content"].to_pylist(), rows[column].to_pylist(), strict=True)
            content = pa.array([content if beside is None else digest(content, beside) for content, beside in both], pa.string())
            rows = rows.drop_columns([column]).set_column(1, "content", content)
        return _by_key(rows, table)
    rows = lake.read(table, [KEYS[table][0], "name", "content"], all_of(one_of("name", stage.reads[table]), where), version)
    by_key: dict[str, list[tuple[str, str]]] = {}
    for key, *named in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        by_key.setdefault(key, []).append((named[0], named[1]))
    needed = set(stage.reads[table]) - set(OPTIONAL)
    contents = [digest(*sorted(named)) if needed <= {name for name, _ in named} else None for named in by_key.values()]
    return pa.table({"key": pa.array(list(by_key), pa.string()), table: pa.array(contents, pa.string())})


def _made(stage: Stage, lake: Lake) -> pa.Table:
    """(key, `made`): the fingerprint of what each input's row was made with; "" where not all of its rows are there, or they disagree."""
    if stage.name not in LONG:
        return _by_key(lake.read(stage.name, [stage.parent, "fingerprint"], stage.mine), "made")
    rows = lake.read(stage.name, [stage.parent, "fingerprint", "names"], stage.mine)
    rows = pa.table({"key": rows[0], "fp": rows[1], "of": pc.list_value_length(rows["names"])})
    found = rows.group_by("key").aggregate([("fp", "min"), ("fp", "max"), ("of", "min"), ("of", "count")])
    whole = pc.and_(pc.equal(found["fp_min"], found["fp_max"]), pc.equal(found["of_min"], found["of_count"]))
    return pa.table({"key": found["key"], "made": pc.if_else(pc.fill_null(whole, False), found["fp_max"], "")})


def _by_key(rows: pa.Table, name: str) -> pa.Table:
    """(key, `name`) from a table of keys and digests, a row a key; "" where a key's rows (clips of one take) disagree."""
    if pc.count_distinct(rows[0]).as_py() == len(rows):
        return rows.rename_columns(["key", name])
    found = rows.rename_columns(["key", "fp"]).group_by("key").aggregate([("fp", "min"), ("fp", "max")])
    agreed = pc.if_else(pc.equal(found["fp_min"], found["fp_max"]), found["fp_max"], "")
    return pa.table({"key": found["key"], name: agreed})
