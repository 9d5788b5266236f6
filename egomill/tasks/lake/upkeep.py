"""A table's versions and files: protected, merged, indexed, cleaned up, relabelled, rid of what was forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileSession

from egomill.schemas.tables import KEYS
from egomill.tasks.lake.tables import Lake, outrun

FILE_BYTES = 256 * 2**20  # what compaction aims at
INDEX_ROWS = 20_000


def tag(lake: Lake, table: str, version: int, name: str) -> None:
    """Protect a version from clean-up under a name. Tagging the same version again is fine; another one is a ValueError."""
    lake.writes()
    tags = lake.open(table).tags
    if name not in tags.list():
        try:
            tags.create(name, version)
        except ValueError:
            if name not in tags.list():  # else somebody was faster: whose version it is, we see below
                raise
    held = tags.list()[name]["version"]
    if held != version:
        raise ValueError(f"tag {name!r} of table {table} stands at version {held}, not {version}")


def compact(lake: Lake, table: str) -> bool:
    """Merge small files into such of about `FILE_BYTES`. Old versions stay until they are cleaned up.

    What a file of that size holds is left alone, so that a night's work does not rewrite the table. Returns False where others
    committed all the while: they were not held up, and next time is soon enough.
    """
    lake.writes()
    for _ in range(3):
        data = lake.open(table)
        parts = [fragment.metadata for fragment in data.get_fragments()]
        rows = sum(part.physical_rows for part in parts)
        a_row = max(1, sum(file.file_size_bytes or 0 for part in parts for file in part.files) // max(1, rows))
        target, batch = (max(1, min(64 * 1024, size // a_row)) for size in (FILE_BYTES, FILE_BYTES // 8))
        if _unless_outrun(lambda at=data, n=target, m=batch: at.optimize.compact_files(target_rows_per_fragment=n, batch_size=m)):
            return True
    return False


def index(lake: Lake, table: str) -> bool:
    """Index the first key column, or bring its index up to date, where there are `INDEX_ROWS` rows; below, a scan is as fast."""
    lake.writes()
    data, column = lake.open(table), KEYS[table][0]
    if data.count_rows() < INDEX_ROWS:
        return False
    if any(index.name == f"{column}_idx" for index in data.describe_indices()):
        return _unless_outrun(data.optimize.optimize_indices)
    return _unless_outrun(lambda: data.create_scalar_index(column, "BTREE", name=f"{column}_idx"))


def clean(lake: Lake, table: str, older_than: timedelta, since: datetime | None = None) -> dict[str, int]:
    """Delete versions that were replaced longer ago than that, with the files that only they use, and files of no version that are
    over 7 days old.

    Tagged versions stay, the newest, and all that were replaced after `since`: whoever began to read then may still do so. Younger
    files of no version stay whatever `older_than` says: a writer may be about to commit them, and `commit` takes none that are older
    than `FRESH_DAYS`. Returns {versions, files, bytes} that went.
    """
    lake.writes()
    data, tagged = lake.open(table), set(tags(lake, table).values())
    until = min(time.time() - older_than.total_seconds(), since.timestamp() if since else float("inf"))
    # A version is replaced by the next one. Where that was deleted, the one after it says a later time: a little longer is no harm.
    pairs: Any = pairwise(data.versions())
    stale = [old["version"] for old, new in pairs if new["timestamp"].timestamp() < until and old["version"] not in tagged]
    which: dict[str, Any] = {"versions": stale} if stale else {"older_than": timedelta(days=36_500)}  # then only files of no version
    went = data.cleanup_old_versions(**which, error_if_tagged_old_versions=False)
    files = went.data_files_removed + went.deletion_files_removed + went.index_files_removed + went.transaction_files_removed
    return {"versions": went.old_versions, "files": files, "bytes": went.bytes_removed}


def files(lake: Lake, table: str) -> int:
    """How many data files lie in the table's folder, whichever versions use them."""
    lake.open(table)
    return len(LanceFileSession(lake.path(table)).list("data"))


def tags(lake: Lake, table: str) -> dict[str, int]:
    """{tag: version}."""
    return {name: tag["version"] for name, tag in lake.open(table).tags.list().items()}


def untag(lake: Lake, table: str, name: str) -> None:
    lake.writes()
    lake.open(table).tags.delete(name)


def versions(lake: Lake, table: str) -> list[int]:
    return [v["version"] for v in lake.open(table).versions()]


def held(lake: Lake, table: str, column: str, where: str, version: int | None = None) -> set[str]:
    """Values of a column in the files of a version, rows included that were deleted there but still lie on disk."""
    options: dict[str, Any] = {"with_row_id": True, "include_deleted_rows": True, "use_scalar_index": False}
    scan = lake.open(table, version).scanner([column], filter=where, **options)
    return set(scan.to_table()[column].to_pylist())


def relabel(lake: Lake, table: str, where: str, labels: Callable[[dict], dict[str, str] | None], columns: Sequence[str]) -> int:
    """Rewrite string `columns` of rows, and no other byte, in one transaction; returns how many rows changed.

    `labels` gets each row that meets the filter (its keys and `columns`) and answers with the columns' new values, or None. Fails, and
    changes nothing, where another writer touched the same rows meanwhile.
    """
    lake.writes()
    data = lake.open(table)
    names = [*dict.fromkeys((*KEYS[table], *columns))]
    rows = data.to_table(columns=names, filter=where or None, with_row_id=True, with_row_address=True).to_pylist()
    changed = [(row, new) for row in rows if (new := labels(row)) is not None]
    if not changed:
        return 0
    ids = pa.array([row["_rowid"] for row, _ in changed], pa.uint64())
    update = pa.table({"_rowid": ids, **{c: [new[c] for _, new in changed] for c in columns}})
    touched = {row["_rowaddr"] >> 32 for row, _ in changed}
    fragments, fields, offsets = [], set(), {}
    for fragment in data.get_fragments():
        if fragment.fragment_id not in touched:
            continue
        rewritten, modified, matched = fragment.update_columns(update, "_rowid", with_offsets=True)
        fragments.append(rewritten)
        fields.update(modified)
        offsets[fragment.fragment_id] = matched
    operation = lance.LanceOperation.Update(
        updated_fragments=fragments, fields_modified=sorted(fields), update_mode="rewrite_columns", updated_fragment_offsets=offsets
    )
    lance.LanceDataset.commit(lake.path(table), lance.Transaction(data.version, operation))
    return len(changed)


def purge(lake: Lake, table: str) -> None:
    """Leave on disk what the newest and the tagged versions hold, and nothing else: deleted rows are written out of their files,
    indices built anew, old versions and files of nobody removed. Whatever another process is writing to the table is lost and may
    break it: nothing else may run.
    """
    lake.writes()
    data = lake.open(table)
    data.optimize.compact_files(target_rows_per_fragment=64 * 1024, materialize_deletions=True, materialize_deletions_threshold=0.0)
    data = lake.open(table)
    for index in data.describe_indices():  # an index keeps the values of rows that are gone
        kind: Any = index.index_type.upper()
        data.create_scalar_index(index.field_names[0], kind, name=index.name, replace=True)
        data = lake.open(table)
    data.cleanup_old_versions(timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)


def _unless_outrun(work: Callable[[], Any]) -> bool:
    try:
        work()
    except OSError as error:
        if not outrun(error):
            raise
        return False
    return True
