"""Seconds that the preprocessing of one real clip takes, step by step: 49 frames, exo 784x448 beside ego 448x448, no network.

    EGOMILL_REAL_DATA=... python benchmarks/clip.py [--clip 0] [--curation] [--json]

The stages' own workers run, one after the other in this process on one thread, as they do in an actor: a machine with n cores prepares n
clips in this time. Depth is what lies beside the clips; the steps inside a stage are timed where the stage calls them. With --curation
instead: processor time of the stage `clips` on the real take, in one pass a camera, beside a reference that decodes each window for itself.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import typer

from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.media import sidecar, sources, video, views
from egomill.tasks.networks import masks
from egomill.tasks.stages import clips, depth, directions, priors, takes

SETTINGS = [
    *("clips.frames=49", "clips.fps=30", "clips.exo_size=[784,448]", "clips.ego_size=448", "clips.hop=2.0", "clips.min_overlap=0.0"),
    *("depth.height=448", "depth.monocular=sidecar", "depth.mask=background"),
]
STEPS: list[tuple[str, ModuleType | type, str]] = [
    ("decode", views, "read_exo"),
    ("read depth files", sidecar, "read"),
    ("dynamic mask", masks.Masker, "__call__"),
    ("align", depth, "align"),
    ("temporal estimate", depth, "temporal_static"),
    ("pack depth", depth, "pack_depth"),
    ("unpack depth", priors, "unpack_depth"),
    ("render prior", priors, "render_prior"),
    ("encode prior", video, "encode"),
    ("exo points", directions, "exo_points"),
    ("ego rays", directions, "ego_rays"),
]


def watch(seconds: dict[str, float]) -> None:
    """Have every step add its time to `seconds`."""

    def timed(name: str, call: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return wrapper

    for name, owner, attribute in STEPS:
        setattr(owner, attribute, timed(name, getattr(owner, attribute)))


class WindowByWindow(clips.Windows):
    """The reference: every window is decoded for itself. It does not look for what covers the lens."""

    def _look(self, source: clips.Source, name: str, windows: list[clips.Candidate]) -> dict[int, clips.Look]:
        view = next(view.columns for view in source.views if view.name == name)
        reader, crop, looks = video.Reader(Path(source.facts["root"]) / view["exo_video"]), view["exo_crop"], {}
        for one in windows:
            look = clips._looked(reader.read(one.frames, (round(clips.LOOK * crop[2] / crop[3]), clips.LOOK), crop))
            looks[one.start] = replace(look, why=self._pictures(look, one.frames, []))
        return looks


def curation(root: Path) -> dict[str, float]:
    """Processor seconds of both ways, whose rows are the same but for windows in which the lens is covered."""
    profile = Profile.load("local", ["clips.min_overlap=0.0", "clips.exo_cameras=4"])
    take = takes.stage(profile).worker()(sources.discover([root])[0].row)
    assert isinstance(take, dict), take
    seconds, made = {}, {}
    for name, kind in (("one pass", clips.Windows), ("window by window", WindowByWindow)):
        start = time.process_time()
        made[name] = kind(profile.clips)({"takes": take})
        seconds[name] = time.process_time() - start
    for one, other in zip(made["one pass"], made["window by window"], strict=True):
        told = {name for name in one if one[name] != other[name]}
        assert not told - {"why", "chosen"}, told
        assert not told or "covers the lens" in one["why"], one["why"]
    return {**seconds, "ratio": seconds["window by window"] / seconds["one pass"], "windows": float(len(made["one pass"]))}


def main(
    clip: Annotated[int, typer.Option(help="Which of the clips of egox/meta.json.")] = 0,
    curate: Annotated[bool, typer.Option("--curation", help="The stage clips on egoexo4d/, beside its reference.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    if curate:
        torch.set_num_threads(1)
        found = curation(Path(os.environ["EGOMILL_REAL_DATA"]) / "egoexo4d")
        return print(json.dumps(found) if as_json else "\n".join(f"{name:18} {value:8.2f}" for name, value in found.items()))
    root = Path(os.environ.get("EGOMILL_REAL_DATA", "")) / "egox"
    if not (root / "meta.json").is_file():
        raise typer.BadParameter("EGOMILL_REAL_DATA does not name a folder with egox/meta.json")
    torch.set_num_threads(1)
    profile = Profile.load("local", SETTINGS)
    stages, steps, megabytes = {}, defaultdict(float), {}
    watch(steps)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)

        def make(stage: Stage, row: dict) -> list[dict]:
            start = time.perf_counter()
            made = stage.worker()(row)
            stages[stage.name] = time.perf_counter() - start
            if isinstance(made, Rejected):
                raise typer.BadParameter(f"clip {clip} of {stage.name} was rejected: {made.reason} {made.detail}")
            rows = made if isinstance(made, list) else [made]
            rows = [{stage.parent: key, "fingerprint": "", "run_id": "", **r} for r in rows]
            start = time.perf_counter()
            lake.commit(stage.name, lake.write_fragments(stage.name, rows))
            steps["commit"] += time.perf_counter() - start
            files = (f for f in Path(lake.path(stage.name)).rglob("*.lance") if f.is_file())
            megabytes[stage.name] = sum(f.stat().st_size for f in files) / 1e6
            return rows

        item = sources.discover([root])[clip]
        key = item.key
        take = make(takes.stage(profile), item.row)[0]
        window = next(w for w in make(clips.stage(profile), {"takes": take}) if w["chosen"])
        key = window["clip_id"]
        found = {"clips": window}
        for stage in (depth.stage(profile), priors.stage(profile), directions.stage(profile)):
            found[stage.name] = make(stage, found)[0]

    total = sum(stages.values()) + steps["commit"]
    if as_json:
        print(json.dumps({"stages": stages, "steps": steps, "megabytes": megabytes, "total": total, "take": take["take_name"]}))
        return
    for title, values in (("stage", stages), ("step inside", steps)):
        for name, value in values.items():
            print(f"{title:12} {name:20} {value:7.2f} s")
    print(f"{'total':12} {take['take_name']:20} {total:7.2f} s")


if __name__ == "__main__":
    typer.run(main)
