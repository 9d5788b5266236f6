"""Egocentric video for the held-out clips of a lake, and its scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from prefect import flow

from egomill.flows.needs import standing
from egomill.flows.steps import make
from egomill.models.method import of, split
from egomill.schemas.config import Profile
from egomill.tasks.lake.runs import Run, recorded
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.pages import in_the_wild
from egomill.tasks.stages import generations, scores
from egomill.tasks.stages.clips import selected
from egomill.tasks.training import gate

HELD_OUT = ("test", "unseen")
REFERENCES = ("prior", "sparse", "codec")  # not generated: a filled map, and the truth through the codec


@flow(name="generate", log_prints=True, validate_parameters=False)
def generate(lake: str, adapter: str, profile: str = "local", settings: list[str] | None = None, tracking: str = "") -> dict:
    """Generate with an adapter ("name@alias", "name@v3"; "": the method's champion), a variant of one ("name@v3+variant") or the un-tuned
    "base" for every held-out clip."""
    settings_ = Profile.load(profile, settings or [])
    if adapter in REFERENCES:
        raise ValueError(f"{adapter!r} is a reference to compare with, and generates nothing")
    with recorded(Lake(lake), "generate", settings_) as run:
        spec, folder = resolve(run.lake.uri, adapter or champion(settings_), tracking)
        fetch = partial(Tracker.of(tracking, lake).folder, split(spec)[0]) if folder else None
        report = make(run, generations.stage(settings_, spec, folder, fetch), keys=selected(run.lake, settings_.clips, HELD_OUT))
        if not report.inputs:
            raise ValueError(
                f"nothing to generate: {run.lake.uri} has no held-out clip with latents of this base. Rebuild with this profile"
            )
        return {"adapter": spec, **report.to_dict()}


@flow(name="evaluate", log_prints=True, validate_parameters=False)
def evaluate(lake: str, adapter: str, profile: str = "local", settings: list[str] | None = None, tracking: str = "") -> dict:
    """Score what an adapter, a variant of one, or "base" or a reference makes of every held-out clip. Returns the paired comparison
    with what is scored of the filled prior, the codec, the base and the adapter's variants.
    """
    settings_ = Profile.load(profile, settings or [])
    with recorded(Lake(lake), "evaluate", settings_, "egomill.flows.generate") as run:
        method = of(settings_)
        spec, _ = resolve(run.lake.uri, adapter or champion(settings_), tracking)
        score(run, spec)
        variants = [f"{split(spec)[0]}+{name}" for name in method.variants]
        return gate.compare(run.lake, [*(a for a in (*method.references, "base", *variants) if a != spec), spec])


def by_request(
    lake: str, adapter: str, request: dict, out: Path, profile: str = "local", settings: list[str] | None = None, tracking: str = ""
) -> dict:
    """Answer a single request (the values of a `Request` in tasks/pages/in_the_wild.py). The lake is only asked for the adapter."""
    if adapter in REFERENCES:
        raise ValueError(f"{adapter} is a reference of `evaluate` and generates nothing")
    settings_ = Profile.load(profile, [*(settings or []), *standing(Profile.load(profile, settings or []), lake, tracking)])
    if of(settings_).variant(adapter).truth:
        raise ValueError(f"{adapter} is given the true ego video, which a request does not have")
    more = tuple(in_the_wild.View(**view) for view in request.get("more", ()))
    asked = in_the_wild.Request(**{**request, "more": more})
    return in_the_wild.generate(settings_, *resolve(lake, adapter or champion(settings_), tracking), asked, out)


def score(run: Run, spec: str) -> None:
    """Scores of one adapter over the held-out clips."""
    make(run, scores.stage(run.profile, spec), keys=selected(run.lake, run.profile.clips, HELD_OUT))


def champion(profile: Profile) -> str:
    """What is meant where no adapter is named."""
    return f"{of(profile).name}@champion"


def resolve(lake: str, adapter: str, tracking: str) -> tuple[str, str]:
    """(the name that tables use, the folder of its files): "egox@champion" → ("egox@v3", "/…"), and so with a variant behind it; the
    references have no files."""
    adapter, variant = split(adapter)
    if adapter in ("base", *REFERENCES):
        if variant:
            raise ValueError(f"{adapter} is no adapter, and has no variants: leave out +{variant}")
        return adapter, ""
    tracker = Tracker.of(tracking, lake)
    if not tracker.exists():
        raise ValueError(f"no adapter {adapter!r}: nothing was ever registered at {tracker.uri}")
    found = tracker.resolve(adapter)
    return "+".join(filter(None, (found.spec, variant))), found.folder
