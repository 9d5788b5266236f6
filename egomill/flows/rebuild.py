"""Takes to a release: everything that a model is trained on, made where it is missing or stale, and nothing else."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from egomill.flows.steps import announce, do, make, say
from egomill.schemas.config import Profile
from egomill.schemas.item import Item
from egomill.tasks.keeping import forget
from egomill.tasks.lake import releases
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake, ask
from egomill.tasks.media import decord_reader, sources
from egomill.tasks.networks import configs
from egomill.tasks.stages import clips, of_method, takes


def stages(profile: Profile) -> list[Stage]:
    """What a rebuild makes, in its order: takes, their clips, and what the method asks for of each chosen clip. ValueError where base,
    sizes and method do not go together, or the reader of video is none that is here."""
    decord_reader.chosen()
    configs.check(profile)
    return [takes.stage(profile), clips.stage(profile), *of_method(profile)]


def takes_in(lake: Lake, sources_: list[str], allow: tuple[str, ...]) -> list[Item]:
    """The takes below these folders, those that were forgotten without their names. ValueError where there is none."""
    found = forget.withheld(lake, sources.discover([Path(s) for s in sources_], allow))
    if not found:
        raise ValueError(f"no take in {', '.join(sources_)}: looked for folders in takes/, and for what takes.json and meta.json list")
    return found


@flow(name="rebuild", log_prints=True, validate_parameters=False)
def rebuild(lake: str, sources_: list[str], profile: str = "local", settings: list[str] | None = None, release: str = "") -> dict:
    """Bring the lake up to date with the takes under `sources_` and publish a release. Returns {release, new, run_id, computed}."""
    settings_ = Profile.load(profile, settings or [])
    at = Lake(lake)
    with recorded(at, "rebuild", settings_) as run:
        found = do("discover", takes_in, at, sources_, settings_.ingest.allow)
        take, cut, *derived = stages(settings_)
        if not make(run, take, items=found).outputs:
            raise ValueError(f"none of the {len(found)} takes in {', '.join(sources_)} can be used: {releases.why_none(at)}")
        make(run, cut)
        chosen = do("select", clips.selected, at, settings_.clips)
        for stage in derived:
            make(run, stage, keys=chosen)
        published, new = do("publish", releases.publish, at, run.id, settings_, release)
        run.release_out = published["name"]
        say(f"release {published['name']}{'' if new else ' (unchanged: up to date)'}: {published['clips']} clips", "bold")
        if new:
            announce(at, published["name"])
        return {"release": published["name"], "new": new, "run_id": run.id, "computed": run.computed}


def publish(lake: str, profile: str, settings: list[str], name: str) -> tuple[dict, bool]:
    """Publish the tables as they stand, as a run of its own. Returns the release and whether it is new."""
    settings_ = Profile.load(profile, settings)
    ask(lake)
    with recorded(Lake(lake), "rebuild", settings_) as run:
        published, new = releases.publish(run.lake, run.id, settings_, name)
        run.release_out = published["name"]
    return published, new
