"""What takes are there: three layouts recognised, one Item a take.

Cheap on purpose: indices are read, files are listed and `stat`ed; no video is opened and nothing hashed, so looking at 5,035 takes every
night costs seconds. An item's digest is the signature of the take's files and of what the indices say of it. A fault that shows here
travels in the item's row and becomes a named rejection in ingest: nothing is dropped silently. What is wrong with the indices' word on one
take is that take's fault; an index that cannot be read at all is the fault of every take of its data set.

    Ego-Exo4D release   takes.json (or a walk over takes/*), annotations/{ego_pose/*/camera_pose, splits.json, atomic_descriptions_*.json}
    simulated           the same, with depth in sidecar/<take>/<cam>.npz
    EgoX examples       meta.json with "test_datasets": one exo camera a take, depth_maps/<take>/NNNNN.npy
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egomill.schemas.fingerprint import digest
from egomill.tasks.stage import Item
from egomill.tasks.untrusted import MEGABYTE, Bad, inside, load_json, opened, regular, stat_signature

INDEX_LIMIT = 512 * MEGABYTE  # takes.json and the descriptions speak of the whole release
EXO_VIDEO = re.compile(r"((?:cam|gp)\d+)\.mp4")
EGO_VIDEO = re.compile(r"(aria\d+)_214-1\.mp4")  # 214-1 is the RGB stream
SPLITS = ("train", "val", "test")


def discover(roots: list[Path]) -> list[Item]:
    """One item for every take below the roots, in a stable order. ValueError on a root that is no data set.

    Of two takes with one uid one keeps it, the other gets the key `uid#path` and a fault (`_part_twins`).
    """
    rows: list[dict] = []
    for root in map(Path, roots):
        if not (root / "takes").is_dir() and not (root / "meta.json").is_file():
            raise ValueError(f"{root} is no data set: neither takes/ nor meta.json is there")
        found = [_storable(row) for row in (release if (root / "takes").is_dir() else egox)(root.resolve())]
        _hold_one_out(found)
        rows += found
    _part_twins(rows)
    items = []
    for row in rows:
        told = json.dumps(row, sort_keys=True)  # as text: what a data set says may hold NaN
        items.append(Item(row["take_uid"], digest(told, stat_signature(Path(row["root"]), row["files"])), row))
    return items


def _part_twins(rows: list[dict]) -> None:
    """Give every row a key of its own. A uid stays with the take that its annotation names, or else with the first."""
    twins: dict[str, list[dict]] = {}
    for row in rows:
        twins.setdefault(row["take_uid"], []).append(row)
    taken = set(twins)
    for uid, same in twins.items():
        keeper = next((row for row in same if len(same) > 1 and _confirmed(row)), same[0])
        for row in same:
            if row is not keeper:
                place, number = f"{row['root']}/{row['folder']}", 1
                row["fault"] = row["fault"] or ["duplicate_take_uid", f"{uid} is also {keeper['root']}/{keeper['folder']}"]
                row["take_uid"] = f"{uid}#{place}"
                while row["take_uid"] in taken:
                    number += 1
                    row["take_uid"] = f"{uid}#{place}#{number}"
                taken.add(row["take_uid"])


def _confirmed(row: dict) -> bool:
    root = Path(row["root"])
    return bool(row["pose"]) and not row["fault"] and _metadata(root, root / row["pose"]).get("take_name") == row["take_name"]


def _storable(row: dict) -> dict:
    """The row; where a name on disk is no Unicode, which no table can hold, a fault under a name that is."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeEncodeError:
        text = {k: v.encode(errors="backslashreplace").decode() for k, v in row.items() if isinstance(v, str)}
        told = f"{text['folder']}: names that are no Unicode"
        return row | text | {"files": [], "entry": {}, "descriptions": [], "fault": ["file_unusable", told]}


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


@dataclass
class _Index:
    """What the release's shared files say."""

    takes: dict[str, dict] = field(default_factory=dict)  # folder relative to the root -> record
    poses: dict[str, list[Path]] = field(default_factory=dict)  # uid -> annotation files
    splits: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[dict]] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)  # take name -> uids, from the annotations themselves
    faults: dict[str, list[str]] = field(default_factory=dict)  # uid -> what is wrong with what is said of it
    lost: dict[str, list[str]] = field(default_factory=dict)  # records of no known folder: uid or place in the file -> what is wrong
    fault: list[str] | None = None


def release(root: Path) -> Iterator[dict]:
    """Rows of the takes that are on disk; those that takes.json lists and nobody downloaded are no takes."""
    index = _read_index(root)
    folders = {f"takes/{p.name}" for p in (root / "takes").iterdir() if p.is_dir() and not p.name.startswith(".")}
    listed = {folder for folder in index.takes if folder not in folders and _is_there(root, folder, index)}
    if any(not index.takes.get(folder, {}).get("take_uid") for folder in folders | listed):
        index.named = _take_names(root, index)
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
    return known | {"split": "", "descriptions": [], "pose": "", "files": [], "entry": {}, "fault": None}


def _take(root: Path, folder: str, index: _Index) -> dict:
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
        row["files"] = _files(root, folder, row["take_name"], row["pose"])
    except Bad as bad:
        row["fault"] = row["fault"] or [bad.rejected.reason, bad.rejected.detail]
    return row


def _of_uid(root: Path, uid: str, index: _Index) -> dict:
    """Split, descriptions and annotation of a take. Bad where annotations of one take lie in several splits and no index decides."""
    poses = index.poses.get(uid, [])
    split = index.splits.get(uid, "")
    folders = sorted({path.parent.parent.name for path in poses} & set(SPLITS))
    if not split and len(folders) > 1:
        raise Bad("split_invalid", f"annotated in {' and '.join(folders)}")
    pose = next((p for p in poses if p.parent.parent.name == split), poses[0] if poses else None)
    out = {"split": split or (folders[0] if folders else ""), "descriptions": index.texts.get(uid, [])}
    return out | {"pose": pose.relative_to(root).as_posix() if pose else ""}


def _files(root: Path, folder: str, name: str, pose: str) -> list[str]:
    """The take's files that are used: videos at the smallest size there is, lens calibration, annotation, depth. Bad where one leads
    out or is no file."""
    base = inside(root, folder)
    aligned = base / "frame_aligned_videos"
    sizes = sorted((p for p in (aligned / "downscaled").glob("*") if p.name.isdecimal()), key=lambda p: int(p.name))
    videos = next((found for place in (*sizes, aligned) if (found := sorted(p for p in place.glob("*.mp4") if _used(p)))), [])
    depth = sorted(p for p in inside(root, f"sidecar/{name}").glob("*.npz") if EXO_VIDEO.fullmatch(p.stem + ".mp4"))
    calibration = base / "trajectory" / "online_calibration.jsonl"
    files = [p.relative_to(root).as_posix() for p in (*videos, *([calibration] if os.path.lexists(calibration) else []), *depth)]
    files += [pose] if pose else []
    for file in files:
        regular(root, file)
    return files


def _used(path: Path) -> bool:
    return bool(EXO_VIDEO.fullmatch(path.name) or EGO_VIDEO.fullmatch(path.name))


def _read_index(root: Path) -> _Index:
    """The shared files. An unreadable one is a fault of every take: guessing splits or uids would be worse than stopping."""
    index = _Index()
    for path in sorted((root / "annotations" / "ego_pose").glob("*/camera_pose/*.json")):
        index.poses.setdefault(path.stem, []).append(path)
    try:
        for path, read in (
            (root / "takes.json", _read_takes),
            (root / "annotations" / "splits.json", _read_splits),
            *((p, _read_texts) for p in sorted((root / "annotations").glob("atomic_descriptions_*.json"))),
        ):
            if os.path.lexists(path):
                inside(root, path.relative_to(root).as_posix())
                try:
                    read(index, load_json(path, "take_unreadable", INDEX_LIMIT))
                except _WRONG as error:
                    raise Bad("take_unreadable", f"{path.name}: {type(error).__name__} {error}") from None
    except Bad as bad:
        index.fault = [bad.rejected.reason, bad.rejected.detail]
    return index


_WRONG = (KeyError, TypeError, AttributeError, ValueError, OverflowError)  # what a value of another shape than expected leads to
_FIELDS = ("take_uid", "take_name", "root_dir", "task_name", "parent_task_name")


def _read_takes(index: _Index, value: Any) -> None:
    if not isinstance(value, list):
        raise ValueError("no list of takes")
    for number, record in enumerate(value):
        said = record if isinstance(record, dict) else {}
        kept: dict[str, Any] = {k: said.get(k) or "" for k in _FIELDS}
        wrong = [k for k, v in kept.items() if not isinstance(v, str)]
        kept |= dict.fromkeys(wrong, "")
        fault = ["take_unreadable", f"takes.json, record {number}: {', '.join(wrong)} is no text"] if wrong else None
        folder = kept["root_dir"] or (kept["take_name"] and f"takes/{kept['take_name']}")
        if not folder:
            told = ["take_unreadable", f"takes.json, record {number}: neither root_dir nor take_name"]
            uid = kept["take_uid"] or f"takes.json#{number}"
            index.lost[uid] = index.faults[uid] = told
            continue
        folder = os.path.normpath(folder)
        if index.takes.get(folder, kept) != kept:
            fault = ["take_unreadable", f"takes.json lists {folder} twice, as {index.takes[folder]['take_uid']} and {kept['take_uid']}"]
        index.takes[folder] = {**kept, "fault": fault} if fault else kept


def _read_splits(index: _Index, value: Any) -> None:
    pairs = [(uid, split) for split, uids in value.get("split_to_take_uids", {}).items() for uid in uids]
    for uid, split in (*pairs, *value.get("take_uid_to_split", {}).items()):
        if split not in SPLITS or index.splits.setdefault(uid, split) != split:
            told = " and ".join(dict.fromkeys(repr(s)[:50] for s in (index.splits.get(uid, split), split)))
            index.faults[uid] = ["split_invalid", f"splits.json puts it into {told}; known are {', '.join(SPLITS)}"]


def _read_texts(index: _Index, value: Any) -> None:
    """Of several annotators' passes over a take the fullest that was not rejected."""
    for uid, passes in value["annotations"].items():
        try:
            kept = [p["descriptions"] for p in passes if not p.get("rejected")]
            best = max(kept, key=len, default=[])
            told = [d for d in best if d.get("text") and d.get("timestamp") is not None]
            found = [{"text": str(d["text"]), "timestamp": float(d["timestamp"])} for d in told]
        except _WRONG as error:
            index.faults.setdefault(uid, ["descriptions_invalid", f"{type(error).__name__}: {error}"[:200]])
        else:
            index.texts[uid] = sorted(found, key=lambda d: d["timestamp"])


def _take_names(root: Path, index: _Index) -> dict[str, list[str]]:
    """Take name -> uids, as the annotations' own metadata say (they are the only link where takes.json is absent)."""
    names: dict[str, list[str]] = {}
    for uid, paths in index.poses.items():
        metadata = _metadata(root, paths[0])
        if metadata.get("take_uid") == uid and isinstance(metadata.get("take_name"), str):
            names.setdefault(metadata["take_name"], []).append(uid)
    return names


def _metadata(root: Path, path: Path) -> dict:
    """The "metadata" object, usually in the first bytes of a file of megabytes; {} where the file cannot be read."""
    try:
        inside(root, path.relative_to(root).as_posix())
        with opened(path) as file:
            head = file.read(65536).decode(errors="replace")
        at = re.search(r'"metadata"\s*:\s*(?=\{)', head)
        if at:
            return json.JSONDecoder().raw_decode(head[at.end() :])[0]
    except Bad:
        return {}
    except (OSError, ValueError, RecursionError):
        pass
    try:
        value = load_json(path, "no_camera_pose")
    except Bad:
        return {}
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _is_there(root: Path, folder: str, index: _Index) -> bool:
    """Whether a listed folder is on disk. One that would have to be sought elsewhere is a fault of its take, wherever that lies."""
    try:
        return inside(root, folder).is_dir()
    except Bad as bad:
        uid = index.takes[folder]["take_uid"] or f"takes.json#{folder}"
        index.lost[uid] = index.faults[uid] = [bad.rejected.reason, bad.rejected.detail]
        return False


# -- the EgoX examples ---------------------------------------------------------------------------------------------------


def egox(root: Path) -> Iterator[dict]:
    """Rows of meta.json's entries; a take is named by the folder of its videos. ValueError where it lists no such takes."""
    blank = {"layout": "egox", "split": "", "pose": "", "files": [], "descriptions": [], "fault": None}
    try:
        meta = load_json(root / "meta.json", "take_unreadable", INDEX_LIMIT)
    except Bad as bad:  # one row for what cannot be told apart
        key = f"{root}/meta.json"
        yield _row(root, ".", "meta.json", key) | blank | {"fault": [bad.rejected.reason, bad.rejected.detail]}
        return
    entries = meta.get("test_datasets") if isinstance(meta, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{root}/meta.json is no list of EgoX takes: no test_datasets in it")
    for number, entry in enumerate(entries):
        path = entry.get("exo_path") if isinstance(entry, dict) else None
        name = Path(path).parent.name if isinstance(path, str) else ""
        row = _row(root, f"videos/{name}", name, name) | blank | {"entry": entry if isinstance(entry, dict) else {}}
        try:
            if not isinstance(path, str):
                raise Bad("take_unreadable", f"entry {number} of meta.json has no exo_path")
            _named(name)
            paths = [entry[k] for k in ("exo_path", "ego_gt_path", "ego_prior_path") if entry.get(k)]
            paths += [p.relative_to(root).as_posix() for p in sorted(inside(root, f"depth_maps/{name}").glob("*.npy"))]
            row["files"] = [_seen(root, path).relative_to(root).as_posix() for path in paths]
            row["descriptions"] = exo_prompt(entry)
        except Bad as bad:
            if name in ("", "..") or len(name) > 200:
                row |= {"take_uid": f"{root.name}/entry-{number}", "take_name": f"entry-{number}", "folder": "videos"}
            row |= {"fault": [bad.rejected.reason, bad.rejected.detail], "files": []}
        yield row


def _seen(root: Path, path: Any) -> Path:
    """The path; where something is there, a file that may be read. What is missing has reasons of its own in ingest."""
    return regular(root, path) if os.path.lexists(inside(root, path)) else inside(root, path)


def task_of(name: str) -> str:
    """The word of a take's name that says what is done: "iiith_cooking_57_2" -> "cooking"; "" where there is none."""
    words = re.findall(r"[a-z]+", name.lower().partition("_")[2])
    return words[0] if words else ""


def exo_prompt(entry: dict) -> list[dict]:
    """The exo half of the prompt that came with a take. Its ego half was written by a model that saw true ego frames: never used."""
    text = entry.get("prompt")
    exo = text.split("[Ego view]")[0].strip() if isinstance(text, str) else ""
    return [{"text": exo, "timestamp": 0.0}] if exo else []
