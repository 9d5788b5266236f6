"""What the commands share: the options that many take, how a flow is run, how an answer is given."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from egomill.flows.terminal import Terminal

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
releases_app = typer.Typer(no_args_is_help=True, help="Releases: named, protected versions of all tables.")
app.add_typer(releases_app, name="release")
lake_app = typer.Typer(no_args_is_help=True, help="The lake as a whole.")
app.add_typer(lake_app, name="lake")
out, err = Terminal(), Terminal(stderr=True)


def _unicode(path: str) -> str:
    if not path.isascii() and path.encode(errors="replace").decode() != path:
        raise ValueError(f"the lake {path} has a name that is no Unicode, which no table can be written by: rename the folder")
    return path


Where = typer.Option("--lake", "-l", envvar="EGOMILL_LAKE", help="Folder or object-store URI of the lake.", callback=_unicode)
Lake = Annotated[str, Where]
Profile = Annotated[str, typer.Option("--profile", "-p", help="A named profile (local, paper) or a TOML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="Override a setting: section.key=value. Repeatable.")]
Allow = Annotated[
    list[Path] | None,
    typer.Option("--allow", help="A folder outside of the data sets that their links may lead to: scratch, a hub's cache. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
COUNTED = ("rows", "stage", "status", "reason", "upstream")
Tracking = Annotated[str, typer.Option("--tracking", envvar="MLFLOW_TRACKING_URI", help="MLflow server; default: a database in the lake.")]


def run_flow(flow: Any, json_: bool, **parameters: Any) -> None:
    from prefect.settings import PREFECT_API_URL

    orchestrated = bool(PREFECT_API_URL.value())
    if orchestrated:
        from egomill.flows.steps import greet

        greet(str(PREFECT_API_URL.value()))
    result = flow(**parameters) if orchestrated else flow.fn(**parameters)
    if json_:
        reply(result, True)


def allowing(profile: str, set_: list[str] | None, allow: list[Path] | None) -> list[str]:
    """The overrides, with the folders of --allow beside those that the profile allows."""
    from egomill.schemas.config import Profile as Settings

    for place in allow or []:
        if not place.exists():
            raise ValueError(f"--allow {place}: no such folder")
    known = Settings.load(profile, set_ or []).ingest.allow if allow else ()
    places = json.dumps([*known, *(str(place.absolute()) for place in allow or [])], ensure_ascii=False)
    return [*(set_ or []), *([f"ingest.allow={places}"] if allow else [])]


def tracker_of(lake: str, tracking: str) -> Any:
    from egomill.tasks.lake.tracking import Tracker

    return Tracker.of(tracking, lake)


def asked(lake: str, tracking: str) -> Any:
    """The tracker, for commands about adapters. ValueError where none was ever registered."""
    tracker = tracker_of(lake, tracking)
    if not tracker.exists():
        raise ValueError(f"no adapter was ever registered: nothing is at {tracker.uri}. Check --lake and --tracking")
    return tracker


def reply(value: Any, as_json: bool, show: Any = None, indent: int | None = None) -> None:
    if as_json:
        text = json.dumps(value, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))
        print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=indent))  # JSON has no NaN
    else:
        show()


def show_table(title: str, rows: list[dict], columns: list[str]) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if row[c] is None else f"{row[c]:%F %T}" if isinstance(row[c], datetime) else short(row[c]) for c in columns))
    out.print(table)


def short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
