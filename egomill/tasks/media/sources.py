"""What takes are there: five layouts recognised, one Item a take.

Cheap on purpose: indices are read, files are listed and `stat`ed; no video is opened and nothing hashed, so looking at 5,035 takes every
night costs seconds. An item's digest is the signature of the take's files and of what the indices say of it. A fault that shows here
travels in the item's row and becomes a named rejection in ingest: nothing is dropped silently. What is wrong with the indices' word on one
take is that take's fault; an index that cannot be read at all is the fault of every take of its data set.

    Ego-Exo4D release   takes.json (or a walk over takes/*), annotations/{ego_pose/*/camera_pose, splits.json, atomic_descriptions_*.json}
    simulated           the same, with depth in sidecar/<take>/<cam>.npz
    EgoX examples       meta.json with "test_datasets": one exo camera a take, depth_maps/<take>/NNNNN.npy
    H2O                 subject*/<scene>/<n>/cam0..cam4 (tasks/media/h2o.py)
    TACO                Allocentric_RGB_Videos/<triplet>/<sequence>/<serial>.mp4 (tasks/media/taco.py)

Nothing hides anything: all sizes of a take's videos are listed (ingest takes the smallest whole one), of two annotations or two copies of a
take the whole one counts, and a path in an index may have been written from a folder further up. `allow` names folders outside of the
data sets that links of theirs may lead to.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from egomill.schemas.fingerprint import digest
from egomill.schemas.item import Item
from egomill.tasks.media import h2o, hand_places, taco
from egomill.tasks.media.indices import INDEX_LIMIT, SPLITS, Index, few, metadata, read_index, take_names, task_of
from egomill.tasks.media.untrusted import Bad, below, inside, load_json, regular, stat_signature

EXO_VIDEO = re.compile(r"((?:cam|gp)\d+)\.mp4")
EGO_VIDEO = re.compile(r"(aria\d+)_214-1\.mp4")  # 214-1 is the RGB stream


def discover(roots: list[Path], allow: Iterable[str] = ()) -> list[Item]:
    """One item for every take below the roots, in a stable order. ValueError on a root that is no data set.

    Of two takes with one uid one keeps it, the other gets the key `uid#path` and a fault (`_part_twins`).
    """
    rows: list[dict] = []
    allow = tuple(allow)
    for root in map(Path, roots):
        found = [_storable(row) for row in _rows(root, allow)]
        _hold_one_out(found)
        rows += found
    _part_twins(rows, allow)
    items = []
    for row in rows:
        hands = {} if row["fault"] else hand_places.there(row)
        row |= {"hands": hands} if hands else {}
        told = json.dumps(row, sort_keys=True)  # as text: what a data set says may hold NaN
        items.append(
            Item(row["take_uid"], digest(told, stat_signature(Path(row["root"]), row["files"] + hand_places.files_of(hands))), row)
        )
    return items


def _rows(root: Path, allow: tuple[str, ...]) -> Iterator[dict]:
    """What the layouts that are there hold; a meta.json beside takes/ may be about something else."""
    takes, meta = (root / "takes").is_dir(), (root / "meta.json").is_file()
    others = [layout for layout in (h2o, taco) if root.is_dir() and layout.there(root)]
    if not takes and not meta and not others:
        names = f"takes/ nor meta.json nor subject1/ nor {taco.EXO[1]}/"
        raise ValueError(f"{root} is no data set: neither {names} is there")
    for layout in others:
        yield from layout.sequences(root.resolve(), allow)
    if takes:
        yield from release(root.resolve(), allow)
    if meta:
        try:
            yield from egox(root.resolve(), allow)
        except ValueError:
            if not takes:
                raise


def _part_twins(rows: list[dict], allow: tuple[str, ...] = ()) -> None:
    """Give every row a key of its own. A uid stays with the take that its annotation names, of such with the one with most videos, of
    such with the first."""
    twins: dict[str, list[dict]] = {}
    for row in rows:
        twins.setdefault(row["take_uid"], []).append(row)
    taken = set(twins)
    for uid, same in twins.items():
        keeper = max(same, key=lambda row: _standing(row, allow)) if len(same) > 1 else same[0]
        for row in same:
            if row is not keeper:
                place, number = f"{row['root']}/{row['folder']}", 1
                row["fault"] = row["fault"] or ["duplicate_take_uid", f"{uid} is also {keeper['root']}/{keeper['folder']}"]
                row["take_uid"] = f"{uid}#{place}"
                while row["take_uid"] in taken:
                    number += 1
                    row["take_uid"] = f"{uid}#{place}#{number}"
                taken.add(row["take_uid"])


def _standing(row: dict, allow: tuple[str, ...]) -> tuple[bool, int]:
    """What speaks for a row among those of one uid."""
    root = Path(row["root"])
    if row["fault"]:
        return False, 0
    if row["layout"] == "egox":
        return all((root / row["entry"][k]).is_file() for k in ("exo_path", "ego_gt_path") if row["entry"].get(k)), len(row["files"])
    usable = {Path(file).name for file in row["files"] if file not in row["barred"]}
    exo = sum(bool(EXO_VIDEO.fullmatch(name)) for name in usable) if any(map(EGO_VIDEO.fullmatch, usable)) else 0
    named = bool(row["pose"]) and metadata(root, root / row["pose"], allow).get("take_name") == row["take_name"]
    return named, exo


def _storable(row: dict) -> dict:
    """The row; where a name on disk is no Unicode, which no table can hold, a fault under a name that is."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeEncodeError:
        text = {k: v.encode(errors="backslashreplace").decode() for k, v in row.items() if isinstance(v, str)}
        told = f"{text['folder']}: names that are no Unicode"
        return row | text | {"files": [], "barred": {}, "entry": {}, "descriptions": [], "fault": ["file_unusable", told]}


def _named(uid: str) -> str:
    """The uid, which becomes part of clips' ids. Bad where it could not be a file's name."""
    if not uid or uid in (".", "..") or len(uid) > 200 or re.search(r"[/\x00-\x1f]", uid):
        raise Bad("path_outside_root", f"take_uid {uid[:200]!r} is no name")
    return uid


def _hold_one_out(rows: list[dict]) -> None:
    """Where a data set has no official split at all, its take of the smallest hash is held out whatever the recipe's share: a handful of
    takes would else as likely as not leave nothing to score on. More takes may bring a smaller hash, and with it another one; takes with
    a fault do not count.
    """
    sound = [row for row in rows if not row.get("fault")]
    if len(sound) > 1 and not any(row["split"] for row in rows):
        min(sound, key=lambda row: digest(row["take_uid"]))["split"] = "held-out"


# -- the Ego-Exo4D release -----------------------------------------------------------------------------------------------


def release(root: Path, allow: tuple[str, ...] = ()) -> Iterator[dict]:
    """Rows of the takes that are on disk; those that takes.json lists and nobody downloaded are no takes."""
    index = read_index(root, allow)
    folders = {f"takes/{p.name}" for p in (root / "takes").iterdir() if p.is_dir() and not p.name.startswith(".")}
    listed = {place for folder in [f for f in index.takes if f not in folders] if (place := _place_of(root, folder, index))}
    if any(not index.takes.get(folder, {}).get("take_uid") for folder in folders | listed):
        index.named = take_names(root, index)
    seen = set()
    for folder in sorted(folders | listed):
        row = _take(root, folder, index)
        seen.add(row["take_uid"])
        yield row
    for key, fault in index.lost.items():
        if key not in seen:
            yield _row(root, "takes", key, key) | {"fault": fault}


def _row(root: Path, folder: str, name: str, uid: str) -> dict[str, Any]:
    known = {"layout": "egoexo4d", "root": str(root), "folder": folder, "take_name": name, "take_uid": uid, "task": task_of(name)}
    return known | {"split": "", "descriptions": [], "pose": "", "files": [], "barred": {}, "entry": {}, "fault": None}


def _take(root: Path, folder: str, index: Index) -> dict:
    record = index.takes.get(folder, {})
    row = _row(root, folder, record.get("take_name") or Path(folder).name, record.get("take_uid", ""))
    row["task"] = record.get("task_name") or record.get("parent_task_name") or row["task"]
    row["fault"] = index.fault or record.get("fault")
    try:
        if not row["take_uid"]:
            uids = index.named.get(row["take_name"], [])
            row["take_uid"] = uids[0] if len(uids) == 1 else row["take_name"]
            if len(uids) != 1:
                raise Bad("no_camera_pose", f"{len(uids)} annotations name take {row['take_name']}")
        row["fault"] = row["fault"] or index.faults.get(row["take_uid"])
        if row["fault"]:
            return row
        row |= _of_uid(root, _named(row["take_uid"]), index)
        row |= _files(root, folder, row["take_name"], row["pose"], index.allow)
    except Bad as bad:
        row["fault"] = row["fault"] or [bad.rejected.reason, bad.rejected.detail]
    return row


def _of_uid(root: Path, uid: str, index: Index) -> dict:
    """Split, descriptions and annotation of a take. Bad where annotations of one take lie in several splits and no index decides."""
    poses = index.poses.get(uid, [])
    split = index.splits.get(uid, "")
    folders = sorted({path.parent.parent.name for path in poses} & set(SPLITS))
    if not split and len(folders) > 1:
        raise Bad("split_invalid", f"annotated in {' and '.join(folders)}")
    poses = sorted(poses, key=lambda path: path.parent.parent.name != split)
    pose = next((p for p in poses if len(poses) > 1 and _whole(root, p, uid, index.allow)), poses[0] if poses else None)
    out = {"split": split or (folders[0] if folders else ""), "descriptions": index.texts.get(uid, [])}
    return out | {"pose": pose.relative_to(root).as_posix() if pose else ""}


def _whole(root: Path, path: Path, uid: str, allow: tuple[str, ...]) -> bool:
    """Whether an annotation can be read and says that it is of this take."""
    try:
        value = load_json(regular(root, below(root, path), allow), "no_camera_pose")
    except Bad:
        return False
    return isinstance(value, dict) and isinstance(value.get("metadata"), dict) and value["metadata"].get("take_uid") == uid


def _files(root: Path, folder: str, name: str, pose: str, allow: tuple[str, ...]) -> dict:
    """{files: the take's that may be used: videos of all sizes, the smallest first, lens calibration, annotation, depth; barred: {those of
    single cameras that must not be read: [reason, detail]}}. Bad where one that all cameras need leads out or is no file."""
    base = inside(root, folder, allow)
    aligned = base / "frame_aligned_videos"
    sizes = sorted((p for p in (aligned / "downscaled").glob("*") if p.name.isdecimal()), key=lambda p: int(p.name))
    videos = [video for place in (*sizes, aligned) for video in sorted(p for p in place.glob("*.mp4") if _used(p))]
    depth = sorted(p for p in inside(root, f"sidecar/{name}", allow).glob("*.npz") if EXO_VIDEO.fullmatch(p.stem + ".mp4"))
    calibration = base / "trajectory" / "online_calibration.jsonl"
    shared = [below(root, calibration)] if os.path.lexists(calibration) else []
    shared += [pose] if pose else []
    for file in shared:
        regular(root, file, allow)
    single, barred = [below(root, p) for p in (*videos, *depth)], {}
    for file in single:
        try:
            regular(root, file, allow)
        except Bad as bad:
            barred[file] = [bad.rejected.reason, bad.rejected.detail]
    return {"files": single + shared, "barred": barred}


def _used(path: Path) -> bool:
    return bool(EXO_VIDEO.fullmatch(path.name) or EGO_VIDEO.fullmatch(path.name))


def _place_of(root: Path, folder: str, index: Index) -> str:
    """Where on disk a listed folder is, which then is its name in the index; "" where it is not there. One that would have to be sought
    elsewhere is a fault of its take, wherever that lies."""
    try:
        place = _found(root, folder, index.allow)
    except Bad as bad:
        uid = index.takes[folder]["take_uid"] or f"takes.json#{folder}"
        index.lost[uid] = index.faults[uid] = [bad.rejected.reason, bad.rejected.detail]
        return ""
    if not place.is_dir():
        return ""
    index.takes.setdefault(below(root, place), index.takes[folder])
    return below(root, place)


def _found(root: Path, told: Any, allow: tuple[str, ...]) -> Path:
    """Where the path that an index tells is: below the root, or, if nothing is there, without folders that it begins with: it may have been
    written from a folder further up (EgoX's own tells paths from its repository's). As it stands where nothing is found.
    Bad as of `inside`.
    """
    path = inside(root, told, allow)
    parts = PurePosixPath(os.path.normpath(told)).parts
    if ".." in parts or PurePosixPath(told).is_absolute():
        return path
    shorter = (inside(root, "/".join(parts[n:]), allow) for n in range(1, len(parts) - 1))
    return next((p for p in chain([path], shorter) if os.path.lexists(p)), path)


# -- the EgoX examples ---------------------------------------------------------------------------------------------------


def egox(root: Path, allow: tuple[str, ...] = ()) -> Iterator[dict]:
    """Rows of meta.json's entries; a take is named by the folder of its videos. ValueError where it lists no such takes."""
    blank = {"layout": "egox", "split": "", "pose": "", "files": [], "descriptions": [], "fault": None}
    try:
        meta = load_json(inside(root, "meta.json", allow), "take_unreadable", INDEX_LIMIT)
    except Bad as bad:  # one row for what cannot be told apart
        key = f"{root}/meta.json"
        yield _row(root, ".", "meta.json", key) | blank | {"fault": [bad.rejected.reason, bad.rejected.detail]}
        return
    entries = meta.get("test_datasets") if isinstance(meta, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{root}/meta.json is no list of EgoX takes: no test_datasets in it")
    for number, entry in enumerate(few(entries)):
        path = entry.get("exo_path") if isinstance(entry, dict) else None
        name = Path(path).parent.name if isinstance(path, str) else ""
        row = _row(root, f"videos/{name}", name, name) | blank | {"entry": entry if isinstance(entry, dict) else {}}
        try:
            if not isinstance(path, str):
                raise Bad("take_unreadable", f"entry {number} of meta.json has no exo_path")
            _named(name)
            found = {k: _found(root, entry[k], allow) for k in ("exo_path", "ego_gt_path", "ego_prior_path") if entry.get(k)}
            depth = _depth_maps(root, name, found["exo_path"].parents[2:3], allow)
            row["files"] = [_seen(root, below(root, path), allow) for path in (*found.values(), *depth)]
            row["entry"] = entry | {k: below(root, path) for k, path in found.items()}
            row["descriptions"] = exo_prompt(entry)
        except Bad as bad:
            if name in ("", "..") or len(name) > 200:
                row |= {"take_uid": f"{root.name}/entry-{number}", "take_name": f"entry-{number}", "folder": "videos"}
            row |= {"fault": [bad.rejected.reason, bad.rejected.detail], "files": []}
        yield row


def _depth_maps(root: Path, name: str, beside: Iterable[Path], allow: tuple[str, ...]) -> list[Path]:
    """The take's depth pictures: in the root's depth_maps/, or, where more are there, in that `beside` the folder of its videos."""
    found = sorted(inside(root, f"depth_maps/{name}", allow).glob("*.npy"))
    for place in beside:
        if place != root and place.is_relative_to(root):
            found = max(found, sorted(inside(root, below(root, place / "depth_maps" / name), allow).glob("*.npy")), key=len)
    return found


def _seen(root: Path, path: str, allow: tuple[str, ...]) -> str:
    """The path; where something is there, a file that may be read. What is missing has reasons of its own in ingest."""
    if os.path.lexists(inside(root, path, allow)):
        regular(root, path, allow)
    return path


def exo_prompt(entry: dict) -> list[dict]:
    """The exo half of the prompt that came with a take. Its ego half was written by a model that saw true ego frames: never used."""
    text = entry.get("prompt")
    exo = text.split("[Ego view]")[0].strip() if isinstance(text, str) else ""
    return [{"text": exo, "timestamp": 0.0}] if exo else []
