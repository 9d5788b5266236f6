"""What a rebuild promises: nothing twice, nothing for nothing, nothing lost, and no take spoils another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from egomill.flows.rebuild import rebuild
from egomill.scenes.take import simulate
from egomill.tasks.lake import runs
from egomill.tasks.lake.tables import Lake
from tests.flows.conftest import SMALL, write_small

DERIVED = ("depth", "priors", "directions", "latents")


def made(lake: Lake) -> dict[str, int]:
    """What the newest run computed, by stage."""
    return {stage["stage"].split("/")[0]: stage["computed"] for stage in runs.history(lake, 1)[0]["stages"]}


def keys(lake: Lake, table: str) -> Counter:
    where = "name = 'ego'" if table == "latents" else None
    return Counter(lake.read(table, ["clip_id"], where)["clip_id"].to_pylist())


def test_a_rebuild_does_exactly_what_changed(small, tmp_path):
    """The lake of three takes, again; with another setting; and with a simulated take more, which is found by walking."""
    lake, clips = small.lake, sum(keys(small.lake, "clips").values())
    assert made(lake) == {"takes": 3, "clips": 3, "captions": clips, **dict.fromkeys(DERIVED, clips)}
    second = small.rebuild()
    assert (second["computed"], second["new"], second["release"]) == (0, False, "first")

    changed = small.rebuild("depth.relative_error=0.002")
    done = made(lake)
    assert 0 < done.pop("latents") <= clips  # a prior that comes out as it was has its latents already
    assert done == {"takes": 0, "clips": 0, "captions": 0, **dict.fromkeys(DERIVED[:-1], clips)}
    assert changed["new"]

    simulate(tmp_path / "takes", 1, seed=5, seconds=1.2, workers=1)
    (tmp_path / "takes" / "takes.json").unlink()
    sources = [str(small.source), str(tmp_path / "takes")]
    rebuild.fn(lake.uri, sources, settings=[*SMALL, "depth.relative_error=0.002"])
    more = sum(keys(lake, "clips").values()) - clips
    assert made(lake) == {"takes": 1, "clips": 1, "captions": more, **dict.fromkeys(DERIVED, more)}
    assert all(set(keys(lake, table).values()) == {1} for table in ("clips", *DERIVED))
    for stage in runs.stage_table(lake):
        assert stage["inputs"] == stage["outputs"] + stage["rejected"] + stage["failed"]


def test_killed_in_the_middle_of_depth_it_goes_on(tmp_path):
    source, lake = write_small(tmp_path / "in", 4), Lake(str(tmp_path / "lake"))
    settings = [part for s in (*SMALL, "resources.shard=1") for part in ("--set", s)]
    command = [str(Path(sys.executable).with_name("egomill")), "rebuild", str(source), "--lake", lake.uri, *settings]
    env = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and driver.poll() is None and not lake.count("depth"):
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wanted = set(lake.read("clips", ["clip_id"], "chosen")["clip_id"].to_pylist())
    assert 0 < lake.count("depth") < len(wanted)
    assert lake.count("releases") == 0
    time.sleep(3)  # Ray's processes notice that their driver is gone

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    for table in (*DERIVED, "captions"):
        assert keys(lake, table) == Counter(wanted), table
    assert made(lake)["depth"] < len(wanted)  # what was committed before the kill was not made again


def break_one(take: Path, pose: Path, fault: str) -> None:
    """Six kinds of broken takes."""
    videos = take / "frame_aligned_videos/downscaled/448"
    record = json.loads(pose.read_text())
    poses = record["aria01"]["camera_extrinsics"]
    if fault == "no_exo_video":
        for file in videos.glob("cam*.mp4"):
            file.unlink()
    elif fault == "video_undecodable":
        file = videos / "aria01_214-1.mp4"
        file.write_bytes(file.read_bytes()[:3000])
    elif fault == "no_camera_pose":
        pose.unlink()
        return
    elif fault == "rotation_invalid":
        poses["5"] = (np.diag([1, 1, -1.0]) @ np.array(poses["5"])).tolist()
    elif fault == "pose_gaps":
        for frame in list(poses)[5:20]:
            poses[frame] = None
    elif fault == "calibration_invalid":
        (take / "trajectory/online_calibration.jsonl").write_text("{}")
    pose.write_text(json.dumps(record))


FAULTS = ("no_exo_video", "video_undecodable", "no_camera_pose", "rotation_invalid", "pose_gaps", "calibration_invalid")


def test_six_broken_takes_of_ten_are_named_and_the_others_unharmed(tmp_path):
    source, lake = write_small(tmp_path / "in", 10), Lake(str(tmp_path / "lake"))
    by_name = {json.loads(p.read_text())["metadata"]["take_name"]: p for p in source.rglob("camera_pose/*.json")}
    folders = sorted((source / "takes").iterdir())
    for folder, fault in zip(folders, FAULTS, strict=False):
        break_one(folder, by_name[folder.name], fault)
    egomill = str(Path(sys.executable).with_name("egomill"))
    settings = [part for s in SMALL for part in ("--set", s)]
    env = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    done = subprocess.run(
        [egomill, "rebuild", str(source), "--lake", lake.uri, *settings], env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning: " in done.stderr
    found = lake.read("failures", where="stage = 'takes'").to_pylist()
    assert {f["status"] for f in found} == {"rejected"}
    assert Counter(f["reason"] for f in found) == Counter(FAULTS), [(f["key"], f["reason"], f["detail"]) for f in found]
    good = {t["take_name"] for t in lake.read("takes", ["take_name"]).to_pylist()}
    assert good == {folder.name for folder in folders[len(FAULTS) :]}
    assert {c["take_name"] for c in lake.read("clips", ["take_name"]).to_pylist()} == good
    assert keys(lake, "latents") == keys(lake, "clips")
