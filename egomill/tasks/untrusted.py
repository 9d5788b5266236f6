"""Files that others wrote: paths that must stay inside their folder, JSON that must be small, strict and say each thing once.

Everything that a data set says of itself passes here first. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from egomill.schemas.outcome import Rejected

MEGABYTE = 1 << 20


class Bad(Exception):
    """Something is wrong with the data: carries the rejection that a stage returns."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.rejected = Rejected(reason, detail)


def inside(root: Path, relative: Any) -> Path:
    """The path below `root` that a data set names, symbolic links followed; the file need not exist. Bad(path_outside_root) otherwise."""
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise Bad("path_outside_root", f"{str(relative)[:200]!r} is no path")
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise Bad("path_outside_root", relative[:200])
    return path


def load_json(path: Path, reason: str, limit: int = 64 * MEGABYTE) -> Any:
    """A JSON file's value. Bad(reason) where it is missing, larger than `limit` bytes, no JSON, names a key twice in one object, or holds
    text that is no Unicode (half a surrogate pair, which no table can store)."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise Bad(reason, f"{path.name}: {size} bytes, more than {limit}")
        data = path.read_bytes()
        value = json.loads(data, object_pairs_hook=_once)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise Bad(reason, f"{path.name}: {_brief(error)}") from None


def numbers(value: Any, shape: tuple[int, ...], what: str, reason: str) -> np.ndarray:
    """float64 array of that shape out of nested lists of finite numbers. Bad(reason) naming `what` otherwise."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Bad(reason, f"{what}: not numbers") from None
    if array.shape != shape:
        raise Bad(reason, f"{what}: shape {array.shape} instead of {shape}")
    if not np.isfinite(array).all():
        raise Bad(reason, f"{what}: not finite")
    return array


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a .npy file, without its data. ValueError or OSError where it is none; dtypes that need pickle are refused."""
    with path.open("rb") as file:
        shape, dtype = _header(file)
        if path.stat().st_size != file.tell() + math.prod(shape) * dtype.itemsize:
            raise ValueError("cut short, or longer than it says")
    return shape, dtype


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and dtypes of an .npz file's arrays, without their data. ValueError or OSError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    found[name.removesuffix(".npy")] = _header(file)
            return found
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(str(error)) from None


def stat_signature(root: Path, files: Iterable[str]) -> list[list]:
    """[[relative path, bytes, mtime in ns], ...], sorted; a file that is not there counts as such. Cheap: no content is read."""
    found = []
    for name in sorted(files):
        try:
            at = os.stat(root / name)
            found.append([name, at.st_size, at.st_mtime_ns])
        except OSError:
            found.append([name, -1, -1])
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        raise ValueError(f"key twice: {next(k for k, _ in pairs if k in seen or seen.add(k))!r}")
    return out


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    return shape, dtype


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
