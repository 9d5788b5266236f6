"""What says where the hands of a take are: which annotations and files there are, {kind: {what it is of: path below the root}}. None is
opened here; hand_files.py reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from egomill.tasks.media.untrusted import below


def there(row: dict) -> dict[str, dict[str, str]]:
    """What says where the hands of a discovered take are: the layout's own annotations, and files beside it. Paths are below the root."""
    root, name = Path(row["root"]), row["take_name"]
    found = dict(LAYOUTS[row["layout"]](root, row)) if row["layout"] in LAYOUTS else {}
    files = {path.stem: below(root, path) for path in sorted((root / "hands" / name).glob("*.npz"))}
    return found | ({"files": files} if files else {})


def _in_release(root: Path, row: dict) -> Iterator[tuple[str, dict[str, str]]]:
    places = {"manual": "annotation", "automatic": "automatic"}
    every = ((kind, path) for kind, folder in places.items() for path in (root / "annotations/ego_pose").glob(f"*/hand/{folder}"))
    found = {
        kind: below(root, folder / f"{row['take_uid']}.json") for kind, folder in every if (folder / f"{row['take_uid']}.json").is_file()
    }
    if found:
        yield "egoexo4d", found


def _in_h2o(root: Path, row: dict) -> Iterator[tuple[str, dict[str, str]]]:
    found = {cam: f"{place}/hand_pose" for cam, place in row["entry"].items() if (root / place / "hand_pose").is_dir()}
    if found:
        yield "h2o", found


LAYOUTS: dict[str, Callable[[Path, dict], Iterator[tuple[str, dict[str, str]]]]] = {"egoexo4d": _in_release, "h2o": _in_h2o}


def files_of(hands: dict[str, dict[str, str]]) -> list[str]:
    """The files and folders that `there` names."""
    return sorted(path for places in hands.values() for path in places.values())
