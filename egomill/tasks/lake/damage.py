"""What lies on disk, held against what a table says of it; and what is damaged taken out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

import lance
from pyarrow.fs import FileSelector, FileType

from egomill.tasks.lake.folders import listed
from egomill.tasks.lake.tables import Damaged, Lake, intact


def files_of(lake: Lake, table: str, version: int | None = None) -> dict[str, int | None]:
    """{path within the table: bytes, where Lance knows them} of what a version stands on: manifest, rows, deletions, indices."""
    data = lake.open(table, version)
    found: dict[str, int | None] = {f"_versions/{2**64 - 1 - data.version:020d}.manifest": None}
    for fragment in data.get_fragments():
        found |= {f"data/{file.path}": file.file_size_bytes for file in fragment.data_files()}
        if deleted := fragment.deletion_file():
            found[deleted] = None
    return found | dict.fromkeys(_of_indices(lake, data, table))


def _of_indices(lake: Lake, data: lance.LanceDataset, table: str) -> dict[str, str]:
    """{path: what is wrong with its index, or ""} of the files of all indices. Of an index Lance knows how large it is as a whole."""
    store, root = lake.store(table)
    found = {}
    for segment in (segment for index in data.describe_indices() for segment in index.segments):
        folder = f"_indices/{segment.uuid}"
        files = listed(store, f"{root}/{folder}", recursive=True)
        sizes = {file.path.removeprefix(f"{root}/"): file.size for file in files if file.type == FileType.File}
        wrong = "" if sum(sizes.values()) == (segment.size_bytes or 0) else f"{sum(sizes.values())} bytes, not {segment.size_bytes}"
        found |= dict.fromkeys(sizes or [folder], wrong)
    return found


def holders(lake: Lake, table: str) -> dict[str, int]:
    """{path of a file of rows or deletions: the fragment that stands on it} of the newest version."""
    found = {}
    for fragment in lake.open(table).get_fragments():
        paths = [*(f"data/{file.path}" for file in fragment.data_files()), fragment.deletion_file()]
        found |= {path: fragment.fragment_id for path in paths if path}
    return found


def lacking(lake: Lake, table: str, version: int | None = None) -> dict[str, str]:
    """{path: what is wrong} of files that a version stands on and that are gone or of another size. Reads none."""
    store, root = lake.store(table)
    sizes = files_of(lake, table, version)
    found = {path: wrong for path, wrong in _of_indices(lake, lake.open(table, version), table).items() if wrong}
    there = store.get_file_info([f"{root}/{path}" for path in sizes])
    for (path, size), file in zip(sizes.items(), there, strict=True):
        if file.type != FileType.File:
            found[path] = "gone"
        elif size not in (None, file.size):
            found[path] = f"{file.size} bytes, not {size}"
    return found


def sha256(lake: Lake, table: str, path: str) -> str:
    """Of a file of the table; "" where it cannot be read."""
    store, root = lake.store(table)
    seen = hashlib.sha256()
    try:
        with store.open_input_stream(f"{root}/{path}") as file:
            while block := file.read(1 << 22):
                seen.update(block)
    except OSError:
        return ""
    return seen.hexdigest()


def altered(lake: Lake, table: str, version: int | None = None) -> dict[int, str]:
    """{fragment: what is wrong} where rows cannot be read, or are not those that were committed. Reads all of them."""
    found = {}
    for fragment in lake.open(table, version).get_fragments():
        try:
            with lake.readable(table, version):
                for batch in fragment.to_batches(batch_size=16):
                    for row in batch.to_pylist():
                        intact(table, row)
        except Damaged as error:
            found[fragment.fragment_id] = str(error)
    return found


def drop(lake: Lake, table: str, fragments: Iterable[int]) -> int:
    """Take whole fragments out of the newest version; returns how many rows that were. Their files stay until clean-up."""
    lake.writes()
    data, gone = lake.open(table), set(fragments)
    rows = sum(f.metadata.num_rows for f in data.get_fragments() if f.fragment_id in gone)
    if gone:
        lance.LanceDataset.commit(lake.path(table), lance.Transaction(data.version, lance.LanceOperation.Update(sorted(gone), [], [])))
    return rows


def drop_indices(lake: Lake, table: str) -> None:
    lake.writes()
    for index in lake.open(table).describe_indices():
        lake.open(table).drop_index(index.name)


def step_back(lake: Lake, table: str) -> int | None:
    """Where the newest version cannot be opened: remove its manifest, and those before it, down to one that can be. Returns that
    version; where there is none, the table's folder is put aside, None comes back, and the next who writes begins it anew.

    Nothing else may run. OSError where a table in an object store has no version left: its files have to be moved by hand.
    """
    lake.writes()
    store, root = lake.store(table)
    for file in sorted(store.get_file_info(FileSelector(f"{root}/_versions")), key=lambda f: f.base_name):  # the newest comes first
        if not file.base_name.endswith(".manifest"):
            continue
        try:
            version = 2**64 - 1 - int(file.base_name.removesuffix(".manifest"))
            lance.dataset(lake.path(table), version=version).count_rows()
            return version
        except ValueError:
            store.delete_file(file.path)
    if not lake.is_local:
        raise OSError(f"no version of {lake.path(table)} can be opened: move that folder away, and run the command again")
    store.move(root, f"{root.removesuffix('.lance')}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    return None
