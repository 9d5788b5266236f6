"""What was this model made of? And which models was this clip used for? Answers from the lake and the tracker, nothing else.

adapter → release → table versions → clips → takes → file digests, and clip → releases → adapters.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable

from egomill.schemas.tables import RELEASED
from egomill.schemas.tensors import unpack
from egomill.tasks.lake import releases
from egomill.tasks.lake.tables import Lake, one_of
from egomill.tasks.lake.tracking import Tracker


def of_adapter(lake: Lake, tracker: Tracker, spec: str) -> dict:
    """The chain behind an adapter ("name@alias", "name@v3"), down to the digests of the files. One that came from elsewhere has its file's
    digest among its tags, and no release. ValueError where it is not registered.
    """
    adapter = tracker.find(spec)
    about = {"spec": adapter.spec, "aliases": list(adapter.aliases), "run_id": adapter.run_id, "tags": adapter.tags}
    if "file_sha256" in adapter.tags:
        made_of: dict = {"release": None, "clips": [], "takes": []}
    else:
        made_of = of_release(lake, adapter.tags["release"])
        about |= _regressors(lake, tracker, made_of["release"])
    return {"adapter": about, "inputs": tracker.inputs(adapter.run_id), **made_of}


def _regressors(lake: Lake, tracker: Tracker, release: dict) -> dict[str, list[str]]:
    """The registered regressors whose predictions a release holds; nothing where it holds none."""
    version = release["tables"].get("ego_hands")
    if release["withdrawn"] or version is None:
        return {}
    known = set(lake.read("ego_hands", ["regressor"], version=version)["regressor"].to_pylist())
    every = ((name, row) for name in tracker.names() for row in tracker.adapters(name))
    found = [f"{name}@v{row['version']}" for name, row in every if row["tags"].get("sha256", "")[:16] in known]
    return {"regressors": found} if found else {}


def of_release(lake: Lake, name: str = "") -> dict:
    """A release's tables, clips and takes with their files' digests, all at the versions that the release pins. A clip says what its method
    has it say: of Exo2EgoSyn, its fold.
    """
    release = releases.get(lake, name, withdrawn=bool(name))
    told = {k: release[k] for k in ("name", "created", "run_id", "tables", "checks", "withdrawn", "why")}
    if release["withdrawn"]:  # its data is gone
        return {"release": told, "clips": [], "takes": []}
    at = release["tables"]
    used = lake.read("latents", ["clip_id"], version=at["latents"])["clip_id"].to_pylist()
    columns = ["clip_id", "take_uid", "exo_cam", "more_views", "start", "split", "fingerprint"]
    clips = [_views(clip) for clip in lake.rows("clips", set(used), columns, at["clips"])]
    takes = lake.rows("takes", {c["take_uid"] for c in clips}, ["take_uid", "take_name", "layout", "files"], at["takes"])
    said = _told(lake, release, used)
    return {
        "release": told,
        "clips": [{**c, **said[c["clip_id"]]} for c in sorted(clips, key=lambda c: c["clip_id"])],
        "takes": [{**t, "files": {path: f["sha256"] for path, f in json.loads(t["files"]).items()}} for t in takes],
    }


def _views(clip: dict) -> dict:
    """The clip with the names of all its exo cameras, in their order, for what is said of each."""
    found = [clip["exo_cam"], *(view["exo_cam"] for view in clip["more_views"] or ())]
    return {name: value for name, value in clip.items() if name not in ("exo_cam", "more_views")} | {"views": found}


def _told(lake: Lake, release: dict, clips: Iterable[str]) -> dict[str, dict[str, int | float]]:
    """By clip, the numbers that the release's method has lineage say."""
    from egomill.models import method  # takes torch along

    found: dict[str, dict[str, int | float]] = defaultdict(dict)
    with contextlib.suppress(ValueError):  # a method that is not on the path is asked nothing
        if names := method.named(release["profile"]["train"]["method"]).told:
            for row in lake.rows("latents", clips, ["clip_id", "name", "tensor"], release["tables"]["latents"], one_of("name", names)):
                found[row["clip_id"]][row["name"]] = unpack(row["tensor"]).item()
    return found


def of_clip(lake: Lake, tracker: Tracker, name: str, clip_id: str) -> dict:
    """Where a clip went: every release that holds it, and every version of the adapter `name` ("": of any) trained on one of them."""
    rows = lake.rows("clips", [clip_id])
    if not rows:
        raise ValueError(f"no clip {clip_id!r} in {lake.uri}: clips are named TAKE_UID.CAMERA.START, as `egomill release diff` writes them")
    clip = _views(rows[0])
    standing = (r for r in releases.every(lake) if not r["withdrawn"])
    holds = [r for r in standing if lake.count("latents", one_of("clip_id", [clip_id]), r["tables"]["latents"])]
    names = {r["name"] for r in holds}
    asked = clip["split"] == "train" and tracker.exists()
    of = [name] if name else tracker.names() if asked else []
    trained = [(n, a) for n in of for a in tracker.adapters(n) if a["tags"].get("release") in names] if asked else []
    derived = {}
    for table in RELEASED[2:]:
        derived[table] = list(dict.fromkeys(r["fingerprint"] for r in lake.rows(table, [clip_id], ["fingerprint"])))
    return {
        "clip": {k: clip[k] for k in ("clip_id", "take_uid", "take_name", "split", "views", "start", "why", "fingerprint")},
        "derived": derived,
        "failures": [f for f in lake.rows("failures", [clip_id]) if f],
        "releases": [r["name"] for r in holds],
        "adapters": [{"spec": f"{n}@v{a['version']}", "release": a["tags"]["release"], "aliases": a["aliases"]} for n, a in trained],
    }
