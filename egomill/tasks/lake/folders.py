"""What lies in a folder of a disk or an object store, which others may be making meanwhile."""

from __future__ import annotations

from pyarrow.fs import FileInfo, FileSelector, FileSystem


def listed(store: FileSystem, folder: str, recursive: bool = False) -> list[FileInfo]:
    """The entries; none where there is no such folder.

    A folder that is made between Arrow's two looks, at its entries and then for itself, is an error to Arrow; the next time it is there.
    """
    selector = FileSelector(folder, allow_not_found=True, recursive=recursive)
    for _ in range(10):
        try:
            return store.get_file_info(selector)
        except FileNotFoundError:
            continue
    return store.get_file_info(selector)
