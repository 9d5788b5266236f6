"""Three cheap stages of a real lake, for a process that may be killed: takes from nowhere, two clips a take, a caption a clip."""

from __future__ import annotations

import time
import uuid
from functools import partial

import numpy as np

from egomill.schemas.config import Resources
from egomill.schemas.fingerprint import digest
from egomill.schemas.item import Item
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import KEYS
from egomill.schemas.tensors import pack
from egomill.tasks.lake.runner import run
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake

TABLES = ("takes", "clips", "captions")
RESOURCES = Resources(shard=2, failure_threshold=1.0, attempts=100)


def stages(seconds: float, version: int = 1) -> tuple[Stage, Stage, Stage]:
    """Every seventh take is rejected, every fifth caption too: failures must survive as well as rows do."""

    def takes():
        def read(row: dict):
            time.sleep(seconds)
            if row["number"] % 7 == 3:
                return Rejected("no_ego_video", f"take {row['number']} has none")
            return {"take_name": f"take {row['number']}", "content": digest(row["number"]), "frames": row["number"]}

        return read

    def clips():
        def cut(row: dict):
            time.sleep(seconds)
            take = row["takes"]
            pose = np.random.default_rng(take["frames"]).normal(size=(9, 4, 4))
            same = {"take_uid": take["take_uid"], "take_name": take["take_name"], "chosen": True, "T_world_ego": pack(pose)}
            return [{"clip_id": f"{take['take_uid']}.cam01.{start:06d}", "start": start, **same} for start in (0, 30)]

        return cut

    def captions():
        def write(row: dict):
            time.sleep(seconds)
            clip = row["clips"]
            if int(clip["take_uid"][1:]) % 5 == 1 and clip["start"]:
                return Rejected("caption_failed", "told to")
            return {"text": f"{clip['take_name']} from {clip['start']}, version {version}", "source": "chaos"}

        return write

    return (
        Stage("takes", {}, {"version": version}, partial(takes)),
        Stage("clips", {"takes": ("take_uid", "take_name", "frames")}, {"version": version}, partial(clips)),
        Stage("captions", {"clips": ("take_uid", "take_name", "start")}, {"version": version}, partial(captions), where="chosen"),
    )


def content(lake: Lake) -> dict[str, list[dict]]:
    """Every column but who wrote it and when, sorted by key: what must not depend on what happened on the way."""
    found = {}
    for table in (*TABLES, "failures"):
        rows = lake.read(table).to_pylist()
        for row in rows:
            row.pop("run_id")
            row.pop("at", None)
            if row.get("status") == "rejected":
                row.pop("attempt")  # counts on from a time when the row had died twice by chance
        found[table] = sorted(rows, key=lambda row: [row[key] for key in KEYS[table]])
    return found


def main(uri: str, takes: int, seconds: float, progress: str, version: int) -> None:
    """A line goes to the file `progress` first and after every commit. Every row takes `seconds`. Another version makes everything
    anew."""

    def tell(*what: object) -> None:
        with open(progress, "a") as f:
            f.write(f"{what}\n")

    lake = Lake(uri)
    tell("up")
    items = [Item(f"t{i:04d}", digest(i), {"number": i}) for i in range(takes)]
    first, *rest = stages(seconds, version)
    run_id = uuid.uuid4().hex
    for stage in (first, *rest):
        report = run(stage, lake, run_id, RESOURCES, items=items if stage is first else None, progress=tell)
        assert report.balanced
        tell(stage.name, report.to_dict())
