"""Commands about releases: list, show, diff, create."""

from __future__ import annotations

from typing import Annotated

import typer

from egomill.flows.cli.common import (
    Json,
    Lake,
    Profile,
    Set,
    out,
    releases_app,
    reply,
    show_table,
)  # fmt: skip
from egomill.tasks.lake import upkeep


@releases_app.command("list")
def release_list(lake: Lake = "lake", json_: Json = False) -> None:
    """All releases, newest first."""
    from egomill.tasks.lake import releases
    from egomill.tasks.lake.tables import ask

    rows = releases.every(ask(lake))
    reply(rows, json_, lambda: show_table("releases", rows, ["name", "created", "clips", "run_id", "withdrawn"]))


@releases_app.command("show")
def release_show(name: Annotated[str, typer.Argument(help="Default: the newest.")] = "", lake: Lake = "lake", json_: Json = False) -> None:
    """One release: its tables with their versions and what digests say of their content, tags, checks, profile."""
    from egomill.tasks.lake import releases
    from egomill.tasks.lake.tables import ask

    at = ask(lake)
    row = releases.get(at, name, withdrawn=bool(name))
    row |= {"tags": {table: f"release-{row['name']}" in upkeep.tags(at, table) for table in row["tables"]}}

    def show() -> None:
        gone = f", withdrawn {row['withdrawn']:%F %T}: {row['why']}" if row["withdrawn"] else ""
        out.print(f"{row['name']}: {row['clips']} clips, {row['created']:%F %T}, run {row['run_id']}{gone}", highlight=False)
        tables = [{"table": t, "version": v, "content": row["content"].get(t), "tagged": row["tags"][t]} for t, v in row["tables"].items()]
        show_table("tables", tables, ["table", "version", "content", "tagged"])
        show_table("checks", [{"check": k, "result": v} for k, v in row["checks"].items()], ["check", "result"])
        reply(row["profile"], True, indent=2)

    reply(row, json_, show)


@releases_app.command("diff")
def release_diff(a: str, b: str, lake: Lake = "lake", limit: int = 20, json_: Json = False) -> None:
    """Which clips came, went and changed from release A to B, by which stage, and why."""
    from egomill.tasks.keeping.changes import diff
    from egomill.tasks.lake.tables import ask

    found = diff(ask(lake), a, b)

    def show() -> None:
        show_table(f"{a} to {b}", [{"table": t, **n} for t, n in found["tables"].items()], ["table", "came", "went", "changed", "remade"])
        for r in found["why"]:
            out.print(f"{r['clips']} clips changed by {r['stage']}: {r['why']} {r['what']}", highlight=False, soft_wrap=True)
        for how in ("came", "went"):
            for clip in found[how][:limit]:
                out.print(f"{how}: {clip['clip_id']}, {clip['because']}", highlight=False, soft_wrap=True)
        for clip in found["changed"][:limit]:
            out.print(f"changed: {clip['clip_id']} in {', '.join(clip['tables'])}", highlight=False, soft_wrap=True)

    reply(found, json_, show)


@releases_app.command("create")
def release_create(name: str = "", lake: Lake = "lake", profile: Profile = "local", set_: Set = None, json_: Json = False) -> None:
    """Publish the tables as they stand, after the checks."""
    from egomill.flows.rebuild import publish

    row, new = publish(lake, profile, set_ or [], name)
    reply(row, json_, lambda: out.print(f"{row['name']}{'' if new else ' (nothing changed since)'}"))
