"""What a method needs before its own rows can be made: adapters of other methods, trained on the same release and split."""

from __future__ import annotations

from prefect import flow

from egomill.flows.needs import unnamed
from egomill.flows.retrain import fitted
from egomill.flows.steps import link, say
from egomill.schemas.config import Profile
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker


@flow(name="prepare", log_prints=True, validate_parameters=False)
def prepare(lake: str, profile: str = "local", settings: list[str] | None = None, release: str = "", tracking: str = "") -> list[str]:
    """Train what the profile's method needs and does not name, unless it is there. Returns the settings that name it."""
    settings_ = Profile.load(profile, settings or [])
    found = []
    for setting, overrides in unnamed(settings_).items():
        with recorded(Lake(lake), "prepare", Profile.load(profile, [*(settings or []), *overrides(settings_)])) as run:
            tracker = Tracker.of(tracking, lake)
            adapter, trained = fitted(run, release, tracker)
            tracker.nominate(adapter)
            link("mlflow-run", tracker.uri, f"MLflow run {adapter.run_id}")
            say(f"{adapter.spec} {'trained' if trained else 'is up to date'}", "bold")
            found.append(f"{setting}={adapter.folder}")
    return found
