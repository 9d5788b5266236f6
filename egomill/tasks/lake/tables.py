"""The lake: one Lance table a kind of thing, and the only `import lance`.

Writers split the work so that a crash costs little and doubles nothing: a worker writes data files that no reader can see
(`write_fragments`) and hands back a few hundred bytes of JSON; the driver makes them visible (`commit`), shard by shard. A commit that
replaces rows is one transaction: the old rows' deletion and the new rows' arrival become visible together, or not at all.

A key stands in a table once, whoever writes at once. Lance itself lets two appends of the same keys through, and its merge would take the
data through the driver; so a commit looks up its keys at the newest version, removes the rows that hold them, and stands only if no other
commit of rows came between. Else it looks again. The last to commit wins, and what it overwrote stays readable at the older version.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message="lance is not fork-safe")  # Ray's workers are spawned, not forked

os.environ.setdefault("LANCE_LOG", "error")  # that a table is new is no news

import lance  # noqa: E402
import pyarrow as pa  # noqa: E402
from lance.commit import CommitConflictError  # noqa: E402
from lance.file import LanceFileSession  # noqa: E402
from lance.fragment import FragmentMetadata, LanceFragment, write_fragments  # noqa: E402
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem  # noqa: E402

from egomill.schemas.fingerprint import content_of, digest  # noqa: E402
from egomill.schemas.tables import FOLDERS, FORMAT, KEYS, MADE, NO_CONTENT, TABLES, take_of  # noqa: E402

_STORAGE = {"data_storage_version": "2.2", "enable_stable_row_ids": True}
FRESH_DAYS = 5  # a day or two less than the age at which clean-up takes files of no version for a dead writer's
FILE_BYTES = 256 * 2**20  # what compaction aims at
INDEX_ROWS = 20_000
_ATTEMPTS = 200
FORMAT_NOTE = "format.json"
_FORMATS: set[str] = set()  # lakes that this process knows to be of the present one
NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EMFILE, errno.ENFILE)  # no file is other than it was


class Damaged(ValueError):
    """What lies on disk is not, or not any more, what was written there."""


@dataclass(frozen=True)
class Lake:
    """A folder or object-store URI that holds the tables. A value: cheap to make, to compare and to send to workers."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:  # workers have working folders of their own
            object.__setattr__(self, "uri", os.path.abspath(self.uri))

    def path(self, table: str) -> str:
        return f"{self.uri.rstrip('/')}/{FOLDERS.get(table, table)}.lance"

    def said(self) -> Any:
        """The format that the lake says it is of; None where it says nothing."""
        text = self.noted(FORMAT_NOTE)
        try:
            return None if text is None else json.loads(text)["format"]
        except (ValueError, TypeError, KeyError):
            return "nobody knows which"

    def known(self, writes: bool = False) -> None:
        """ValueError where the lake is of another format than this version's. One that is about to be made says its own first."""
        if self.uri in _FORMATS:
            return
        number = self.said()
        if number is None:
            store, root = self._store()
            there = store.get_file_info(FileSelector(root, allow_not_found=True))
            if any(file.base_name.endswith(".lance") for file in there):
                todo = f"`egomill lake upgrade --lake {self.uri}`"
                raise ValueError(f"lake {self.uri} is of format 1, and this version of Egomill knows {FORMAT}: {todo}")
            if writes:
                self.note(FORMAT_NOTE, json.dumps({"format": FORMAT}))
                _FORMATS.add(self.uri)
            return
        if number != FORMAT:
            raise ValueError(
                f"lake {self.uri} is of format {number} ({FORMAT_NOTE}), and this version of Egomill knows {FORMAT}: take the version that "
                "wrote it, or a newer one. Nothing was changed"
            )
        _FORMATS.add(self.uri)

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, table: str, version: int | None = None) -> lance.LanceDataset:
        """The table at a version (None: the newest), created empty where it is not there yet. ValueError on an unknown name, Damaged
        where it is there and cannot be opened."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}; known: {', '.join(TABLES)}")
        self.known()
        with self._readable(table, version):
            try:
                return lance.dataset(self.path(table), version=version)
            except ValueError as error:
                if version is not None or "was not found" not in str(error):
                    raise
        self.known(writes=True)
        try:  # without retries: `write_dataset(mode="create")` tries again, and its second try empties what another process has made
            lance.LanceDataset.commit(
                self.path(table),
                lance.LanceOperation.Overwrite(TABLES[table], []),
                read_version=0,
                max_retries=0,
                enable_v2_manifest_paths=True,
                enable_stable_row_ids=_STORAGE["enable_stable_row_ids"],
            )
        except OSError as error:
            if not self.exists(table):  # else another process has made it since
                error.add_note(f"table {self.path(table)}")
                raise
        with self._readable(table):
            return lance.dataset(self.path(table))

    def exists(self, table: str) -> bool:
        """Whether the table is there, readable or not."""
        self.known()
        try:
            lance.dataset(self.path(table))
        except ValueError as error:
            return "was not found" not in str(error)
        return True

    @contextlib.contextmanager
    def _readable(self, table: str, version: int | None = None) -> Iterator[None]:
        """Lance says in many ways, panics among them, that a file is gone, cut or not what it was; this says it in one."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, Damaged) or not (isinstance(error, (ValueError, OSError)) or type(error).__name__ == "PanicException"):
                raise
            found = re.search(r"os error (\d+)", str(error))
            if found and int(found[1]) in NOT_DAMAGE:
                raise OSError(int(found[1]), os.strerror(int(found[1])), self.path(table)) from None
            at = "" if version is None else f" at version {version}"
            said = (str(error).splitlines() or [""])[0].split(", /")[0].removeprefix("External error: ").removeprefix("LanceError(IO): ")
            raise Damaged(
                f"table {table}{at} of {self.uri} cannot be read: {said[:300]}. Where the disk or the store is well again, "
                f"`egomill repair --lake {self.uri}` mends the table"
            ) from None

    def version(self, table: str) -> int:
        return self.open(table).version

    def count(self, table: str, where: str | None = None, version: int | None = None) -> int:
        data = self.open(table, version)
        with self._readable(table, version):
            return data.count_rows(filter=where or None)

    def read(self, table: str, columns: Sequence[str] | None = None, where: str | None = None, version: int | None = None) -> pa.Table:
        """Columns of the rows that meet the SQL filter, at a version. A column that an earlier release of Egomill did not write is null
        where it is asked for by name. Damaged where they cannot be read.
        """
        data = self.open(table, version)
        with self._readable(table, version):
            lacking = [name for name in columns or () if name in TABLES[table].names and name not in data.schema.names]
            found = data.to_table(columns=None if columns is None else [c for c in columns if c not in lacking], filter=where or None)
        for name in lacking:
            found = found.append_column(TABLES[table].field(name), pa.nulls(len(found), TABLES[table].field(name).type))
        return found

    def rows(
        self, table: str, keys: Iterable[str], columns: Sequence[str] | None = None, version: int | None = None, where: str = ""
    ) -> list[dict]:
        """The rows whose first key column is among `keys`, in no particular order."""
        condition = one_of(KEYS[table][0], keys) + (f" AND ({where})" if where else "")
        return self.read(table, columns, condition, version).to_pylist()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_fragments(self, table: str, rows: list[dict]) -> str:
        """Worker's half: write rows as data files that nobody sees yet; returns what `commit` needs, as JSON.

        ValueError where a key is missing or stands twice. The files have to be committed within `FRESH_DAYS`.
        """
        keys = [[row.get(column) for column in KEYS[table]] for row in rows]
        if any(part is None for key in keys for part in key):
            raise ValueError(f"table {table}: a row without {' or '.join(KEYS[table])}")
        if len({tuple(key) for key in keys}) < len(keys):
            raise ValueError(f"table {table}: a key twice among the rows to write")
        self._grow(table)
        data = pa.Table.from_pylist(rows, schema=TABLES[table])
        fragments = write_fragments(data, self.path(table), schema=TABLES[table], **_STORAGE)
        return json.dumps({"fragments": [f.to_json() for f in fragments], "keys": keys, "written": time.time()})

    def _grow(self, table: str) -> None:
        """Give a table of an earlier release the columns that came since, null in its rows. Nothing is rewritten."""
        while lacking := [field for field in TABLES[table] if field.name not in self.open(table).schema.names]:
            try:
                self.open(table).add_columns(pa.schema(lacking))
            except (OSError, ValueError):
                if lacking == [field for field in TABLES[table] if field.name not in self.open(table).schema.names]:
                    raise  # nobody else was faster

    def commit(
        self,
        table: str,
        fragments: str | Sequence[str] | None,
        replace: str = "",
        properties: dict[str, str] | None = None,
        fence: bool = False,
    ) -> int:
        """Driver's half: in one transaction delete the rows that meet `replace` or have a key of the fragments, and add these, as
        `write_fragments` returned them, whichever workers wrote them.

        Returns the version. Fragments that are in the table already (a commit that succeeded, but whose caller never heard) change nothing.
        `properties` (who, when, how many) are kept in the transaction: the first of the places where lineage is written.
        With `fence` every commit that is under way has to look again, even where this one changes nothing.
        Errors: ValueError for fragments that clean-up may have taken, or is about to, and for rows of a take that was forgotten, whose
        files are removed; OSError where others were faster 200 times.
        """
        brought = [json.loads(text) for text in ([fragments] if isinstance(fragments, str) else fragments or ())]
        new = [FragmentMetadata.from_json(json.dumps(f)) for b in brought for f in b["fragments"]]
        keys = {tuple(key) for b in brought for key in b["keys"]}
        written = min((b["written"] for b in brought), default=0.0)
        files = {f.files[0].path for f in new}
        for attempt in range(_ATTEMPTS):
            data = self.open(table)
            with self._readable(table):
                present, suspects = _look(data, table, keys)
            if new and files & set(present.values()):
                return data.version
            self._refuse_forgotten(table, keys, files)  # after the version was read: see `fence`
            if new and attempt == 0 and not self._usable(table, files, written):
                raise ValueError(f"table {table}: files written over {FRESH_DAYS} days ago, or gone: write them again")
            with self._readable(table):
                removed, updated = _without(data, table, replace, keys, suspects)
            if not (new or removed or updated or fence):
                return data.version
            operation, retries = lance.LanceOperation.Update(removed, updated, new), 20
            if not present:  # nothing to hold on to: an empty table is overwritten, which stands on exactly its version
                operation, retries = lance.LanceOperation.Overwrite(data.schema, new), 0
            elif new or fence:
                # Two updates conflict where they touch the same fragment. So each that brings rows touches the oldest, changed or not.
                oldest = min(present)
                if oldest not in {*removed, *(f.id for f in updated)}:
                    updated.append(_fragment(data, oldest).metadata)
            transaction = lance.Transaction(data.version, operation, transaction_properties=properties or {})
            try:
                return lance.LanceDataset.commit(self.path(table), transaction, max_retries=retries).version
            except OSError as error:
                if not _outrun(error):
                    raise
                time.sleep(random.uniform(0, 0.02) * min(attempt + 1, 10))
        raise OSError(f"table {table}: other writers were faster {_ATTEMPTS} times")

    def _refuse_forgotten(self, table: str, keys: Iterable[tuple[str, ...]], files: Iterable[str]) -> None:
        """`forget` first writes down the take, then passes every table with a `fence`: so no commit can miss both."""
        takes = {take: digest(take) for key in keys if (take := take_of(table, key))}
        if not takes or not self.exists("forgotten"):
            return
        gone = {row["take"] for row in self.rows("forgotten", set(takes.values()), ["take"])}
        if gone:
            for file in files:
                with contextlib.suppress(OSError):
                    LanceFileSession(self.path(table)).delete_file(f"data/{file}")
            raise ValueError(
                f"table {table}: a take was forgotten with `egomill forget` while this run worked on it ({', '.join(sorted(gone))}); "
                "nothing of it was written: run again, for what else the run was to make"
            )

    def _usable(self, table: str, files: Iterable[str], written: float) -> bool:
        if time.time() - written > FRESH_DAYS * 86_400:
            return False
        folder = LanceFileSession(f"{self.path(table)}/data")
        return all(folder.contains(file) for file in files)

    def upsert(self, table: str, rows: list[dict]) -> None:
        """Insert rows, or overwrite those of the same key. For the small tables that the driver writes (failures, runs, releases)."""
        if rows:
            self.commit(table, [self.write_fragments(table, rows)])

    # -- versions --------------------------------------------------------------------------------------------------

    def tag(self, table: str, version: int, name: str) -> None:
        """Protect a version from clean-up under a name. Tagging the same version again is fine; another one is a ValueError."""
        tags = self.open(table).tags
        if name not in tags.list():
            try:
                tags.create(name, version)
            except ValueError:
                if name not in tags.list():  # else somebody was faster: whose version it is, we see below
                    raise
        held = tags.list()[name]["version"]
        if held != version:
            raise ValueError(f"tag {name!r} of table {table} stands at version {held}, not {version}")

    def compact(self, table: str) -> bool:
        """Merge small files into such of about `FILE_BYTES`. Old versions stay until they are cleaned up.

        What a file of that size holds is left alone, so that a night's work does not rewrite the table. Returns False where others
        committed all the while: they were not held up, and next time is soon enough.
        """
        for _ in range(3):
            data = self.open(table)
            parts = [fragment.metadata for fragment in data.get_fragments()]
            rows = sum(part.physical_rows for part in parts)
            a_row = max(1, sum(file.file_size_bytes or 0 for part in parts for file in part.files) // max(1, rows))
            target, batch = (max(1, min(64 * 1024, size // a_row)) for size in (FILE_BYTES, FILE_BYTES // 8))
            if _unless_outrun(lambda at=data, n=target, m=batch: at.optimize.compact_files(target_rows_per_fragment=n, batch_size=m)):
                return True
        return False

    def index(self, table: str) -> bool:
        """Index the first key column, or bring its index up to date, where there are `INDEX_ROWS` rows; below, a scan is as fast."""
        data, column = self.open(table), KEYS[table][0]
        if data.count_rows() < INDEX_ROWS:
            return False
        if any(index.name == f"{column}_idx" for index in data.describe_indices()):
            return _unless_outrun(data.optimize.optimize_indices)
        return _unless_outrun(lambda: data.create_scalar_index(column, "BTREE", name=f"{column}_idx"))

    def clean(self, table: str, older_than: timedelta, since: datetime | None = None) -> dict[str, int]:
        """Delete versions that were replaced longer ago than that, with the files that only they use, and files of no version that are
        over 7 days old.

        Tagged versions stay, the newest, and all that were replaced after `since`: whoever began to read then may still do so. Younger
        files of no version stay whatever `older_than` says: a writer may be about to commit them, and `commit` takes none that are older
        than `FRESH_DAYS`. Returns {versions, files, bytes} that went.
        """
        data, tagged = self.open(table), set(self.tags(table).values())
        until = min(time.time() - older_than.total_seconds(), since.timestamp() if since else float("inf"))
        # A version is replaced by the next one. Where that was deleted, the one after it says a later time: a little longer is no harm.
        pairs: Any = pairwise(data.versions())
        stale = [old["version"] for old, new in pairs if new["timestamp"].timestamp() < until and old["version"] not in tagged]
        which: dict[str, Any] = {"versions": stale} if stale else {"older_than": timedelta(days=36_500)}  # then only files of no version
        went = data.cleanup_old_versions(**which, error_if_tagged_old_versions=False)
        files = went.data_files_removed + went.deletion_files_removed + went.index_files_removed + went.transaction_files_removed
        return {"versions": went.old_versions, "files": files, "bytes": went.bytes_removed}

    def files(self, table: str) -> int:
        """How many data files lie in the table's folder, whichever versions use them."""
        self.open(table)
        return len(LanceFileSession(self.path(table)).list("data"))

    @cached_property
    def is_local(self) -> bool:
        return "://" not in self.uri

    # -- damage ----------------------------------------------------------------------------------------------------

    def files_of(self, table: str, version: int | None = None) -> dict[str, int | None]:
        """{path within the table: bytes, where Lance knows them} of what a version stands on: manifest, rows, deletions, indices."""
        data = self.open(table, version)
        found: dict[str, int | None] = {f"_versions/{2**64 - 1 - data.version:020d}.manifest": None}
        for fragment in data.get_fragments():
            found |= {f"data/{file.path}": file.file_size_bytes for file in fragment.data_files()}
            if deleted := fragment.deletion_file():
                found[deleted] = None
        return found | dict.fromkeys(self._of_indices(data, table))

    def _of_indices(self, data: lance.LanceDataset, table: str) -> dict[str, str]:
        """{path: what is wrong with its index, or ""} of the files of all indices. Of an index Lance knows how large it is as a whole."""
        store, root = self._store(table)
        found = {}
        for segment in (segment for index in data.describe_indices() for segment in index.segments):
            folder = f"_indices/{segment.uuid}"
            files = store.get_file_info(FileSelector(f"{root}/{folder}", allow_not_found=True, recursive=True))
            sizes = {file.path.removeprefix(f"{root}/"): file.size for file in files if file.type == FileType.File}
            wrong = "" if sum(sizes.values()) == (segment.size_bytes or 0) else f"{sum(sizes.values())} bytes, not {segment.size_bytes}"
            found |= dict.fromkeys(sizes or [folder], wrong)
        return found

    def holders(self, table: str) -> dict[str, int]:
        """{path of a file of rows or deletions: the fragment that stands on it} of the newest version."""
        found = {}
        for fragment in self.open(table).get_fragments():
            paths = [*(f"data/{file.path}" for file in fragment.data_files()), fragment.deletion_file()]
            found |= {path: fragment.fragment_id for path in paths if path}
        return found

    def lacking(self, table: str, version: int | None = None) -> dict[str, str]:
        """{path: what is wrong} of files that a version stands on and that are gone or of another size. Reads none."""
        store, root = self._store(table)
        sizes = self.files_of(table, version)
        found = {path: wrong for path, wrong in self._of_indices(self.open(table, version), table).items() if wrong}
        there = store.get_file_info([f"{root}/{path}" for path in sizes])
        for (path, size), file in zip(sizes.items(), there, strict=True):
            if file.type != FileType.File:
                found[path] = "gone"
            elif size not in (None, file.size):
                found[path] = f"{file.size} bytes, not {size}"
        return found

    def sha256(self, table: str, path: str) -> str:
        """Of a file of the table; "" where it cannot be read."""
        store, root = self._store(table)
        seen = hashlib.sha256()
        try:
            with store.open_input_stream(f"{root}/{path}") as file:
                while block := file.read(1 << 22):
                    seen.update(block)
        except OSError:
            return ""
        return seen.hexdigest()

    def altered(self, table: str, version: int | None = None) -> dict[int, str]:
        """{fragment: what is wrong} where rows cannot be read, or are not those that were committed. Reads all of them."""
        found = {}
        for fragment in self.open(table, version).get_fragments():
            try:
                with self._readable(table, version):
                    for batch in fragment.to_batches(batch_size=16):
                        for row in batch.to_pylist():
                            intact(table, row)
            except Damaged as error:
                found[fragment.fragment_id] = str(error)
        return found

    def drop(self, table: str, fragments: Iterable[int]) -> int:
        """Take whole fragments out of the newest version; returns how many rows that were. Their files stay until clean-up."""
        data, gone = self.open(table), set(fragments)
        rows = sum(f.metadata.num_rows for f in data.get_fragments() if f.fragment_id in gone)
        if gone:
            lance.LanceDataset.commit(self.path(table), lance.Transaction(data.version, lance.LanceOperation.Update(sorted(gone), [], [])))
        return rows

    def drop_indices(self, table: str) -> None:
        for index in self.open(table).describe_indices():
            self.open(table).drop_index(index.name)

    def step_back(self, table: str) -> int | None:
        """Where the newest version cannot be opened: remove its manifest, and those before it, down to one that can be. Returns that
        version; where there is none, the table's folder is put aside, None comes back, and the next who writes begins it anew.

        Nothing else may run. OSError where a table in an object store has no version left: its files have to be moved by hand.
        """
        store, root = self._store(table)
        for file in sorted(store.get_file_info(FileSelector(f"{root}/_versions")), key=lambda f: f.base_name):  # the newest comes first
            if not file.base_name.endswith(".manifest"):
                continue
            try:
                version = 2**64 - 1 - int(file.base_name.removesuffix(".manifest"))
                lance.dataset(self.path(table), version=version).count_rows()
                return version
            except ValueError:
                store.delete_file(file.path)
        if not self.is_local:
            raise OSError(f"no version of {self.path(table)} can be opened: move that folder away, and run the command again")
        store.move(root, f"{root.removesuffix('.lance')}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        return None

    def _store(self, table: str = "") -> tuple[FileSystem, str]:
        """The file system, and the path in it of the lake or of a table."""
        place = self.path(table) if table else self.uri.rstrip("/")
        return (LocalFileSystem(), place) if self.is_local else FileSystem.from_uri(place)

    # -- beside the tables -----------------------------------------------------------------------------------------

    def note(self, path: str, text: str) -> None:
        """Keep a small text beside the tables, or put it in the place of the one there."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            LanceFileSession(self.uri).upload_file(file.name, path)

    def noted(self, path: str) -> str | None:
        """The text kept there; None where there is none."""
        with tempfile.NamedTemporaryFile() as file:
            try:
                LanceFileSession(self.uri).download_file(path, file.name)
            except OSError:
                return None
            return Path(file.name).read_text(errors="replace")

    def noted_at(self, path: str) -> float | None:
        """When the text there was written, by the clock of the disk or the store; None where there is none. It need not be readable."""
        store, root = self._store()
        found = store.get_file_info(f"{root}/{path}")
        return found.mtime_ns / 1e9 if found.type == FileType.File else None

    def drop_note(self, path: str) -> None:
        with contextlib.suppress(OSError):
            LanceFileSession(self.uri).delete_file(path)

    # -- forgetting ------------------------------------------------------------------------------------------------

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
class Upgrading(Lake):
    """A lake that is being brought to the present format, which is not asked for meanwhile. Of the tables named in `former` those of the
    format before are meant."""

    former: tuple[str, ...] = ()

    def path(self, table: str) -> str:
        return f"{self.uri.rstrip('/')}/{table}.lance" if table in self.former else super().path(table)

    def known(self, writes: bool = False) -> None:
        pass

    def remove(self, table: str) -> None:
        """Delete a table's folder, whatever is in it."""
        store, root = self._store(table)
        with contextlib.suppress(FileNotFoundError):
            store.delete_dir(root)


@dataclass(frozen=True)
class Glimpse(Lake):
    """A lake to look at: a table that is not there reads as empty, and nothing can be written."""

    def open(self, table: str, version: int | None = None) -> lance.LanceDataset:
        if table in TABLES and not self.exists(table):  # which asks for the lake's format, too
            return lance.write_dataset(TABLES[table].empty_table(), "memory://", mode="overwrite", **_STORAGE)
        return super().open(table, version)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{self.uri} is only looked at")

    write_fragments = commit = upsert = tag = compact = index = clean = untag = relabel = purge = note = drop_note = drop = drop_indices = (
        step_back
    ) = _refuse


def ask(uri: str) -> Glimpse:
    """A lake to look at; ValueError where there is none."""
    found = Glimpse(uri)
    if not any(found.exists(table) for table in TABLES):
        raise ValueError(f"no lake at {found.uri}: none of its tables is there. Check --lake; `egomill rebuild` makes one")
    return found


def one_of(column: str, values: Iterable[Any]) -> str:
    """An SQL condition: the column is one of the values (quoted here; an empty list is never true)."""
    quoted = ", ".join("'" + str(v).replace("'", "''") + "'" for v in values)
    return f"{column} IN ({quoted})" if quoted else "false"


def all_of(*conditions: str) -> str:
    """SQL conditions in one; "" is none."""
    return " AND ".join(f"({condition})" for condition in conditions if condition)


def intact(table: str, row: dict) -> None:
    """Damaged where the values of a row, all columns of it, are not those that were committed."""
    if table == "takes" or not row.get("content") or not set(MADE) <= set(TABLES[table].names):
        return  # a take's `content` is not of all its columns
    null = [column for column, value in row.items() if value is None and column not in NO_CONTENT]
    later = (columns for n in range(3) for columns in combinations(null, n))  # that came to the table after the row: two at most are tried
    if not any(row["content"] == content_of(row, (*NO_CONTENT, *columns)) for columns in later):
        name = " ".join(str(row[key]) for key in KEYS[table])
        raise Damaged(f"row {name} of table {table} is not what was committed: `egomill repair` makes it pending again")


def _outrun(error: OSError) -> bool:
    """Another's commit came between. Lance says so with an error of its own in some places, with a plain one in others."""
    return isinstance(error, CommitConflictError) or "commit conflict" in str(error).lower()


def _unless_outrun(work: Callable[[], Any]) -> bool:
    try:
        work()
    except OSError as error:
        if not _outrun(error):
            raise
        return False
    return True


# -- which fragment holds a key ------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """What this process has seen of a table: each fragment's file, and where each key was seen last.

    A fragment's rows never change, only vanish; so a key may be said to stand where it stands no longer, but is never missed.
    """

    files: dict[int, str] = field(default_factory=dict)
    where: dict[tuple[str, ...], int] = field(default_factory=dict)


_known: dict[str, _Known] = {}
_lock = threading.Lock()


def _look(data: lance.LanceDataset, table: str, keys: Iterable[tuple[str, ...]]) -> tuple[dict[int, str], set[int]]:
    """{fragment: its file} of the dataset, and the fragments that may hold one of the keys. Reads only what this process has not seen."""
    present = {fragment.fragment_id: fragment for fragment in data.get_fragments()}
    with _lock:
        known = _known.setdefault(data.uri, _Known())
        both = present.keys() & known.files.keys()
        if both and known.files[min(both)] != present[min(both)].metadata.files[0].path:  # a table made anew in that one's place
            known.files, known.where = {}, {}
        unseen = [present[number] for number in sorted(present.keys() - known.files.keys())]
        if unseen:
            for key, address in _scan(data, list(KEYS[table]), fragments=unseen):
                known.where[key] = address >> 32
        fresh = {fragment.fragment_id: fragment.metadata.files[0].path for fragment in unseen}
        known.files = {number: fresh.get(number) or known.files[number] for number in present}
        return known.files, {known.where[key] for key in keys if key in known.where} & present.keys()


def _fragment(data: lance.LanceDataset, number: int) -> LanceFragment:
    found = data.get_fragment(number)
    assert found is not None
    return found


def _scan(data: lance.LanceDataset, columns: list[str], **how: Any) -> Iterable[tuple[tuple[str, ...], int]]:
    """(key, row address) pairs; an address is the fragment in the upper 32 bits and the row's place in it in the lower."""
    found = data.scanner(columns=columns, with_row_address=True, **how).to_table()
    keys = zip(*(found[column].to_pylist() for column in columns), strict=True)
    return zip(keys, found["_rowaddr"].to_pylist(), strict=True)


def _without(
    data: lance.LanceDataset, table: str, replace: str, keys: set[tuple[str, ...]], among: set[int]
) -> tuple[list[int], list[FragmentMetadata]]:
    """Delete the rows that meet `replace`, and from the fragments `among` those with one of the keys.

    Returns the fragments of which nothing is left, and those that have more deleted rows than before.
    """
    gone: dict[int, list[int]] = {}
    columns = list(KEYS[table])
    doomed = [address for _, address in _scan(data, columns, filter=replace)] if replace else []
    if among:
        one = one_of(columns[0], dict.fromkeys(key[0] for key in keys))
        some = [_fragment(data, number) for number in sorted(among)]
        doomed += [address for key, address in _scan(data, columns, filter=one, fragments=some) if key in keys]
    for address in set(doomed):
        gone.setdefault(address >> 32, []).append(address & 0xFFFFFFFF)
    removed, updated = [], []
    for number, offsets in gone.items():
        rest = _fragment(data, number).delete_rows(offsets)
        if rest is None:
            removed.append(number)
        else:
            updated.append(rest)
    return removed, updated
