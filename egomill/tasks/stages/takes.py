"""A take as the rest sees it: cameras, poses and videos that were checked, whatever layout they came in (a file each in tasks/media).

Every fault has a name. What can be told apart is not guessed at: a video that is cut short, a pose that is no rotation or a lens that
cannot be rejects the take, and the row says which file, camera or frame. An exo camera of which any of this is true is left out alone, and
the row says why; with none left the take is rejected. Cameras of the annotation whose video was not downloaded do not count.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np

from egomill.schemas.config import Ingest, Profile
from egomill.schemas.fingerprint import digest, file_sha256, folder_sha256
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.watch import lasts
from egomill.tasks.media import egoexo4d, egox, h2o, hand_places, taco, video
from egomill.tasks.media.untrusted import (
    Bad,
    below,
    inside,
    regular,
    stat_signature,
)

log = logging.getLogger(__name__)
LAYOUTS = {"egoexo4d": egoexo4d.take, "egox": egox.take, "h2o": h2o.take, "taco": taco.take}
BESIDE = 1.0  # seconds by which what is told of a take may lie outside of it


def stage(profile: Profile) -> Stage:
    """Takes from discovered items (`sources.discover`)."""
    # Where links may lead makes no row other than it is: discovery tells which takes it opens or closes.
    return Stage("takes", {}, profile.ingest.model_dump(exclude={"allow"}), partial(Reader, profile.ingest))


class Reader:
    """An item's row in, a row of `takes` or a named rejection out."""

    def __init__(self, settings: Ingest) -> None:
        self.settings = settings

    def __call__(self, row: dict) -> dict | Rejected:
        try:
            if row["fault"]:
                raise Bad(*row["fault"])
            before = stat_signature(Path(row["root"]), row["files"] + hand_places.files_of(row.get("hands", {})))
            take = self._finish(row, LAYOUTS[row["layout"]](row, self.settings))
            used = json.loads(take["files"])
            changed = [a[0] for a in stat_signature(Path(row["root"]), used) if a not in before]
            if changed:
                raise Bad("changed_while_read", ", ".join(changed))
            for name, why in json.loads(take["left_out"]).items():
                log.warning("%s is left out: %s", name, ": ".join(why))
            return take
        except Bad as bad:
            return bad.rejected
        except video.VideoError as error:
            return Rejected(error.reason, str(error))

    def _finish(self, row: dict, take: dict) -> dict:
        root, files = Path(row["root"]), {}
        lasts(take["frames"] / take["fps"])
        for name, size, changed in stat_signature(root, take["files"]):
            files[name] = {"sha256": self._digest(root, name), "bytes": size, "mtime_ns": changed}
        hands = self._hands(root, row.get("hands", {}), files)
        _check_times([d["timestamp"] for d in row["descriptions"]], take["frames"] / take["fps"])
        known = np.isfinite(take["T_world_ego"]).all(axis=(1, 2))
        facts = {name: row[name] for name in ("take_name", "layout", "root", "split", "task")}
        out = {
            **facts,
            **take,
            "ego_camera": json.dumps(take["ego_camera"].to_dict()),
            "T_world_ego": pack(take["T_world_ego"]),
            "pose_coverage": float(known.mean()),
            "exo": json.dumps(take["exo"]),
            "left_out": json.dumps(take["left_out"]),
            "files": json.dumps(files),
            "descriptions": json.dumps(row["descriptions"]),
            "hands": json.dumps(hands) if hands else None,
        }
        poses_told = np.where(known[:, None, None], take["T_world_ego"], 0).tolist()
        used = {k: v for k, v in out.items() if k not in ("T_world_ego", "files", "left_out", "hands")}
        out["content"] = digest(
            used, poses_told, {name: file["sha256"] for name, file in files.items() if name not in hands.get("files", ())}
        )
        return {"take_uid": row["take_uid"], **out}

    def _hands(self, root: Path, there: dict, files: dict[str, dict]) -> dict:
        """The column `hands`, whose files join `files`: {where: as discovery found it, sha256: digest of it all}, or {fault: [reason,
        detail]}: it is the hands' fault alone. {} where nothing says anything of hands."""
        if not there:
            return {}
        try:
            found = {}
            for name, size, changed in stat_signature(root, hand_places.files_of(there)):
                for entry in (root / name).iterdir() if (root / name).is_dir() else ():
                    if entry.is_symlink():
                        regular(root, below(root, entry), self.settings.allow)
                found[name] = {"sha256": self._digest(root, name), "bytes": size, "mtime_ns": changed}
        except Bad as bad:
            return {"fault": [bad.rejected.reason, bad.rejected.detail]}
        files |= found
        return {"where": there, "sha256": digest({name: file["sha256"] for name, file in found.items()}), "files": sorted(found)}

    def _digest(self, root: Path, name: str) -> str:
        path = inside(root, name, self.settings.allow)
        return folder_sha256(path) if path.is_dir() else file_sha256(regular(root, name, self.settings.allow))


def _check_times(timestamps: list[float], seconds: float) -> None:
    """That what annotators told lies within the take; a stray one does not matter, since no window takes it."""
    outside = [t for t in timestamps if not -BESIDE <= t <= seconds + BESIDE]
    if 2 * len(outside) > len(timestamps):
        raise Bad("descriptions_invalid", f"{len(outside)} of {len(timestamps)} lie outside of {seconds:.1f} s, one at {outside[0]:.6g} s")
