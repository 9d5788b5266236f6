"""Files that others wrote: paths that must stay inside their folder, files that must be files, JSON that must be small, strict and say each
thing once, arrays that must be as large as they say and no larger than asked.

Everything that a data set says of itself passes here first. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from egomill.schemas.outcome import Rejected

MEGABYTE = 1 << 20
FILE_LIMIT = 64 * 1024 * MEGABYTE  # of any one file: it is hashed, and a sparse one says any size for nothing
NUMBERS = 4096  # bytes of a file of numbers
_HEADER = 16384  # bytes
JSON_LIMIT = 64 * MEGABYTE  # the poses of an hour are some 30 MB
# Python's objects for what JSON's signs begin, bytes (measured). A list of empty lists would take 21 times its text.
_OBJECTS = {b"[": 80, b"{": 190, b":": 60, b",": 32, b'"': 28}
GROWS = 12  # by how much a text's objects may be larger than it: takes.json comes to 10, poses to 3
FREE = 64 * MEGABYTE  # of objects whatever the text's size
MOST = 4096 * MEGABYTE  # of objects whatever the text's size
DIRECTORY = MEGABYTE  # of a zip archive: 20,000 arrays; ours hold two


class Bad(Exception):
    """Something is wrong with the data: carries the rejection that a stage returns."""

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = detail.encode(errors="backslashreplace").decode()  # names on disk may be no Unicode, which no table can store
        super().__init__(f"{reason}: {detail}")
        self.rejected = Rejected(reason, detail)


# -- paths and files -----------------------------------------------------------------------------------------------------


def inside(root: Path, relative: Any, allow: Iterable[str] = ()) -> Path:
    """The path below `root`, or below one of the folders `allow`, that a data set names, symbolic links followed; the file need not exist.
    Bad(path_outside_root) otherwise, Bad(file_unusable) where no file can have that name."""
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise Bad("path_outside_root", f"{str(relative)[:200]!r} is no path")
    path = root / relative
    try:
        if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(path)) > 4000:
            raise Bad("file_unusable", f"{relative[:200]}...: too long a name")
        leads_to = path.resolve()
        leads_out = not any(leads_to.is_relative_to(Path(place).resolve()) for place in (root, *allow))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a link that leads to itself
        raise Bad("file_unusable", f"{relative[:200]}: {_brief(error)}") from None
    if leads_out:
        told = f"{relative[:200]} leads to {str(leads_to)[:200]}, outside of the data set"
        raise Bad("path_outside_root", f"{told}: copy it in, or name a folder that its links may lead to with --allow FOLDER")
    return path


def below(root: Path, path: Path) -> str:
    """How a row names a path that is `inside`: relative to the root, or, in an allowed folder that an index names outright, absolute."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def regular(root: Path, relative: Any, allow: Iterable[str] = ()) -> Path:
    """The path `inside` root of a file that is there, is one and may be read. Bad(file_unusable) otherwise: a pipe would be waited for."""
    path = inside(root, relative, allow)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"a {_kind(found.st_mode)}, not a file")
        if found.st_size > FILE_LIMIT:
            raise OSError(f"{found.st_size} bytes, more than {FILE_LIMIT}")
        with opened(path):  # whether it may be read
            pass
    except OSError as error:
        raise Bad("file_unusable", f"{relative}: {error.strerror or error}") from None
    return path


@contextmanager
def opened(path: Path):
    """A regular file, open for reading; never waits for a pipe's other end. Errors: OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(f"a {_kind(mode)}, not a file")
        yield file


def stat_signature(root: Path, files: Iterable[str]) -> list[list]:
    """[[relative path, bytes, mtime in ns], ...], sorted; a file that is not there counts as such. Cheap: no content is read.

    Of a folder: the bytes of the files in it, and the newest time of those and of itself.
    """
    found = []
    for name in sorted(files):
        try:
            at = os.stat(root / name)
            within = [entry.stat() for entry in os.scandir(root / name)] if stat.S_ISDIR(at.st_mode) else [at]
            newest = max([at.st_mtime_ns, *(one.st_mtime_ns for one in within)])
            found.append([name, sum(one.st_size for one in within), newest])
        except OSError:
            found.append([name, -1, -1])
    return found


# -- JSON ----------------------------------------------------------------------------------------------------------------


def load_json(path: Path, reason: str, limit: int = JSON_LIMIT) -> Any:
    """A JSON file's value. Bad(reason) where it is missing, no file, larger than `limit` bytes, or not as `parse_json` wants it."""
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise ValueError(f"{size} bytes, more than {limit}")
            data = bytearray()  # piece by piece: a file may be one large hole
            while len(data) < size and (piece := file.read(min(MEGABYTE, size - len(data)))):
                if b"\0" in piece:
                    raise ValueError("bytes of 0 in it: no text in UTF-8")
                data += piece
            return parse_json(data)
    except (OSError, ValueError) as error:
        raise Bad(reason, f"{path.name}: {_brief(error)}") from None


def parse_json(data: bytes | bytearray) -> Any:
    """The value. ValueError where it is no JSON, is nested beyond reason, names a key twice in one object, holds text that is no Unicode
    (half a surrogate pair, which no table can store), or where Python's objects for it would be `GROWS` times as large as it."""
    size = sum(data.count(sign) * each for sign, each in _OBJECTS.items())
    if size > min(max(FREE, GROWS * len(data)), MOST):
        raise ValueError(f"{len(data)} bytes of JSON so finely divided that they would take {size // MEGABYTE} MB of memory")
    try:
        value = json.loads(data, object_pairs_hook=_once)
        if b"\\ud" in data or b"\\uD" in data:
            _encode(value)
        return value
    except RecursionError as error:
        raise ValueError(_brief(error)) from None


def _encode(value: Any) -> None:
    """UnicodeEncodeError, a ValueError, where a text in the value is no Unicode."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            one.encode()
        elif isinstance(one, dict):
            todo += one.keys()
            todo += one.values()
        elif isinstance(one, list):
            todo += one


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


def read_numbers(path: Path, counts: Iterable[int], reason: str) -> np.ndarray:
    """The numbers of a small text file, of one of these counts, finite. Bad(reason) otherwise."""
    name = "/".join(path.parts[-2:])
    try:
        with opened(path) as file:
            told = file.read(NUMBERS + 1)
        if len(told) > NUMBERS:
            raise ValueError(f"more than {NUMBERS} bytes")
        values = told.decode("ascii").split()
    except FileNotFoundError:
        raise Bad(reason, f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise Bad(reason, f"{name}: {getattr(error, 'strerror', None) or str(error)[:100]}") from None
    if len(values) not in set(counts):
        raise Bad(reason, f"{name}: {len(values)} numbers instead of {' or '.join(map(str, counts))}")
    try:
        found = [float(value) for value in values]
    except ValueError:
        raise Bad(reason, f"{name}: not numbers") from None
    return numbers(found, (len(found),), name, reason)


# -- arrays --------------------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What an array says of itself, and where its data begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    by_column: bool
    offset: int


def npy_header(path: Path) -> Header:
    """Of a .npy file, without its data. ValueError or OSError where it is none, needs pickle, or is not as large as it says."""
    with opened(path) as file:
        return _header(file, os.fstat(file.fileno()).st_size)


def load_npy(path: Path, most: int) -> np.ndarray:
    """A .npy file of at most `most` numbers. Errors as of `npy_header`."""
    shape = npy_header(path).shape
    if math.prod(shape) > most:
        raise ValueError(f"{path.name}: {shape} is more than {most} numbers")
    return np.load(path, allow_pickle=False)


class Npz:
    """An open .npz file. Opening it reads the headers of those of `names` that are in it (`heads`); `pictures` and `items` read data.

    Errors, here and there: ValueError or OSError.
    """

    def __init__(self, file: IO[bytes], names: Iterable[str]) -> None:
        self.heads: dict[str, Header] = {}
        with _archive_errors():
            directory = _Sparing(file)
            self.archive = zipfile.ZipFile(cast(IO[bytes], directory))
            directory.most = None
            for name in set(names) & {n.removesuffix(".npy") for n in self.archive.namelist()}:
                if self.archive.getinfo(f"{name}.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{name}: packed in a way that NumPy does not write")  # and that unpacks a few bytes to gigabytes
                with self.archive.open(f"{name}.npy") as entry:
                    self.heads[name] = _header(entry, self.archive.getinfo(f"{name}.npy").file_size)

    def pictures(
        self, name: str, wanted: Iterable[int], most: int, of: Callable[[np.ndarray], np.ndarray] = lambda picture: picture
    ) -> np.ndarray:
        """The pictures `wanted` of an array [N, H, W], ascending, or the one of an array [H, W] as [1, H, W]; `most` pixels each at most.
        Of each, what `of` makes of it.

        One picture at a time is in memory beside what is kept. The rest is read past, so that the checksum of the whole is seen to hold.
        """
        shape, by_column = self.heads[name].shape, self.heads[name].by_column
        count, *size = shape if len(shape) == 3 else (1, *shape)
        if len(size) != 2 or math.prod(size) > most or by_column:
            raise ValueError(f"{name}: {shape} is no row of pictures of at most {most} pixels")
        return self._read(name, wanted, count, tuple(size), of)

    def items(self, name: str, wanted: Iterable[int], size: tuple[int, ...]) -> np.ndarray:
        """The items `wanted` of an array [N, *size], ascending."""
        shape, by_column = self.heads[name].shape, self.heads[name].by_column
        if shape[1:] != size or by_column:
            raise ValueError(f"{name}: {shape} is no row of {size}")
        return self._read(name, wanted, shape[0], size, lambda item: item)

    def _read(
        self, name: str, wanted: Iterable[int], count: int, size: tuple[int, ...], of: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        _, dtype, _, offset = self.heads[name]
        found: dict[int, np.ndarray] = dict.fromkeys(wanted, np.empty(0))
        if not all(0 <= number < count for number in found):
            raise ValueError(f"{name}: pictures {min(found)}..{max(found)} asked of {count}")
        length = math.prod(size) * dtype.itemsize
        with _archive_errors(), self.archive.open(f"{name}.npy") as entry:
            entry.read(offset)
            for number in range(count):
                data = entry.read(length)
                if number in found:
                    found[number] = of(np.frombuffer(data, dtype).reshape(size))
            entry.read(1)
        return np.stack([found[number] for number in sorted(found)])


@contextmanager
def npz(path: Path, *names: str):
    """An `Npz` of a file."""
    with opened(path) as file:
        yield Npz(file, names)


class _Sparing:
    """A file for `zipfile`, which takes a directory into memory whatever its size: nothing above `most` bytes is read at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.most: int | None = DIRECTORY
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.most is None:
            return self.file.read(size)
        data = self.file.read(self.most + 1 if size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise ValueError(f"a zip directory of more than {self.most} bytes")
        return data


@contextmanager
def _archive_errors():
    """Whatever the standard library finds wrong with an archive (it has no one class for it) as ValueError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, KeyError, struct.error) as error:
        raise ValueError(_brief(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        raise ValueError(f"key twice: {next(k for k, _ in pairs if k in seen or seen.add(k))!r}")
    return out


def _header(file: IO[bytes], size: int) -> Header:
    """The header at the start of `size` bytes of .npy, whose data must fill the rest."""
    start = io.BytesIO(file.read(_HEADER))  # a header may say that it goes on for gigabytes
    try:
        version = np.lib.format.read_magic(start)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(start)
    except Exception as error:  # NumPy hands it to Python's own parser, which fails in many ways
        raise ValueError(f"no header of an array: {_brief(error)}") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    if dtype.kind not in "biuf":
        raise ValueError(f"{str(dtype)[:50]} is no kind of number")  # one text of a gigabyte is one element
    if any(n < 0 for n in shape) or size != start.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{dtype} {shape} in {size} bytes: cut short, or longer than it says")
    return Header(shape, dtype, by_column and len(shape) > 1, start.tell())


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
