"""A release to a scored adapter: train, generate and score beside the champion on the same held-out clips, promote if better."""

from __future__ import annotations

import logging
from functools import partial

from prefect import flow

from egomill.flows.generate import HELD_OUT, score
from egomill.flows.steps import do, link, make, meter, say
from egomill.models.method import of, split
from egomill.schemas.config import Profile
from egomill.tasks.lake import releases
from egomill.tasks.lake.heartbeat import alive
from egomill.tasks.lake.runs import Run, recorded
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Adapter, Tracker
from egomill.tasks.networks import bases
from egomill.tasks.stages import generations
from egomill.tasks.stages.clips import selected
from egomill.tasks.training import adapters, gate, train


def fitted(run: Run, release: str, tracker: Tracker) -> tuple[Adapter, bool]:
    """The adapter of a release ("": the newest) by the run's profile, and whether it was trained just now."""
    for left, starter in tracker.running().items():
        if not alive(run.lake, starter):
            tracker.end(left, "FINISHED" if tracker.registered(left) else "KILLED")
    tracker.settle(of(run.profile).name)
    source = releases.get(run.lake, release)
    run.release_in = source["name"]
    if found := train.existing(run.lake, source, run.profile, tracker):
        return found, False
    with meter("train") as advance:
        return do("train", train.train, run.lake, source, run.profile, tracker, run.id, advance), True


@flow(name="retrain", log_prints=True, validate_parameters=False)
def retrain(lake: str, profile: str = "local", settings: list[str] | None = None, release: str = "", tracking: str = "") -> dict:
    """Train on a release ("" is the newest). An adapter of the same release, settings and base is not trained again.

    Returns {adapter, trained, promoted, why, comparison}.
    """
    settings_ = Profile.load(profile, settings or [])
    method, tracker = of(settings_), Tracker.of(tracking, lake)
    with recorded(Lake(lake), "retrain", settings_) as run:
        candidate, trained = fitted(run, release, tracker)
        tracker.nominate(candidate)
        link("mlflow-run", tracker.uri, f"MLflow run {candidate.run_id}")

        champion = tracker.champion(candidate.name)
        others = {champion.spec: champion.folder} if champion and champion.spec != candidate.spec else {}
        variants = {f"{candidate.spec}+{name}": variant for name, variant in method.variants.items()}
        varied = {spec: candidate.folder for spec, variant in variants.items() if not variant.still}
        folders = {"base": "", **others, candidate.spec: candidate.folder}
        revision = bases.revision(settings_.model)
        held_out = selected(run.lake, settings_.clips, HELD_OUT)
        for spec, folder in (folders | varied).items():
            if folder and (misfit := adapters.misfit(adapters.describe(folder), settings_, revision)):
                say(f"{spec} generates nothing more, and is compared by what it generated before: {misfit}", "yellow", logging.WARNING)
                continue
            make(run, generations.stage(settings_, spec, folder, partial(tracker.folder, split(spec)[0])), keys=held_out)
        for spec in (*folders, *variants, *method.references):
            score(run, spec)

        comparison = gate.compare(run.lake, [*method.references, *variants, *folders])
        promoted, why = do("gate", gate.decide, run.lake, candidate, champion)
        if promoted:
            tracker.promote(candidate, why)
        if champion is None or champion.spec != candidate.spec:  # what once made it champion stands
            tracker.tag_adapter(candidate, {"decision": why})
        say(f"{candidate.spec} {'trained' if trained else 'is up to date'}; {why}", "bold")
        return {"adapter": candidate.spec, "trained": trained, "promoted": promoted, "why": why, "comparison": comparison}
