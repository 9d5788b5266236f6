"""What runs every night: rebuild, retrain with comparison, report. Up to date when nothing changed."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from egomill.flows.prepare import prepare
from egomill.flows.rebuild import rebuild
from egomill.flows.retrain import retrain
from egomill.flows.steps import call, do, link, meter, say, show
from egomill.tasks.lake.tables import Lake, ask
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.pages import report as reports


@flow(name="nightly", log_prints=True, validate_parameters=False)
def nightly(
    lake: str,
    sources_: list[str],
    profile: str = "local",
    settings: list[str] | None = None,
    tracking: str = "",
    report: str = "",
) -> dict:
    """Takes to a release, to an adapter, to a page that shows both. Each half does nothing where nothing changed."""
    Tracker.of(tracking, lake)  # a server that does not answer is told before the work, not after it
    built = call(rebuild, lake=lake, sources_=sources_, profile=profile, settings=settings)
    if needed := call(prepare, lake=lake, profile=profile, settings=settings, release=built["release"], tracking=tracking):
        settings = [*(settings or []), *needed]
        again = call(rebuild, lake=lake, sources_=sources_, profile=profile, settings=settings)
        built = {**again, "new": built["new"] or again["new"], "computed": built["computed"] + again["computed"]}
    trained = call(retrain, lake=lake, profile=profile, settings=settings, release=built["release"], tracking=tracking)
    page = do("report", write_report, lake, trained["adapter"], tracking, report)
    link("report", page, "report")
    show("held-out", lambda: reports.glance(Lake(lake), trained["adapter"]), f"held-out clips by {trained['adapter']}")
    say(f"report: {page}", "bold")
    return {**built, **trained, "report": page}


def write_report(lake: str, adapter: str, tracking: str, page: str) -> str:
    """Write the report page of an adapter ("": the candidate of the only name, or whatever was generated last); returns its path."""
    tracker = Tracker.of(tracking, lake)
    if not adapter and tracker.exists() and len(names := tracker.names()) == 1:
        adapter = f"{names[0]}@candidate"
    at = ask(lake)
    where = Path(page) if page else Path(lake if "://" not in lake else ".") / "report.html"
    with meter("report") as advance:
        return str(reports.render(at, tracker if tracker.exists() else None, adapter, where, progress=advance))
