"""What one asks of a lake beside making it: plan, adopt, verify, repair, forget. Plain functions; those that write are recorded as runs."""

from __future__ import annotations

import json
from typing import Any

from egomill.flows.generate import resolve
from egomill.flows.rebuild import stages, takes_in
from egomill.schemas.config import Profile
from egomill.tasks.keeping import adopt as adopting
from egomill.tasks.keeping import forget as forgetting
from egomill.tasks.keeping import plan as planning
from egomill.tasks.keeping import rederive
from egomill.tasks.keeping import repair as repairing
from egomill.tasks.keeping import upgrade as upgrading
from egomill.tasks.keeping import verify as verifying
from egomill.tasks.lake import releases
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Glimpse, Lake, ask
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.stages import generations, scores
from egomill.tasks.stages.clips import selected
from egomill.tasks.training import sizes as counting


def plan(lake: str, sources_: list[str], profile: str = "local", settings: list[str] | None = None) -> list[dict]:
    """What `rebuild` with the same arguments would compute, a dict a stage (tasks/keeping/plan.py). Nothing is run or written."""
    settings_, at = Profile.load(profile, settings or []), Glimpse(lake)
    found = takes_in(at, sources_, settings_.ingest.allow)
    chosen = selected(at, settings_.clips)
    take, cut, *derived = stages(settings_)
    steps = [(take, None, found), (cut, None, None), *((stage, chosen, None) for stage in derived)]
    return planning.plan(at, steps, settings_.resources.attempts)


def sizes(profile: str, settings: list[str], rate: float = 0.0) -> dict:
    """What training by a profile costs (tasks/training/sizes.py); hours only with a `rate` in TFLOP/s."""
    return counting.estimate(Profile.load(profile, settings), rate)


def adopt(
    lake: str,
    stage: str,
    profile: str = "local",
    settings: list[str] | None = None,
    sample: int = 5,
    tolerance: float = 0.0,
    seed: int | None = None,
    tracking: str = "",
) -> dict:
    """Declare a stage's rows current after a refactor, if a sample comes out as it is stored (tasks/keeping/adopt.py)."""
    settings_ = Profile.load(profile, settings or [])
    with recorded(Lake(lake), "adopt", settings_, __name__) as run:
        made = _named(stage, settings_, lake, tracking)
        items = None if made.reads else rederive.on_disk(run.lake, allow=settings_.ingest.allow)
        answer = adopting.adopt(made, run.lake, sample, tolerance, seed, items)
        run.detail = json.dumps(answer)
        return answer


def verify(lake: str, release: str, sample: int = 3, seed: int | None = None) -> dict[str, Any]:
    """Make random rows of a release again and compare them (tasks/keeping/verify.py). Reads only."""
    at = ask(lake)
    found = releases.get(at, release)
    tables = verifying.verify(at, found, stages(Profile(**found["profile"])), sample, seed)
    return {"release": found["name"], "tables": tables, **{k: sum(t[k] for t in tables) for k in ("ok", "differs", "cannot")}}


def verify_deep(lake: str, release: str) -> dict[str, Any]:
    """Hold every file and every row of a release against their digests (tasks/keeping/verify.py). Reads only."""
    at = ask(lake)
    found = next((r for r in releases.every(at) if not r["withdrawn"] and release in ("", r["name"])), None) or releases.get(at, release)
    tables = verifying.deep(at, found)
    return {"release": found["name"], "tables": tables, "damaged": sum(len(t["damaged"]) for t in tables)}


def repair(lake: str) -> dict[str, Any]:
    """Take what is damaged on disk out of the tables, so that it is made again (tasks/keeping/repair.py). A run of the lake."""
    ask(lake)
    at = Lake(lake)
    mended = repairing.records(at)  # first what runs themselves are written in
    with recorded(at, "repair", Profile.load("local"), __name__) as run:
        answer = repairing.repair(at)
        answer["mended"] = mended + answer["mended"]
        run.detail = json.dumps(answer)
        return answer


def upgrade(lake: str) -> dict[str, Any]:
    """Bring a lake of an earlier format to the present one (tasks/keeping/upgrade.py)."""
    return upgrading.upgrade(lake)


def forget(lake: str, take: str, tracking: str = "") -> dict[str, Any]:
    """Remove a take from the lake and from its disk. ValueError on an unknown take, and where a run is under way."""
    ask(lake)
    at = Lake(lake)
    known = forgetting.find(at, take)
    tracker = Tracker.of(tracking, lake) if tracking or at.is_local else None
    with recorded(at, "forget", Profile.load("local"), __name__) as run:
        return forgetting.forget(at, tracker if tracker and tracker.exists() else None, known, run.id)


def _named(name: str, profile: Profile, lake: str, tracking: str) -> Stage:
    """A stage by its name in reports, of those that are alone in their table by that of the table too: "depth", "alignments/predicted",
    "generations/egox@v3", "scores/prior"."""
    kind, _, adapter = name.partition("/")
    if kind in ("generations", "scores") and adapter:
        spec, folder = resolve(lake, adapter, tracking)
        return generations.stage(profile, spec, folder) if kind == "generations" else scores.stage(profile, spec)
    made = stages(profile)
    alone = [stage.name for stage in made if sum(other.name == stage.name for other in made) == 1]
    known = {stage.name if stage.name in alone else stage.id: stage for stage in made}
    found = {**known, **{stage.id: stage for stage in made}}.get(name)
    if found is None:
        raise ValueError(f"no stage {name!r}; known: {', '.join(known)}, generations/ADAPTER, scores/ADAPTER")
    return found
