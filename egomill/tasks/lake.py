"""The lake: one Lance table a kind of thing, and the only `import lance`.

Writers split the work so that a crash costs little and doubles nothing: a worker writes data files that no reader can see
(`write_fragments`) and hands back a few hundred bytes of JSON; the driver makes them visible (`commit`), shard by shard. A commit that
replaces rows is one transaction: the old rows' deletion and the new rows' arrival become visible together, or not at all.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

warnings.filterwarnings("ignore", message="lance is not fork-safe")  # Ray's workers are spawned, not forked

import lance  # noqa: E402
import pyarrow as pa  # noqa: E402
from lance.fragment import FragmentMetadata, write_fragments  # noqa: E402

from egomill.schemas.tables import KEYS, TABLES  # noqa: E402

_STORAGE = {"data_storage_version": "2.2", "enable_stable_row_ids": True}


@dataclass(frozen=True)
class Lake:
    """A folder or object-store URI that holds the tables. A value: cheap to make, to compare and to send to workers."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:  # workers have working folders of their own
            object.__setattr__(self, "uri", os.path.abspath(self.uri))

    def path(self, table: str) -> str:
        return f"{self.uri.rstrip('/')}/{table}.lance"

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, table: str, version: int | None = None) -> lance.LanceDataset:
        """The table at a version (None: the newest), created empty where it is not there yet. ValueError on an unknown name."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}; known: {', '.join(TABLES)}")
        try:
            return lance.dataset(self.path(table), version=version)
        except ValueError:
            if version is not None or self._exists(table):
                raise
        try:
            lance.write_dataset(TABLES[table].empty_table(), self.path(table), mode="create", **_STORAGE)
        except OSError:
            if not self._exists(table):
                raise
        return lance.dataset(self.path(table))

    def _exists(self, table: str) -> bool:
        try:
            lance.dataset(self.path(table))
        except ValueError:
            return False
        return True

    def version(self, table: str) -> int:
        return self.open(table).version

    def count(self, table: str, where: str | None = None, version: int | None = None) -> int:
        return self.open(table, version).count_rows(filter=where or None)

    def read(self, table: str, columns: Sequence[str] | None = None, where: str | None = None, version: int | None = None) -> pa.Table:
        """Columns of the rows that meet the SQL filter, at a version."""
        return self.open(table, version).to_table(columns=None if columns is None else list(columns), filter=where or None)

    def rows(
        self, table: str, keys: Iterable[str], columns: Sequence[str] | None = None, version: int | None = None, where: str = ""
    ) -> list[dict]:
        """The rows whose first key column is among `keys`, in no particular order."""
        condition = one_of(KEYS[table][0], keys) + (f" AND ({where})" if where else "")
        return self.read(table, columns, condition, version).to_pylist()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_fragments(self, table: str, rows: list[dict]) -> str:
        """Worker's half: write rows as data files that nobody sees yet; returns the fragments as JSON for `commit`."""
        data = pa.Table.from_pylist(rows, schema=TABLES[table])
        fragments = write_fragments(data, self.path(table), schema=TABLES[table], **_STORAGE)
        return json.dumps([f.to_json() for f in fragments])

    def commit(self, table: str, fragments: str | None, replace: str = "", properties: dict[str, str] | None = None) -> int:
        """Driver's half: in one transaction delete the rows that meet `replace` and add the fragments; returns the new version.

        `properties` (who, when, how many) are kept in the transaction: the first of the places where lineage is written.
        """
        data = self.open(table)
        new = [FragmentMetadata.from_json(json.dumps(f)) for f in json.loads(fragments)] if fragments else []
        removed, updated = [], []
        for fragment in data.get_fragments() if replace else []:
            if fragment.count_rows(filter=replace) == 0:
                continue
            rest = fragment.delete(replace)
            if rest is None:
                removed.append(fragment.fragment_id)
            else:
                updated.append(rest)
        if not (new or removed or updated):
            return data.version
        if removed or updated:
            operation = lance.LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=updated, new_fragments=new)
        else:
            operation = lance.LanceOperation.Append(new)
        return lance.LanceDataset.commit(
            self.path(table), lance.Transaction(data.version, operation, transaction_properties=properties or {})
        ).version

    def upsert(self, table: str, rows: list[dict]) -> None:
        """Insert rows, or overwrite those of the same key. For the small tables that the driver writes (failures, runs, releases)."""
        if rows:
            data = pa.Table.from_pylist(rows, schema=TABLES[table])
            merge = self.open(table).merge_insert(list(KEYS[table])).when_matched_update_all().when_not_matched_insert_all()
            merge.conflict_retries(10).execute(data)

    # -- versions --------------------------------------------------------------------------------------------------

    def tag(self, table: str, version: int, name: str) -> None:
        """Protect a version from clean-up under a name. Tagging the same version again is fine; another one is a ValueError."""
        tags = self.open(table).tags
        held = tags.list().get(name)
        if held is None:
            tags.create(name, version)
        elif held["version"] != version:
            raise ValueError(f"tag {name!r} of table {table} stands at version {held['version']}, not {version}")

    def compact(self, table: str) -> None:
        """Merge small files. Old versions stay until they are cleaned up."""
        self.open(table).optimize.compact_files(target_rows_per_fragment=64 * 1024)

    @cached_property
    def is_local(self) -> bool:
        return "://" not in self.uri

    # -- forgetting ------------------------------------------------------------------------------------------------

    def exists(self, table: str) -> bool:
        return self._exists(table)

    def tags(self, table: str) -> dict[str, int]:
        """{tag: version}."""
        return {name: tag["version"] for name, tag in self.open(table).tags.list().items()}

    def untag(self, table: str, name: str) -> None:
        self.open(table).tags.delete(name)

    def versions(self, table: str) -> list[int]:
        return [v["version"] for v in self.open(table).versions()]

    def held(self, table: str, column: str, where: str, version: int | None = None) -> set[str]:
        """Values of a column in the files of a version, rows included that were deleted there but still lie on disk."""
        options: dict[str, Any] = {"with_row_id": True, "include_deleted_rows": True, "use_scalar_index": False}
        scan = self.open(table, version).scanner([column], filter=where, **options)
        return set(scan.to_table()[column].to_pylist())

    def relabel(self, table: str, where: str, labels: Callable[[dict], dict[str, str] | None], columns: Sequence[str]) -> int:
        """Rewrite string `columns` of rows, and no other byte, in one transaction; returns how many rows changed.

        `labels` gets each row that meets the filter (its keys and `columns`) and answers with the columns' new values, or None. Fails, and
        changes nothing, where another writer touched the same rows meanwhile.
        """
        data = self.open(table)
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
        lance.LanceDataset.commit(self.path(table), lance.Transaction(data.version, operation))
        return len(changed)

    def purge(self, table: str) -> None:
        """Leave on disk what the newest and the tagged versions hold, and nothing else: deleted rows are written out of their files,
        indices built anew, old versions and files of nobody removed. Whatever another process is writing to the table is lost and may
        break it: nothing else may run.
        """
        data = self.open(table)
        data.optimize.compact_files(target_rows_per_fragment=64 * 1024, materialize_deletions=True, materialize_deletions_threshold=0.0)
        data = self.open(table)
        for index in data.describe_indices():  # an index keeps the values of rows that are gone
            kind: Any = index.index_type.upper()
            data.create_scalar_index(index.field_names[0], kind, name=index.name, replace=True)
            data = self.open(table)
        data.cleanup_old_versions(timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)


@dataclass(frozen=True)
class Glimpse(Lake):
    """A lake to look at: a table that is not there reads as empty, and nothing can be written."""

    def open(self, table: str, version: int | None = None) -> lance.LanceDataset:
        if table in TABLES and not self._exists(table):
            return lance.write_dataset(TABLES[table].empty_table(), "memory://", mode="overwrite", **_STORAGE)
        return super().open(table, version)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{self.uri} is only looked at")

    write_fragments = commit = upsert = tag = compact = untag = relabel = purge = _refuse


def one_of(column: str, values: Iterable[Any]) -> str:
    """An SQL condition: the column is one of the values (quoted here; an empty list is never true)."""
    quoted = ", ".join("'" + str(v).replace("'", "''") + "'" for v in values)
    return f"{column} IN ({quoted})" if quoted else "false"
