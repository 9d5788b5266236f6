"""Commands that keep a lake: plan, adopt, verify, repair, upgrade, forget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egomill.flows.cli.common import (
    Allow,
    Json,
    Lake,
    Profile,
    Set,
    Tracking,
    allowing,
    app,
    lake_app,
    out,
    reply,
    show_table,
)  # fmt: skip


@app.command()
def plan(
    sources: Annotated[list[Path] | None, typer.Argument(help="None: what the profile's training will cost.")] = None,
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    allow: Allow = None,
    rate: Annotated[float, typer.Option(help="TFLOP/s that one worker reaches in training, for hours.")] = 0.0,
    json_: Json = False,
) -> None:
    """What a rebuild with the same arguments would compute, and why; without sources, what a training costs. Runs and writes nothing."""
    from egomill.flows.verbs import plan as ask
    from egomill.flows.verbs import sizes

    if not sources:
        costs = sizes(profile, set_ or [], rate)
        return reply(costs, json_, lambda: _costs(costs))
    steps = ask(lake, [str(s.absolute()) for s in sources], profile, allowing(profile, set_, allow))

    def show() -> None:
        show_table("a rebuild would", steps, ["stage", "inputs", "current", "compute", "may", "blocked", "retired", "unknown"])
        for step in steps:
            for r in step["reasons"]:
                out.print(f"{step['stage']}: {r['rows']} for {r['why']} {r['what']}", highlight=False, soft_wrap=True)
        out.print("compute: for certain; may: only if what is computed above comes out otherwise", style="dim")

    reply(steps, json_, show)


@app.command()
def adopt(
    stage: Annotated[str, typer.Argument(help="takes, clips, depth, ..., generations/ADAPTER, scores/ADAPTER")],
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows to make again.")] = 5,
    tolerance: Annotated[float, typer.Option(min=0, help="Of tensors and numbers, relative to the largest; 0: bit for bit.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Which rows; default: at random.")] = None,
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """After a refactor: if a sample comes out as it is stored, call the stage's rows current. Exit code 1 where it does not."""
    from egomill.flows.verbs import adopt as flow

    answer = flow(lake, stage, profile, set_ or [], sample, tolerance, seed, tracking)

    def show() -> None:
        for d in answer["differs"]:
            out.print(f"{d['row']} {d['column']}: {d['what']}", highlight=False, soft_wrap=True)
        for why, n in answer["skipped"].items():
            out.print(f"not for adoption: {n} rows, {why}", highlight=False, soft_wrap=True)
        told = f"{len(answer['compared'])} of {answer['candidates']} rows of {stage} compared"
        out.print(f"{told}: {'nothing adopted' if answer['differs'] else str(answer['adopted']) + ' adopted'}", highlight=False)

    reply(answer, json_, show)
    raise typer.Exit(1 if answer["differs"] else 0)


@app.command()
def verify(
    release: Annotated[str, typer.Argument(help="Default: the newest.")] = "",
    lake: Lake = "lake",
    sample: Annotated[int, typer.Option(min=1, help="Inputs a table.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Which rows; default: at random.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Instead: hold all its files and rows against their digests.")] = False,
    json_: Json = False,
) -> None:
    """Make random rows of every table of a release again and compare. Exit code 1: some differ, or are damaged; 3: some cannot be told."""
    from egomill.flows.verbs import verify as ask
    from egomill.flows.verbs import verify_deep

    if deep:
        held = verify_deep(lake, release)

        def told() -> None:
            counts = [{**t, "damaged": len(t["damaged"])} for t in held["tables"]]
            show_table(f"release {held['release']}", counts, ["table", "version", "files", "damaged"])
            for t in held["tables"]:
                for d in t["damaged"]:
                    out.print(f"{t['table']} {d['what']}: {d['why']}", highlight=False, soft_wrap=True, markup=False)

        reply(held, json_, told)
        raise typer.Exit(1 if held["damaged"] else 0)
    answer = ask(lake, release, sample, seed)

    def show() -> None:
        show_table(f"release {answer['release']}", answer["tables"], ["table", "rows", "ok", "differs", "cannot"])
        for t in answer["tables"]:
            for d in t["details"]:
                out.print(f"{t['table']} {d['row']} {d['verdict']} {d['column']}: {d['what']}", highlight=False, soft_wrap=True)

    reply(answer, json_, show)
    raise typer.Exit(1 if answer["differs"] else 3 if answer["cannot"] else 0)


@app.command()
def repair(lake: Lake = "lake", json_: Json = False) -> None:
    """Take what is damaged on disk out of the tables, so that the next run makes it again. Exit code 1: no run can make some of it."""
    from egomill.flows.verbs import repair as flow
    from egomill.tasks.keeping.repair import RECORDS

    answer = flow(lake)
    lost = [m for m in answer["mended"] if m["table"] in RECORDS]

    def show() -> None:
        for m in answer["mended"]:
            rows = "" if m["rows"] is None else f", {m['rows']} rows {'lost' if m in lost else 'pending'}"
            out.print(f"{m['table']}: {m['what']}{rows}", highlight=False, soft_wrap=True, markup=False)
        for name, why in answer["withdrawn"].items():
            out.print(f"release {name} is withdrawn: {why}", highlight=False, soft_wrap=True, markup=False)
        if any(m["table"] == "forgotten" for m in lost):
            out.print("which takes were forgotten is lost: forget them again before anything is rebuilt", style="red")
        out.print("rebuild, and what is pending is made again" if answer["mended"] else "no damage", highlight=False)

    reply(answer, json_, show)
    raise typer.Exit(1 if lost else 0)


@lake_app.command("upgrade")
def upgrade(lake: Lake = "lake", json_: Json = False) -> None:
    """Bring a lake that an earlier version made to the present format. Computes nothing; killed, the same command finishes it.

    The recipes of rows name code, which has changed too: `egomill adopt` each stage afterwards.
    """
    from egomill.flows.verbs import upgrade as flow

    answer = flow(lake)

    def show() -> None:
        if answer["was"] == answer["format"]:
            out.print(f"{answer['lake']} is of format {answer['format']} already", highlight=False, soft_wrap=True, markup=False)
            return
        told = ", ".join(f"{n} of {table}" for table, n in answer["restamped"].items() if n)
        made = f"latents of {answer['clips']} clips at {answer['versions']} versions"
        out.print(
            f"format {answer['was']} to {answer['format']}: {made}; rows relabelled: {told or 'none'}", highlight=False, soft_wrap=True
        )

    reply(answer, json_, show)


@lake_app.callback()
def _lake() -> None:
    pass


@app.command()
def forget(
    take: Annotated[str, typer.Argument(help="take_uid, or the take's name.")],
    lake: Lake = "lake",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Remove a take and all that was made of it, from disk too, and mark what was trained on it. Exit code 1: something is left."""
    from egomill.flows.verbs import forget as flow

    answer = flow(lake, take, tracking)

    def show() -> None:
        out.print("deleted: " + (", ".join(f"{n} of {table}" for table, n in answer["rows"].items()) or "nothing"), highlight=False)
        for name in answer["releases"]:
            out.print(f"release {name} is withdrawn", highlight=False)
        for a in answer["adapters"]:
            what = "trained on it, marked tainted" if a["trained"] else "not trained on it"
            out.print(f"adapter {a['spec']} {' '.join(a['aliases'])}: of release {a['release']}, {what}", highlight=False)
        for spec, n in answer["generations"].items():
            out.print(f"{n} generations by {spec}", highlight=False)
        for p in answer["pictures"]:
            out.print(f"picture {p['path']} of run {p['run']}: {'removed' if p['removed'] else 'STILL THERE'}", highlight=False)
        for path in answer["checkpoints"]:
            out.print(f"weights trained on it: {path}", highlight=False, soft_wrap=True)
        for path in answer["left"]:
            out.print(f"left: {path}", style="red", highlight=False, soft_wrap=True)
        out.print("Not looked for: copies, report pages and exports outside the lake, and the take's own files.", style="dim")

    reply(answer, json_, show)
    raise typer.Exit(1 if answer["left"] or not all(p["removed"] for p in answer["pictures"]) else 0)


def _costs(found: dict) -> None:
    """What `plan` says of a training: one line a figure."""
    step, tokens = found["step"], found["tokens"]
    kinds = [f"{count:,} {kind}" for kind, count in tokens.items() if kind not in ("all", "frames")]
    of_kinds = f" = {' + '.join(kinds)}" if kinds else ""
    hours = "give --rate" if found["hours"] is None else f"{found['hours']:.1f}"
    lines = {
        "tokens of a clip": f"{tokens['all']:,}{of_kinds}, {tokens['frames']} latent frames",
        "parameters": f"{step['parameters']:,}, and {step['trained']:,} trained",
        "arithmetic": f"{step['tflop']:,.3g} TFLOP a pass and worker",
        "memory": f"{found['memory_gib']:,.3g} GiB a worker: base {step['base_gib']:.3g}, adapter with gradients and moments "
        f"{step['adapter_gib']:.3g}, activations {step['activations_gib']:.3g}",
        "samples seen": f"{found['samples']:,} by {found['workers']} workers",
        "hours": hours,
    }
    if found["stored_gib"] is not None:
        lines["stored"] = f"{found['stored_gib']:.3g} GiB for {found['clips']:,} clips, before compression"
    for name, value in lines.items():
        out.print(f"{name:18} {value}", highlight=False, soft_wrap=True)
