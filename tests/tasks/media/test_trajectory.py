"""A path of one's own: what is read, what its times mean, and what no head does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.schemas.config import Ingest
from egomill.tasks.media.trajectory import Trajectory, read_tum
from egomill.tasks.pages import plausible

GOOD = "0.0 0 0 0 0 0 0 1\n# a comment\n\n1.0 0 0 0 0 0 0 1 # another\n"
TWO = "0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n"
LINES = {
    "0 0 0 0 0 0 0": "line 1: 7 numbers",
    "0,0 0,0 0 0 0 0 0 1": "is not 'timestamp tx ty tz qx qy qz qw' (decimals are written with a point)",
    "0;0;0;0;0;0;0;1": "line 1: '0;0;0;0;0;0;0;1' is not",
    "hello world\n" + TWO: "line 1: 'hello world' is not",
    TWO + "timestamp tx ty tz qx qy qz qw\n": "line 3: 'timestamp tx",
    GOOD + "2 0 nan 0 0 0 0 1": "line 5: not all numbers are finite",
    GOOD + "2 0 0 0 0 0 0 0.9": "line 5: the quaternion's length is 0.9, not 1",
    GOOD + "1.0 0 0 0 0 0 0 1": "line 5: time 1.0 does not come after 1.0",
    "0 0 0 0 0 0 0 1": "1 poses",
    "": "0 poses",
}


@pytest.mark.parametrize("text", LINES)
def test_a_bad_line_is_named(text, tmp_path):
    (tmp_path / "path.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(LINES[text])):
        read_tum(tmp_path / "path.txt")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TWO,
        "\ufefftimestamp tx ty tz qx qy qz qw\n" + TWO,
        "timestamp,tx,ty,tz,qx,qy,qz,qw\n" + TWO.replace(" ", ","),
        "# ground truth trajectory\n# file: 'x.bag'\n#timestamp [s] tx [m] ty [m] tz [m] qx qy qz qw\n" + TWO,
        "Time(s)  pos_x pos_y pos_z quat_x quat_y quat_z quat_w\n" + TWO,
        TWO.replace("\n", "\r\n").replace(" ", "\t"),
        "0,0,0,0,0,0,0,1\n1, 0, 0, 0, 0, 0, 0, 1\n",
    ],
)
def test_marks_headers_and_commas_are_read(text, tmp_path):
    (tmp_path / "path.txt").write_bytes(text.encode())
    seconds, T, lines = read_tum(tmp_path / "path.txt")
    assert seconds.tolist() == [0.0, 1.0]
    assert torch.equal(T, torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))
    assert lines.tolist() == [len(text.splitlines()) - 1, len(text.splitlines())]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("# timestamp tx ty tz qw qx qy qz", "in this order, w last"),
        ("timestamp tx ty tz qw qx qy qz", "in this order, w last"),
        ("# T_world_head, quaternions w x y z", "w last"),
        ("#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []", "seconds of the video"),
        ("tracking_timestamp_us,tx,ty,tz,qx,qy,qz,qw", "seconds of the video"),
        ("# frame tx ty tz qx qy qz qw", "seconds of the video"),
    ],
)
def test_columns_that_are_named_otherwise_are_refused(header, words, tmp_path):
    (tmp_path / "path.txt").write_text(f"{header}\n{TWO}")
    with pytest.raises(ValueError, match=f"line 1 says .*{words}"):
        read_tum(tmp_path / "path.txt")


FPS, FRAMES = 30.0, 90
CLIP = 30 + 3 * np.arange(9)


def walk(seconds: torch.Tensor, speed: float = 0.5) -> Trajectory:
    """A head that goes along x at `speed` (metres a second of the true time), looking ahead."""
    T = torch.eye(4, dtype=torch.float64).repeat(len(seconds), 1, 1)
    T[:, 0, 3] = speed * seconds
    return Trajectory(seconds.double(), T, torch.arange(1, len(seconds) + 1))


def asked(path: Trajectory, settings: Ingest | None = None) -> tuple:
    times = np.arange(FRAMES) / FPS
    found = plausible.at_frames(Path("path.txt"), path, times, CLIP, "exo.mp4", settings or Ingest())
    plausible.check_leaps(Path("path.txt"), path, times[CLIP[0]], times[CLIP[-1]], settings or Ingest())
    return found


SECONDS = torch.arange(FRAMES, dtype=torch.float64) / FPS


def test_where_the_clip_lies_and_what_the_head_does():
    T, along = asked(walk(SECONDS))
    assert T[:, 0, 3].numpy() == pytest.approx(0.5 * CLIP / FPS)
    assert along["lines"] == [30, 55]
    assert along["seconds"] == pytest.approx([29 / 30, 54 / 30])
    assert along["poses"] == 26
    assert along["metres"] == pytest.approx(0.4)
    assert along["metres_per_second"] == pytest.approx(0.5)
    assert along["degrees_per_second"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (FPS, "look like frame numbers.*divide them by 30"),
        (1e3, "look like milliseconds.*divide them by 1000"),
        (1e6, "look like microseconds"),
        (1e9, "look like nanoseconds"),
        (1 / 60, "does not reach frame 30.*look like minutes.*multiply them by 60"),
        (1 / 3, "does not reach frame 30"),
        (FPS / 25, "a pose for each of the 90 frames of exo.mp4, but one each 0.04 s"),
        (10.0, "pose_gaps: path.txt lines 4 and 5"),
    ],
)
def test_times_that_are_no_seconds_are_refused(by, words):
    true = walk(SECONDS)
    with pytest.raises(ValueError, match=words):
        asked(true._replace(seconds=SECONDS * by))


@pytest.mark.parametrize(("by", "words"), [(1.0, "subtract"), (1e3, "milliseconds.*after subtracting"), (1e9, "nanoseconds")])
def test_a_clock_that_starts_elsewhere_is_refused(by, words):
    with pytest.raises(ValueError, match=f"does not reach frame 30.*{words}"):
        asked(walk(SECONDS)._replace(seconds=(SECONDS + 1.7e9) * by))


def test_whole_numbers_of_one_pose_a_second_are_refused_unless_allowed():
    slow = walk(torch.arange(4.0))
    with pytest.raises(ValueError, match=r"lines 2 and 3 are 1 s apart, and frame .*ingest.max_pose_gap=29"):
        asked(slow)
    assert asked(slow, Ingest(max_pose_gap=29))[0][0, 0, 3] == pytest.approx(0.5)


def test_slower_trackers_and_heads_that_rest_are_accepted():
    assert asked(walk(torch.arange(0, 3.1, 0.1)))[1]["poses"] == 10
    assert asked(walk(torch.tensor([-1.0, 500.0]), speed=0.0))[1]["metres"] == 0
    assert asked(walk(torch.arange(-600, 900) / 200))[1]["poses"] == 162  # 200 Hz, longer than the video on both sides


def test_a_gap_and_a_leap_are_named_by_line():
    path = walk(SECONDS)
    kept = [n for n in range(FRAMES) if not 35 < n < 45]
    with pytest.raises(ValueError, match=r"pose_gaps: path.txt lines 36 and 46 are 0.3333 s apart, and frame 36"):
        asked(Trajectory(path.seconds[kept], path.T[kept], path.lines[kept]))
    leap = path.T.clone()
    leap[40:, 1, 3] += 0.7
    with pytest.raises(ValueError, match=r"pose_jumps: path.txt line 41: the head moves at 21 m/s"):
        asked(path._replace(T=leap))
    turn = path.T.clone()
    turn[:40, :2, :2] = -torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="and 5400 degrees/s there"):
        asked(path._replace(T=turn))
    later = path.T.clone()
    later[60:, 1, 3] += 0.7  # after the clip: of no concern
    assert asked(path._replace(T=later))[1]["poses"] == 26


def test_a_slow_video_bridges_more_seconds():
    times = np.arange(20) / 5.0
    found = plausible.at_frames(Path("p"), walk(torch.arange(0, 4.1, 0.5)), times, 5 + np.arange(9), "exo.mp4", Ingest())
    assert found[1]["metres"] == pytest.approx(0.8)
