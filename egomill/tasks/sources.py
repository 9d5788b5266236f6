"""What takes are there: three layouts recognised, one Item a take.

Cheap on purpose: indices are read, files are listed and `stat`ed; no video is opened and nothing hashed, so looking at 5,035 takes every
night costs seconds. An item's digest is the signature of the take's files and of what the indices say of it. A fault that shows here
travels in the item's row and becomes a named rejection in ingest: nothing is dropped silently.

    Ego-Exo4D release   takes.json (or a walk over takes/*), annotations/{ego_pose/*/camera_pose, splits.json, atomic_descriptions_*.json}
    simulated           the same, with depth in sidecar/<take>/<cam>.npz
    EgoX examples       meta.json with "test_datasets": one exo camera a take, depth_maps/<take>/NNNNN.npy
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egomill.schemas.fingerprint import digest
from egomill.tasks.stage import Item
from egomill.tasks.untrusted import MEGABYTE, Bad, inside, load_json, stat_signature

INDEX_LIMIT = 1024 * MEGABYTE  # takes.json and the descriptions speak of the whole release
EXO_VIDEO = re.compile(r"((?:cam|gp)\d+)\.mp4")
EGO_VIDEO = re.compile(r"(aria\d+)_214-1\.mp4")  # 214-1 is the RGB stream
SPLITS = ("train", "val", "test")


def discover(roots: list[Path]) -> list[Item]:
    """One item for every take below the roots, in a stable order. ValueError on a root that is no data set.

    The second of two takes with one uid gets the key `uid#path` and a fault.
    """
    rows: list[dict] = []
    for root in map(Path, roots):
        if not (root / "takes").is_dir() and not (root / "meta.json").is_file():
            raise ValueError(f"{root} is no data set: neither takes/ nor meta.json is there")
        found = list((release if (root / "takes").is_dir() else egox)(root.resolve()))
        _hold_one_out(found)
        rows += found
    items, seen = [], {}
    for row in rows:
        key, place = row["take_uid"], f"{row['root']}/{row['folder']}"
        if key in seen:
            row["fault"] = ["duplicate_take_uid", f"{key} is also {seen[key]}"]
            key = f"{key}#{place}"
        seen.setdefault(key, place)
        row["take_uid"] = key
        told = json.dumps(row, sort_keys=True)  # as text: what a data set says may hold NaN
        items.append(Item(key, digest(told, stat_signature(Path(row["root"]), row["files"])), row))
    return items


def _hold_one_out(rows: list[dict]) -> None:
    """Where a data set has no official split at all, its take of the smallest hash is held out whatever the recipe's share: a handful of
    takes would else as likely as not leave nothing to score on. More takes may bring a smaller hash, and with it another one.
    """
    if len(rows) > 1 and not any(row["split"] for row in rows):
        min(rows, key=lambda row: digest(row["take_uid"]))["split"] = "held-out"


# -- the Ego-Exo4D release -----------------------------------------------------------------------------------------------


@dataclass
class _Index:
    """What the release's shared files say."""

    takes: dict[str, dict] = field(default_factory=dict)  # folder relative to the root -> record
    poses: dict[str, list[Path]] = field(default_factory=dict)  # uid -> annotation files
    splits: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[dict]] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)  # take name -> uids, from the annotations themselves
    fault: list[str] | None = None


def release(root: Path) -> Iterator[dict]:
    """Rows of the takes that are on disk; those that takes.json lists and nobody downloaded are no takes."""
    index = _read_index(root)
    folders = {f"takes/{p.name}" for p in (root / "takes").iterdir() if p.is_dir() and not p.name.startswith(".")}
    outside = {folder for folder in index.takes if folder not in folders and _leads_out(root, folder)}
    if any(folder not in index.takes for folder in folders):
        index.named = _take_names(index)
    for folder in sorted(folders | outside | {f for f in index.takes if (root / f).is_dir()}):
        yield _take(root, folder, index)


def _take(root: Path, folder: str, index: _Index) -> dict:
    record = index.takes.get(folder, {})
    name = record.get("take_name") or Path(folder).name
    row: dict[str, Any] = {"layout": "egoexo4d", "root": str(root), "folder": folder, "take_name": name, "fault": index.fault}
    task = record.get("task_name") or record.get("parent_task_name") or task_of(name)
    row |= {"take_uid": record.get("take_uid", ""), "task": task}
    row |= {"split": "", "descriptions": [], "pose": "", "files": [], "entry": {}}
    try:
        if not row["take_uid"]:
            uids = index.named.get(name, [])
            if len(uids) != 1:
                row["take_uid"] = name
                raise Bad("no_camera_pose", f"{len(uids)} annotations name take {name}")
            row["take_uid"] = uids[0]
        row |= _of_uid(root, row["take_uid"], index)
        row["files"] = _files(root, folder, name, row["pose"])
    except Bad as bad:
        row["fault"] = row["fault"] or [bad.rejected.reason, bad.rejected.detail]
    return row


def _of_uid(root: Path, uid: str, index: _Index) -> dict:
    """Split, descriptions and annotation of a take. Bad where annotations of one take lie in several splits and no index decides."""
    poses = index.poses.get(uid, [])
    split = index.splits.get(uid, "")
    folders = sorted({path.parent.parent.name for path in poses} & set(SPLITS))
    if not split and len(folders) > 1:
        raise Bad("take_unreadable", f"annotated in {' and '.join(folders)}")
    pose = next((p for p in poses if p.parent.parent.name == split), poses[0] if poses else None)
    out = {"split": split or (folders[0] if folders else ""), "descriptions": index.texts.get(uid, [])}
    return out | {"pose": pose.relative_to(root).as_posix() if pose else ""}


def _files(root: Path, folder: str, name: str, pose: str) -> list[str]:
    """The take's files that are used: videos at the smallest size there is, lens calibration, annotation, depth. Bad where one leads
    out."""
    base = inside(root, folder)
    aligned = base / "frame_aligned_videos"
    sizes = sorted((p for p in (aligned / "downscaled").glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    videos = next((found for place in (*sizes, aligned) if (found := sorted(p for p in place.glob("*.mp4") if _used(p)))), [])
    depth = sorted(p for p in inside(root, f"sidecar/{name}").glob("*.npz") if EXO_VIDEO.fullmatch(p.stem + ".mp4"))
    calibration = base / "trajectory" / "online_calibration.jsonl"
    files = [p.relative_to(root).as_posix() for p in (*videos, *([calibration] if calibration.exists() else []), *depth)]
    files += [pose] if pose else []
    for file in files:
        inside(root, file)
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
            if path.exists():
                inside(root, path.relative_to(root).as_posix())
                try:
                    read(index, load_json(path, "take_unreadable", INDEX_LIMIT))
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    raise Bad("take_unreadable", f"{path.name}: {type(error).__name__} {error}") from None
    except Bad as bad:
        index.fault = [bad.rejected.reason, bad.rejected.detail]
    return index


def _read_takes(index: _Index, value: Any) -> None:
    for record in value:
        folder = (record.get("root_dir") or f"takes/{record['take_name']}").rstrip("/")
        kept = {k: record.get(k) or "" for k in ("take_uid", "take_name", "task_name", "parent_task_name")}
        if not all(isinstance(v, str) for v in (folder, *kept.values())):
            raise ValueError(f"take {kept['take_name']}: not text")
        index.takes[folder] = kept


def _read_splits(index: _Index, value: Any) -> None:
    pairs = [(uid, split) for split, uids in value.get("split_to_take_uids", {}).items() for uid in uids]
    for uid, split in (*pairs, *value.get("take_uid_to_split", {}).items()):
        if split not in SPLITS or index.splits.setdefault(uid, split) != split:
            raise ValueError(f"take {uid} is in {split!r} and {index.splits.get(uid)!r}")


def _read_texts(index: _Index, value: Any) -> None:
    """Of several annotators' passes over a take the fullest that was not rejected."""
    for uid, passes in value["annotations"].items():
        kept = [p["descriptions"] for p in passes if not p.get("rejected")]
        best = max(kept, key=len, default=[])
        told = [d for d in best if d.get("text") and d.get("timestamp") is not None]
        index.texts[uid] = sorted(
            ({"text": str(d["text"]), "timestamp": float(d["timestamp"])} for d in told), key=lambda d: d["timestamp"]
        )


def _take_names(index: _Index) -> dict[str, list[str]]:
    """Take name -> uids, as the annotations' own metadata say (they are the only link where takes.json is absent)."""
    names: dict[str, list[str]] = {}
    for uid, paths in index.poses.items():
        metadata = _metadata(paths[0])
        if metadata.get("take_uid") == uid and isinstance(metadata.get("take_name"), str):
            names.setdefault(metadata["take_name"], []).append(uid)
    return names


def _metadata(path: Path) -> dict:
    """The "metadata" object, usually in the first bytes of a file of megabytes; {} where the file cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(65536).decode(errors="replace")
        at = re.search(r'"metadata"\s*:\s*(?=\{)', head)
        if at:
            return json.JSONDecoder().raw_decode(head[at.end() :])[0]
    except (OSError, ValueError):
        pass
    try:
        value = load_json(path, "no_camera_pose")
    except Bad:
        return {}
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _leads_out(root: Path, folder: str) -> bool:
    try:
        inside(root, folder)
        return False
    except Bad:
        return True


# -- the EgoX examples ---------------------------------------------------------------------------------------------------


def egox(root: Path) -> Iterator[dict]:
    """Rows of meta.json's entries; a take is named by the folder of its videos."""
    try:
        entries = load_json(root / "meta.json", "take_unreadable", INDEX_LIMIT)["test_datasets"]
        if not isinstance(entries, list):
            raise TypeError("test_datasets is no list")
    except (Bad, KeyError, TypeError) as error:
        raise ValueError(f"{root}/meta.json is no list of EgoX takes: {error}") from None
    for number, entry in enumerate(entries):
        path = entry.get("exo_path") if isinstance(entry, dict) else None
        name = Path(path).parent.name if isinstance(path, str) else f"entry-{number}"
        row: dict[str, Any] = {"layout": "egox", "root": str(root), "folder": f"videos/{name}", "take_name": name, "take_uid": name}
        row |= {"split": "", "task": task_of(name), "pose": "", "files": [], "entry": entry, "descriptions": [], "fault": None}
        try:
            if not isinstance(path, str):
                raise Bad("take_unreadable", f"entry {number} of meta.json has no exo_path")
            paths = [entry[k] for k in ("exo_path", "ego_gt_path", "ego_prior_path") if entry.get(k)]
            paths += [p.relative_to(root).as_posix() for p in sorted(inside(root, f"depth_maps/{name}").glob("*.npy"))]
            row["files"] = [inside(root, path).relative_to(root).as_posix() for path in paths]
            row["descriptions"] = exo_prompt(entry)
        except Bad as bad:
            row["fault"] = [bad.rejected.reason, bad.rejected.detail]
        yield row


def task_of(name: str) -> str:
    """The word of a take's name that says what is done: "iiith_cooking_57_2" -> "cooking"; "" where there is none."""
    words = re.findall(r"[a-z]+", name.lower().partition("_")[2])
    return words[0] if words else ""


def exo_prompt(entry: dict) -> list[dict]:
    """The exo half of the prompt that came with a take. Its ego half was written by a model that saw true ego frames: never used."""
    text = entry.get("prompt")
    exo = text.split("[Ego view]")[0].strip() if isinstance(text, str) else ""
    return [{"text": exo, "timestamp": 0.0}] if exo else []
