"""Which fragment of a table holds a key, and a table without some of its rows: what a commit asks and makes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import lance
from lance.fragment import FragmentMetadata, LanceFragment

from egomill.schemas.tables import KEYS


def all_of(*conditions: str) -> str:
    """SQL conditions in one; "" is none."""
    return " AND ".join(f"({condition})" for condition in conditions if condition)


def one_of(column: str, values: Iterable[Any]) -> str:
    """An SQL condition: the column is one of the values (quoted here; an empty list is never true)."""
    quoted = ", ".join("'" + str(v).replace("'", "''") + "'" for v in values)
    return f"{column} IN ({quoted})" if quoted else "false"


@dataclass
class _Known:
    """What this process has seen of a table: each fragment's file, and where each key was seen last.

    A fragment's rows never change, only vanish; so a key may be said to stand where it stands no longer, but is never missed.
    """

    files: dict[int, str] = field(default_factory=dict)
    where: dict[tuple[str, ...], int] = field(default_factory=dict)


_known: dict[str, _Known] = {}
_lock = threading.Lock()


def look(data: lance.LanceDataset, table: str, keys: Iterable[tuple[str, ...]]) -> tuple[dict[int, str], set[int]]:
    """{fragment: its file} of the dataset, and the fragments that may hold one of the keys. Reads only what this process has not seen."""
    present = {fragment.fragment_id: fragment for fragment in data.get_fragments()}
    with _lock:
        known = _known.setdefault(data.uri, _Known())
        both = present.keys() & known.files.keys()
        if both and known.files[min(both)] != present[min(both)].metadata.files[0].path:  # a table made anew in that one's place
            known.files, known.where = {}, {}
        unseen = [present[number] for number in sorted(present.keys() - known.files.keys())]
        if unseen:
            for key, address in scan(data, list(KEYS[table]), fragments=unseen):
                known.where[key] = address >> 32
        fresh = {fragment.fragment_id: fragment.metadata.files[0].path for fragment in unseen}
        known.files = {number: fresh.get(number) or known.files[number] for number in present}
        return known.files, {known.where[key] for key in keys if key in known.where} & present.keys()


def fragment(data: lance.LanceDataset, number: int) -> LanceFragment:
    found = data.get_fragment(number)
    assert found is not None
    return found


def scan(data: lance.LanceDataset, columns: list[str], **how: Any) -> Iterable[tuple[tuple[str, ...], int]]:
    """(key, row address) pairs; an address is the fragment in the upper 32 bits and the row's place in it in the lower."""
    found = data.scanner(columns=columns, with_row_address=True, **how).to_table()
    keys = zip(*(found[column].to_pylist() for column in columns), strict=True)
    return zip(keys, found["_rowaddr"].to_pylist(), strict=True)


def without(
    data: lance.LanceDataset, table: str, replace: str, keys: set[tuple[str, ...]], among: set[int]
) -> tuple[list[int], list[FragmentMetadata]]:
    """Delete the rows that meet `replace`, and from the fragments `among` those with one of the keys.

    Returns the fragments of which nothing is left, and those that have more deleted rows than before.
    """
    gone: dict[int, list[int]] = {}
    columns = list(KEYS[table])
    doomed = [address for _, address in scan(data, columns, filter=replace)] if replace else []
    if among:
        one = one_of(columns[0], dict.fromkeys(key[0] for key in keys))
        some = [fragment(data, number) for number in sorted(among)]
        doomed += [address for key, address in scan(data, columns, filter=one, fragments=some) if key in keys]
    for address in set(doomed):
        gone.setdefault(address >> 32, []).append(address & 0xFFFFFFFF)
    removed, updated = [], []
    for number, offsets in gone.items():
        rest = fragment(data, number).delete_rows(offsets)
        if rest is None:
            removed.append(number)
        else:
            updated.append(rest)
    return removed, updated
