"""What a file can make us take of memory is bounded by its size on disk, whatever it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from egomill.tasks.media.untrusted import FREE, GROWS, MEGABYTE, npy_header, npz, parse_json

SIZE = 16 * MEGABYTE
CHILD = """
import resource, sys
from pathlib import Path
from egomill.tasks.media.untrusted import Bad, load_json
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_json(Path(sys.argv[1]), "take_unreadable")
    print("read", end=" ")
except Bad as bad:
    print("refused", end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def filled(piece: bytes, spaces: int = 0) -> bytes:
    piece += b" " * spaces
    return b"[" + piece * (SIZE // len(piece)) + b"0]"


FILES = {
    "empty lists": (filled(b"[],"), "refused"),
    "empty lists, with as much between them as passes": (filled(b"[],", 7), "read"),
    "nested lists": (filled(b"[[[]]],"), "refused"),
    "small objects": (filled(b'{"a":{}},'), "refused"),
    "small objects, with as much between them as passes": (filled(b'{"a":1},', 21), "read"),
    "one object of many keys": (b"{" + b",".join(b'"%x":   1' % i for i in range(SIZE // 13)) + b"}", "read"),
    "short numbers": (filled(b"1.5,"), "read"),
    "texts, one of them no Unicode": (filled(b'"abcdefg",')[:-2] + b'"\\ud800"]', "refused"),
    "one text with one wide letter": (b'"' + b"a" * SIZE + "\U0001f600".encode() + b'"', "read"),
    "one deep list": (b"[" * SIZE, "refused"),
    "bytes of 0": (bytes(SIZE), "refused"),
}


@pytest.mark.parametrize("name", FILES)
def test_json_takes_memory_by_its_size(name, tmp_path):
    data, fate = FILES[name]
    (tmp_path / "x.json").write_bytes(data)
    said = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "x.json")], capture_output=True, text=True, check=True)
    told, peak = said.stdout.split()
    assert told == fate
    assert int(peak) < 20 * len(data)


def test_small_json_may_be_divided_as_finely_as_it_likes_and_large_json_may_not():
    assert parse_json(b"[" + b"[]," * 100_000 + b"0]")[:2] == [[], []]
    poses = json.dumps({str(i): np.linspace(0, 1 / 3, 12).reshape(3, 4).tolist() for i in range(20_000)}).encode()
    assert len(poses) * GROWS > FREE / 2
    assert len(parse_json(poses)) == 20_000
    with pytest.raises(ValueError, match="MB of memory"):
        parse_json(filled(b"[],"))


def test_of_an_archive_one_picture_at_a_time_is_held(tmp_path):
    """25 pictures of 16 MB in a file of 0.4 MB."""
    np.savez_compressed(tmp_path / "x.npz", dynamic_depth=np.zeros((25, 2000, 2000), np.float32))
    tracemalloc.start()
    with npz(tmp_path / "x.npz", "dynamic_depth") as arrays:
        found = arrays.pictures("dynamic_depth", range(25), 4_000_000, lambda picture: picture[::500, ::500].copy())
    assert found.shape == (25, 4, 4)
    assert tracemalloc.get_traced_memory()[1] < 80 * MEGABYTE
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_numpy_does_not_write(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
        archive.writestr("static_depth.npy", bytes(1000))
    with pytest.raises(ValueError, match="NumPy does not write"), npz(tmp_path / "x.npz", "static_depth"):
        pass


def test_a_directory_that_is_the_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for number in range(25_000):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(ValueError, match="zip directory of more than"), npz(tmp_path / "x.npz", "static_depth"):
        pass


def test_an_array_of_one_enormous_text(tmp_path):
    (tmp_path / "x.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<U200000000', 'fortran_order': False, 'shape': (), }".ljust(0x75) + b"\n"
    )
    with pytest.raises(ValueError, match="no kind of number"):
        npy_header(tmp_path / "x.npy")
