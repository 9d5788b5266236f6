"""Trajectories as TUM's tools write them, which most trackers can: one pose a line, `timestamp tx ty tz qx qy qz qw`, # for comments."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from egomill.tasks.untrusted import MEGABYTE, opened

FIELDS = "timestamp tx ty tz qx qy qz qw"
LIMIT = 256 * MEGABYTE
UNIT = 1e-3  # by which a quaternion's length may differ from 1: four decimals are the custom


def read_tum(path: Path) -> tuple[Tensor, Tensor]:
    """Times [N] in the file's seconds and poses [N, 4, 4] (metres; Hamilton quaternions, w last), float64.

    ValueError with the line's number on what is no pose, no finite number, no unit quaternion or no later time than the line before; and
    where there are fewer than two poses.
    """
    try:
        with opened(path) as file:
            text = file.read(LIMIT + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if len(text) > LIMIT:
        raise ValueError(f"{path}: more than {LIMIT} bytes")
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        where = f"{path} line {number}"
        try:
            row = [float(f) for f in fields]
        except ValueError:
            raise ValueError(f"{where}: {line.strip()[:80]!r} is not {FIELDS!r}") from None
        if len(row) != 8:
            raise ValueError(f"{where}: {len(row)} numbers, {FIELDS!r} are 8")
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{where}: not all numbers are finite")
        length = math.hypot(*row[4:])
        if abs(length - 1) > UNIT:
            raise ValueError(f"{where}: the quaternion's length is {length:.4g}, not 1")
        if rows and row[0] <= rows[-1][0]:
            raise ValueError(f"{where}: time {row[0]} does not come after {rows[-1][0]}")
        rows.append(row)
    if len(rows) < 2:
        raise ValueError(f"{path}: {len(rows)} poses; a path has two at least, and a head that rests the same pose twice")
    values = torch.tensor(rows, dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    T[:, :3, :3] = torch.from_numpy(Rotation.from_quat(values[:, 4:].numpy()).as_matrix())
    T[:, :3, 3] = values[:, 1:4]
    return values[:, 0], T
