"""Trajectories as TUM's tools write them, which most trackers can: one pose a line, `timestamp tx ty tz qx qy qz qw`, # for comments.

Columns are parted by blanks or by commas. A line that names them, behind a # or not, may come first; it is believed where it names other
ones, and the file then refused.
"""

from __future__ import annotations

import io
import math
import re
from array import array
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from egomill.tasks.media.untrusted import MEGABYTE, opened

FIELDS = "timestamp tx ty tz qx qy qz qw"
LIMIT = 256 * MEGABYTE
UNIT = 1e-3  # by which a quaternion's length may differ from 1: four decimals are the custom
TIMES = {"t", "time", "times", "timestamp", "timestamps", "stamp"}
SECONDS = {"s", "sec", "secs", "second", "seconds"}
ROTATION = "q[wxyz]?|quat|quaternion|rot|rotation|orientation"


class Trajectory(NamedTuple):
    """Times [N] in the file's seconds, poses [N, 4, 4] (metres), both float64, and the line of the file [N] that each stands on."""

    seconds: Tensor
    T: Tensor
    lines: Tensor


def read_tum(path: Path) -> Trajectory:
    """The poses of a file; Hamilton quaternions, w last.

    ValueError with the line's number on what is no pose, no finite number, no unit quaternion or no later time than the line before, and on
    columns that are named and are others than these; and where there are fewer than two poses.
    """
    values, lines = array("d"), array("q")
    try:
        with opened(path) as file:
            if file.seek(0, io.SEEK_END) > LIMIT:
                raise ValueError(f"{path}: more than {LIMIT} bytes; leave out what lies outside of the clip")
            file.seek(0)
            for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig"), start=1):
                row = _pose(line, f"{path} line {number}", first=not lines)
                if row and lines and row[0] <= values[-8]:
                    raise ValueError(f"{path} line {number}: time {row[0]} does not come after {values[-8]}")
                if row:
                    values.extend(row)
                    lines.append(number)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no text in UTF-8 (line {len(lines) + 1} or later); save it as plain text") from None
    except OSError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(lines) < 2:
        raise ValueError(f"{path}: {len(lines)} poses; a path has at least two (of a head at rest, the same pose twice)")
    table = torch.frombuffer(values, dtype=torch.float64).reshape(-1, 8).clone()
    T = torch.eye(4, dtype=torch.float64).repeat(len(lines), 1, 1)
    T[:, :3, :3] = torch.from_numpy(Rotation.from_quat(table[:, 4:].numpy()).as_matrix())
    T[:, :3, 3] = table[:, 1:4]
    return Trajectory(table[:, 0].clone(), T, torch.frombuffer(lines, dtype=torch.int64).clone())


def _pose(line: str, where: str, first: bool) -> list[float] | None:
    """The line's eight numbers; None where it holds none: a comment, blank, or names of columns before the first pose."""
    text, _, comment = line.partition("#")
    fields = [field.strip() for field in text.split(",")] if text.count(",") == 7 else text.split()
    if not fields:
        if first:
            _named(comment, where)
        return None
    try:
        row = [float(field) for field in fields]
    except ValueError:
        if first and _named(text, where):
            return None
        decimal = " (decimals are written with a point)" if re.search(r"\d,\d", text) else ""
        raise ValueError(f"{where}: {line.strip()[:80]!r} is not {FIELDS!r}{decimal}") from None
    if len(row) != 8:
        raise ValueError(f"{where}: {len(row)} numbers, {FIELDS!r} are 8")
    if not all(map(math.isfinite, row)):
        raise ValueError(f"{where}: not all numbers are finite")
    length = math.hypot(*row[4:])
    if abs(length - 1) > UNIT:
        raise ValueError(f"{where}: the quaternion's length is {length:.4g}, not 1")
    return row


def _named(text: str, where: str) -> bool:
    """Whether a line names the columns. ValueError where it names others than TUM's, as EuRoC's files do (nanoseconds, w first)."""
    told = f"{where} says {text.strip()[:120]!r}; write {FIELDS!r}"
    joined = re.sub(r"\s*[\[(]\s*(\w*)[^\])]*[\])]", r"_\1", text.lower())  # "tx [m]" is one name
    names = [re.findall("[a-z]+", name) for name in (joined.split(",") if "," in joined else joined.split())]
    if sum(bool(name) and re.fullmatch(ROTATION, name[0]) is not None for name in names) < 4:
        if re.search(r"\bw[\s,]*x[\s,]*y[\s,]*z\b", joined):
            raise ValueError(f"{told}: w last")
        return False
    clock, *unit = names[0] or [""]
    if clock not in TIMES or not set(unit) <= SECONDS:
        raise ValueError(f"{told}, the time in seconds of the video")
    axes = ["".join(word[-1] for word in name if word[-1] in "xyzw")[:1] for name in names[1:]]
    if axes != list("xyzxyzw"):
        raise ValueError(f"{told}: in this order, w last")
    return True
