"""Make rows again, in this process, and say where they differ from what is stored: the half that `adopt` and `verify` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from egomill.schemas.fingerprint import content_of
from egomill.schemas.item import Item
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import KEYS, NO_CONTENT, TABLES
from egomill.schemas.tensors import DEPTH, TENSOR, unpack, unpack_depth
from egomill.tasks.lake.rows import finished, handed, one_thread, read_rows
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, one_of
from egomill.tasks.media import sources

SHOWN = 60  # characters of a value


def rederive(
    stage: Stage, lake: Lake, versions: dict[str, int], keys: list[str], items: dict[str, Item] | None = None
) -> Iterator[tuple[str, list[dict] | Rejected | Exception]]:
    """What the present code makes of each key, from inputs at these versions (or from `items`): rows, a rejection, or what it raised.

    One thread, as in a stage's actors.
    """
    with one_thread():
        worker = stage.worker()
        for key in keys:
            try:
                row = items[key].row if items is not None else read_rows(lake, stage.reads, versions, [key], stage.where)[0][key]
                result = worker(handed(stage.reads, row))
                yield key, result if isinstance(result, Rejected) else finished(stage, key, result)
            except Exception as error:
                yield key, error


def stored(stage: Stage, lake: Lake, key: str, version: int | None = None) -> list[dict]:
    """The rows of the stage's table that were made from an input."""
    return lake.read(stage.name, None, " AND ".join(filter(None, (one_of(stage.parent, [key]), stage.mine))), version).to_pylist()


def on_disk(lake: Lake, version: int | None = None, allow: Iterable[str] = ()) -> dict[str, Item]:
    """What lies now under the roots of the lake's takes (and where `allow` lets them lead), by take; roots that are gone give nothing."""
    found: dict[str, Item] = {}
    for root in sorted(set(lake.read("takes", ["root"], version=version)["root"].to_pylist())):
        try:
            found |= {item.key: item for item in sources.discover([Path(root)], allow)}
        except ValueError:
            continue
    return found


def differences(table: str, old: list[dict], new: list[dict] | Rejected | Exception, tolerance: float = 0.0) -> list[dict]:
    """[{row, column, what}] where rows made again are not those that are stored; columns of `NO_CONTENT` do not count.

    Bit for bit, or with a tolerance: of tensors and numbers max |a - b| <= tolerance max |a|, shapes, types and what is not a number equal.
    """
    if isinstance(new, Rejected):
        return [{"row": _name(table, row), "column": "", "what": f"now rejected: {new.reason} {new.detail}".strip()} for row in old]
    if isinstance(new, Exception):
        return [{"row": _name(table, row), "column": "", "what": f"now fails: {type(new).__name__}: {new}"} for row in old]
    before, after = ({_name(table, row): row for row in rows} for rows in (old, new))
    found = [{"row": name, "column": "", "what": "not made any more"} for name in sorted(before.keys() - after.keys())]
    found += [{"row": name, "column": "", "what": "is new"} for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        for column in TABLES[table]:
            a, b = before[name].get(column.name), after[name].get(column.name)
            if column.name not in NO_CONTENT and content_of({"": a}) != content_of({"": b}):
                far, what = _distance(column.type, a, b)
                if far > tolerance:
                    found.append({"row": name, "column": column.name, "what": what})
    return found


def _name(table: str, row: dict) -> str:
    return " ".join(str(row[key]) for key in KEYS[table])


def _distance(kind: pa.DataType, a: Any, b: Any) -> tuple[float, str]:
    """max |a - b| / max |a| (inf where that means nothing), and words."""
    if None in (a, b) or not (kind in (TENSOR, DEPTH) or pa.types.is_floating(kind)):
        return np.inf, f"{_short(a)} -> {_short(b)}"
    x, y = (np.asarray(unpack_depth(v) if kind == DEPTH else unpack(v) if kind == TENSOR else v) for v in (a, b))
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return np.inf, f"{x.dtype} {x.shape} -> {y.dtype} {y.shape}"
    if x.dtype.kind != "f":
        return np.inf, f"{int((x != y).sum())} of {x.size} values differ"
    known = np.isfinite(x)
    if (known != np.isfinite(y)).any() or (x[~known].astype(str) != y[~known].astype(str)).any():
        return np.inf, "what is not finite differs"
    x, y = x[known].astype(np.float64), y[known].astype(np.float64)
    apart, largest = np.abs(x - y).max(initial=0.0), np.abs(x).max(initial=0.0)
    far = float(apart / largest) if largest else float(np.inf if apart else 0.0)
    return far, f"{int((x != y).sum())} of {known.size} values differ, at most by {far:.2g} of the largest"


def _short(value: Any) -> str:
    text = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
