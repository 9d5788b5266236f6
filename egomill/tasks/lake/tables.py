"""The lake: one Lance table a kind of thing.

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
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.file import LanceFileSession
from lance.fragment import FragmentMetadata, write_fragments
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from egomill.schemas.fingerprint import content_of, digest
from egomill.schemas.tables import ASIDE, FOLDERS, FORMAT, KEYS, MADE, NO_CONTENT, TABLES, take_of
from egomill.tasks.lake.folders import listed
from egomill.tasks.lake.fragments import fragment, look, one_of, without

_STORAGE = {"data_storage_version": "2.2", "enable_stable_row_ids": True}
FRESH_DAYS = 5  # a day or two less than the age at which clean-up takes files of no version for a dead writer's
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
        return f"{self.uri.rstrip('/')}/{self.folder(table)}"

    def folder(self, table: str) -> str:
        """The name of the table's folder in the lake."""
        return f"{FOLDERS.get(table, table)}.lance"

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
        store, root = self.store()
        number = self.said()
        tables = listed(store, root) if number is None else []
        if any(file.base_name.endswith(".lance") for file in tables):
            number = self.said()  # whoever made the table said it before, and perhaps after we asked
            if number is None:
                todo = f"`egomill lake upgrade --lake {self.uri}`"
                raise ValueError(f"lake {self.uri} is of format 1, and this version of Egomill knows {FORMAT}: {todo}")
        if number is None:
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
        with self.readable(table, version):
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
        with self.readable(table):
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
    def readable(self, table: str, version: int | None = None) -> Iterator[None]:
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

    def writes(self) -> None:
        """RuntimeError where a lake may only be looked at."""

    def version(self, table: str) -> int:
        return self.open(table).version

    def count(self, table: str, where: str | None = None, version: int | None = None) -> int:
        data = self.open(table, version)
        with self.readable(table, version):
            return data.count_rows(filter=where or None)

    def read(self, table: str, columns: Sequence[str] | None = None, where: str | None = None, version: int | None = None) -> pa.Table:
        """Columns of the rows that meet the SQL filter, at a version. A column that an earlier release of Egomill did not write is null
        where it is asked for by name. Damaged where they cannot be read.
        """
        data = self.open(table, version)
        with self.readable(table, version):
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
            with self.readable(table):
                present, suspects = look(data, table, keys)
            if new and files & set(present.values()):
                return data.version
            self._refuse_forgotten(table, keys, files)  # after the version was read: see `fence`
            if new and attempt == 0 and not self._usable(table, files, written):
                raise ValueError(f"table {table}: files written over {FRESH_DAYS} days ago, or gone: write them again")
            with self.readable(table):
                removed, updated = without(data, table, replace, keys, suspects)
            if not (new or removed or updated or fence):
                return data.version
            operation, retries = lance.LanceOperation.Update(removed, updated, new), 20
            if not present:  # nothing to hold on to: an empty table is overwritten, which stands on exactly its version
                operation, retries = lance.LanceOperation.Overwrite(data.schema, new), 0
            elif new or fence:
                # Two updates conflict where they touch the same fragment. So each that brings rows touches the oldest, changed or not.
                oldest = min(present)
                if oldest not in {*removed, *(f.id for f in updated)}:
                    updated.append(fragment(data, oldest).metadata)
            transaction = lance.Transaction(data.version, operation, transaction_properties=properties or {})
            try:
                return lance.LanceDataset.commit(self.path(table), transaction, max_retries=retries).version
            except OSError as error:
                if not outrun(error):
                    raise
                time.sleep(random.uniform(0, 0.02) * min(attempt + 1, 10))
        raise OSError(f"table {table}: other writers were faster {_ATTEMPTS} times: run the command again")

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

    @cached_property
    def is_local(self) -> bool:
        return "://" not in self.uri

    # -- damage ----------------------------------------------------------------------------------------------------

    def store(self, table: str = "") -> tuple[FileSystem, str]:
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
        store, root = self.store()
        found = store.get_file_info(f"{root}/{path}")
        return found.mtime_ns / 1e9 if found.type == FileType.File else None

    def drop_note(self, path: str) -> None:
        with contextlib.suppress(OSError):
            LanceFileSession(self.uri).delete_file(path)

    # -- forgetting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upgrading(Lake):
    """A lake that is being brought to the present format, which is not asked for meanwhile. Of the tables named in `former` those of the
    format before are meant."""

    former: tuple[str, ...] = ()

    def folder(self, table: str) -> str:
        return f"{table}.lance" if table in self.former else super().folder(table)

    def known(self, writes: bool = False) -> None:
        pass

    def remove(self, table: str) -> None:
        """Delete a table's folder, whatever is in it."""
        store, root = self.store(table)
        with contextlib.suppress(FileNotFoundError):
            store.delete_dir(root)


@dataclass(frozen=True)
class Glimpse(Lake):
    """A lake to look at: a table that is not there reads as empty, and nothing can be written."""

    def open(self, table: str, version: int | None = None) -> lance.LanceDataset:
        if table in TABLES and not self.exists(table):  # which asks for the lake's format, too
            return lance.write_dataset(TABLES[table].empty_table(), "memory://", mode="overwrite", **_STORAGE)
        return super().open(table, version)

    def writes(self) -> None:
        raise RuntimeError(f"{self.uri} is only looked at")

    def _refuse(self, *_: Any, **__: Any) -> Any:
        self.writes()

    write_fragments = commit = upsert = note = drop_note = _refuse


def ask(uri: str) -> Glimpse:
    """A lake to look at; ValueError where there is none."""
    found = Glimpse(uri)
    if not any(found.exists(table) for table in TABLES):
        raise ValueError(f"no lake at {found.uri}: none of its tables is there. Check --lake; `egomill rebuild` makes one")
    return found


def intact(table: str, row: dict) -> None:
    """Raise Damaged where the values of a row, all columns of it, are not those that were committed."""
    if table == "takes" or not row.get("content") or not set(MADE) <= set(TABLES[table].names):
        return  # a take's `content` is not of all its columns
    beside = (*NO_CONTENT, *(column for column in ASIDE.get(table, ()) if row.get(column) is not None))
    null = [column for column in row if row[column] is None and column not in beside]
    later = (columns for n in range(3) for columns in combinations(null, n))  # that came to the table after the row: two at most are tried
    if not any(row["content"] == content_of(row, (*beside, *columns)) for columns in later):
        name = " ".join(str(row[key]) for key in KEYS[table])
        raise Damaged(f"row {name} of table {table} is not what was committed: `egomill repair` makes it pending again")


def outrun(error: OSError) -> bool:
    """Whether the error says that another's commit came between. Lance raises one of its own in some places, a plain one in others."""
    return isinstance(error, CommitConflictError) or "commit conflict" in str(error).lower()
