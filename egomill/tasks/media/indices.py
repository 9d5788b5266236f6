"""What a release's indices say of its takes: takes.json, splits.json and the descriptions, read as far as they can be trusted."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from egomill.tasks.media.untrusted import MEGABYTE, Bad, inside, load_json, opened

_WRONG = (KeyError, TypeError, AttributeError, ValueError, OverflowError)  # what a value of another shape than expected leads to
_FIELDS = ("take_uid", "take_name", "root_dir", "task_name", "parent_task_name")
INDEX_LIMIT = 512 * MEGABYTE  # takes.json and the descriptions speak of the whole release
SPLITS = ("train", "val", "test")
RECORDS = 100_000  # of an index: Ego-Exo4D has 5,035 takes


@dataclass
class Index:
    """What the release's shared files say."""

    takes: dict[str, dict] = field(default_factory=dict)  # folder relative to the root -> record
    poses: dict[str, list[Path]] = field(default_factory=dict)  # uid -> annotation files
    splits: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[dict]] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)  # take name -> uids, from the annotations themselves
    faults: dict[str, list[str]] = field(default_factory=dict)  # uid -> what is wrong with what is said of it
    lost: dict[str, list[str]] = field(default_factory=dict)  # records of no known folder: uid or place in the file -> what is wrong
    fault: list[str] | None = None
    allow: tuple[str, ...] = ()


def read_index(root: Path, allow: tuple[str, ...]) -> Index:
    """The shared files. An unreadable one is a fault of every take: guessing splits or uids would be worse than stopping."""
    index = Index(allow=allow)
    for path in sorted((root / "annotations" / "ego_pose").glob("*/camera_pose/*.json")):
        index.poses.setdefault(path.stem, []).append(path)
    try:
        for path, read in (
            (root / "takes.json", _read_takes),
            (root / "annotations" / "splits.json", _read_splits),
            *((p, _read_texts) for p in sorted((root / "annotations").glob("atomic_descriptions_*.json"))),
        ):
            if os.path.lexists(path):
                inside(root, path.relative_to(root).as_posix(), allow)
                try:
                    read(index, load_json(path, "take_unreadable", INDEX_LIMIT))
                except _WRONG as error:
                    raise Bad("take_unreadable", f"{path.name}: {type(error).__name__} {error}") from None
    except Bad as bad:
        index.fault = [bad.rejected.reason, bad.rejected.detail]
    return index


def few(records: Any) -> Any:
    """The records; ValueError where they are too many: what is kept of one may be larger than it."""
    if len(records) > RECORDS:
        raise ValueError(f"{len(records)} records, more than {RECORDS}")
    return records


def _read_takes(index: Index, value: Any) -> None:
    if not isinstance(value, list):
        raise ValueError("no list of takes")
    for number, record in enumerate(few(value)):
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


def _read_splits(index: Index, value: Any) -> None:
    pairs = ((uid, split) for split, uids in value.get("split_to_take_uids", {}).items() for uid in few(uids))
    for uid, split in chain(pairs, few(value.get("take_uid_to_split", {})).items()):
        if split not in SPLITS or index.splits.setdefault(uid, split) != split:
            told = " and ".join(dict.fromkeys(repr(s)[:50] for s in (index.splits.get(uid, split), split)))
            index.faults[uid] = ["split_invalid", f"splits.json puts it into {told}; known are {', '.join(SPLITS)}"]


def _read_texts(index: Index, value: Any) -> None:
    """Of several annotators' passes over a take the fullest that was not rejected."""
    for uid, passes in few(value["annotations"]).items():
        try:
            kept = [p["descriptions"] for p in passes if not p.get("rejected")]
            best = max(kept, key=len, default=[])
            told = [d for d in best if d.get("text") and d.get("timestamp") is not None]
            found = [{"text": str(d["text"]), "timestamp": float(d["timestamp"])} for d in told]
        except _WRONG as error:
            index.faults.setdefault(uid, ["descriptions_invalid", f"{type(error).__name__}: {error}"[:200]])
        else:
            index.texts[uid] = sorted(found, key=lambda d: d["timestamp"])


def take_names(root: Path, index: Index) -> dict[str, list[str]]:
    """Take name -> uids, as the annotations' own metadata say (they are the only link where takes.json is absent)."""
    names: dict[str, list[str]] = {}
    for uid, paths in index.poses.items():
        found = (metadata(root, path, index.allow) for path in paths)
        name = next((m["take_name"] for m in found if m.get("take_uid") == uid and isinstance(m.get("take_name"), str)), None)
        if name is not None:
            names.setdefault(name, []).append(uid)
    return names


def metadata(root: Path, path: Path, allow: tuple[str, ...]) -> dict:
    """The "metadata" object, usually in the first bytes of a file of megabytes; {} where the file cannot be read."""
    try:
        inside(root, path.relative_to(root).as_posix(), allow)
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
    found = value.get("metadata") if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def task_of(name: str) -> str:
    """The word of a take's name that says what is done: "iiith_cooking_57_2" -> "cooking"; "" where there is none."""
    words = re.findall(r"[a-z]+", name.lower().partition("_")[2])
    return words[0] if words else ""
