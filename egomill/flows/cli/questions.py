"""Commands that ask: status, failures, lineage."""

from __future__ import annotations

from typing import Annotated

import typer

from egomill.flows.cli.common import (
    COUNTED,
    Json,
    Lake,
    Tracking,
    app,
    asked,
    out,
    reply,
    show_table,
    tracker_of,
)  # fmt: skip
from egomill.tasks.lake import damage


@app.command()
def status(lake: Lake = "lake", tracking: Tracking = "", json_: Json = False) -> None:
    """What is in the lake, and for every stage how its inputs came out. Exit code 1: files of its tables are gone or cut."""
    from egomill.schemas.tables import TABLES
    from egomill.tasks.lake import releases, runs
    from egomill.tasks.lake.tables import ask

    at = ask(lake)
    stages = runs.stage_table(at)
    damaged = {f"{at.folder(table)}/{path}": why for table in TABLES if at.exists(table) for path, why in damage.lacking(at, table).items()}
    answer = {
        "lake": lake,
        "tables": {name: at.count(name) for name in TABLES},
        "stages": stages,
        "balanced": all(s["balanced"] for s in stages),
        "damaged": damaged,
        "runs": [{k: r[k] for k in ("run_id", "flow", "status", "started", "ended", "release_out")} for r in runs.history(at, 10)],
        "releases": [{k: r[k] for k in ("name", "created", "clips")} for r in releases.every(at)],
    }

    def show() -> None:
        out.print(f"{lake}: " + ", ".join(f"{n} {name}" for name, n in answer["tables"].items() if n))
        show_table("stages", stages, ["stage", "inputs", "outputs", "rejected", "failed", "computed", "retired", "seconds"])
        show_table("newest runs", answer["runs"], ["run_id", "flow", "status", "started", "release_out"])
        show_table("releases", answer["releases"], ["name", "created", "clips"])
        for path, why in damaged.items():
            out.print(
                f"damaged: {path} is {why}; `egomill repair --lake {lake}` has it made again", style="red", soft_wrap=True, markup=False
            )

    reply(answer, json_, show)
    raise typer.Exit(1 if damaged else 0)


@app.command()
def failures(
    lake: Lake = "lake",
    stage: str = "",
    reason: str = "",
    limit: int = 20,
    retry: Annotated[str, typer.Option(help="Have the next run try the rows with this reason again (of --stage, or of all).")] = "",
    json_: Json = False,
) -> None:
    """What was rejected, what failed and which exo cameras were left out, and why: counts, and a line for each of the first rows, with the
    later stages that wait for it in vain (--json: all rows, whole)."""
    from egomill.tasks.lake import runs
    from egomill.tasks.lake.tables import Lake as Tables
    from egomill.tasks.lake.tables import ask

    at = ask(lake)
    if retry:
        from egomill.tasks.lake import runner as stages

        again = {"pending": stages.retry(Tables(lake), retry, stage)}
        return reply(again, json_, lambda: out.print(f"{again['pending']} rows are pending again: rebuild, and they are tried"))
    rows = runs.failures(at, stage, reason)
    causes = runs.by_cause(rows)
    counts: dict[tuple, dict] = {}
    for r in causes:
        group = counts.setdefault(key := (r["stage"], r["status"], r["reason"]), dict(zip(COUNTED, (0, *key, 0), strict=True)))
        group["rows"] += 1
        group["upstream"] += len(r["upstream"])

    def show() -> None:
        show_table("how many", list(counts.values()), list(COUNTED))
        for r in causes[:limit]:
            last = r["detail"].strip().splitlines()[-1:] or [""]
            then = f"; so none in {', '.join(r['upstream'])}" if r["upstream"] else ""
            out.print(f"{r['key']}  {r['stage']}  {r['reason']}: {last[0]}{then}", highlight=False, soft_wrap=True)
        if len(causes) > limit:
            out.print(f"... and {len(causes) - limit} more: --limit, --stage, --reason")

    reply(rows, json_, show)


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(help="An adapter (name@alias), a release's name, or a clip_id.")] = "",
    lake: Lake = "lake",
    adapter: Annotated[str, typer.Option(help="For a clip: which adapter's versions to look through; default: all.")] = "",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """What was this model made of, and which models was this clip used for?"""
    from egomill.tasks.keeping import lineage as lines
    from egomill.tasks.lake.tables import Glimpse, ask

    at = Glimpse(lake) if "@" in what else ask(lake)  # a registered adapter needs no lake
    if what and at.rows("clips", [what], ["clip_id"]):
        found = lines.of_clip(at, tracker_of(lake, tracking), adapter, what)
    elif "@" in what:
        found = lines.of_adapter(at, asked(lake, tracking), what)
    else:
        found = lines.of_release(at, what)
    reply(found, json_, lambda: reply(found, True, indent=2))
