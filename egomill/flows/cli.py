"""The command line. Long commands are Prefect flows, questions answer in text or, with --json, in one JSON document.

Where PREFECT_API_URL (or the active Prefect profile) names a server, long commands run as flow runs there; without one they run as plain
functions, at once and unrecorded by Prefect (the lake records every run either way). Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from egomill.flows.terminal import MACHINE, UNREAD, Terminal, explain, settle, tidy, unread
from egomill.schemas.text import plain

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
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


# -- work -------------------------------------------------------------------------------------------------------------


@app.command()
def simulate(
    folder: Path,
    takes: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    seed: int = 0,
    seconds: Annotated[float, typer.Option(help="Length of each take.")] = 3.0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    json_: Json = False,
) -> None:
    """Write procedural takes in the Ego-Exo4D release layout, with exact depth beside them."""
    from rich.progress import Progress

    from egomill.scenes.take import simulate as write

    with Progress(console=err, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("simulate", total=takes)

        def advance(done: int, total: int, name: str) -> None:
            progress.update(bar, completed=done, total=total, description=name)

        made = write(folder, takes, seed, seconds=seconds, workers=workers, progress=advance)
    _answer(made, json_, lambda: out.print(f"{len(made)} takes in {folder}"))


@app.command()
def pretrain(
    folder: Path,
    minutes: Annotated[float, typer.Option(help="Wall clock of the training.")] = 60.0,
    seeds: Annotated[int, typer.Option(help="How many simulated scenes.")] = 2000,
) -> None:
    """Train the embedded base model from nothing, on simulated scenes that no take uses."""
    from egomill.tasks.training.pretrain import pretrain as train

    record = train(folder, seeds=seeds, minutes=minutes)
    _answer(record, True)


@app.command()
def rebuild(
    sources: list[Path],
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    allow: Allow = None,
    release: str = "",
    json_: Json = False,
) -> None:
    """Bring the lake up to date with takes on disk and publish a release."""
    from egomill.flows.rebuild import rebuild as flow

    places, settings = [str(s.absolute()) for s in sources], _allowing(profile, set_, allow)
    _run(flow, json_, lake=lake, sources_=places, profile=profile, settings=settings, release=release)


@app.command()
def retrain(
    lake: Lake = "lake", profile: Profile = "local", set_: Set = None, release: str = "", tracking: Tracking = "", json_: Json = False
) -> None:
    """Train an adapter on a release, compare it with the champion, and promote it if it is better."""
    from egomill.flows.retrain import retrain as flow

    _run(flow, json_, lake=lake, profile=profile, settings=set_ or [], release=release, tracking=tracking)


@app.command()
def register(
    file: Annotated[Path, typer.Argument(help="A LoRA: a .safetensors file as diffusers, PEFT or kohya's trainers write it.")],
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Make a LoRA that was trained elsewhere an adapter; base, mask, attention and directions are what the settings say."""
    from egomill.schemas.config import Profile as Settings
    from egomill.tasks.training.foreign import register as add

    made = add(file, Settings.load(profile, set_ or []), _tracker(lake, tracking))
    _answer({"adapter": made.spec, **made.tags}, json_, lambda: out.print(made.spec))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The registered adapter.")] = "egox",
    lake: Lake = "lake",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Give the champion's place back to the adapter that held it before."""
    left, restored = _asked(lake, tracking).roll_back(name)
    answer = {"champion": restored.spec, "was": left.spec}
    _answer(answer, json_, lambda: out.print(f"{restored.spec} is champion again, {left.spec} is not"))


@app.command()
def generate(
    adapter: Annotated[str, typer.Argument(help="name@alias, name@v3, or base")] = "egox@champion",
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    tracking: Tracking = "",
    exo: Annotated[Path | None, typer.Option(help="Instead: this one video, of a fixed camera. Nothing enters the lake.")] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(
            help="Head poses, TUM's format: timestamp tx ty tz qx qy qz qw. Metres; seconds of the video; the ego picture's frame "
            "(x right, y down, z forward, upright) in the exo camera's (likewise)."
        ),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="FILE.mp4; FILE.json and FILE.png beside it say what made it.")] = None,
    fov: Annotated[float | None, typer.Option(help="Exo lens: horizontal field of view in degrees, without distortion.")] = None,
    camera: Annotated[Path | None, typer.Option(help="Exo lens: JSON of a camera at the video's size; see `egomill camera`.")] = None,
    depth: Annotated[Path | None, typer.Option(help=".npz or folder of .npy; default: the network depth.monocular.")] = None,
    depth_focal: Annotated[
        float | None, typer.Option(help="Of a folder of z-depth: the focal length its network was told, over the lens' own; default 1.")
    ] = None,
    ego_camera: Annotated[Path | None, typer.Option(help="Ego lens, JSON; default: a typical Aria RGB's.")] = None,
    exo_pose: Annotated[Path | None, typer.Option(help="T_world_exo, JSON, 4x4: the trajectory is in that world.")] = None,
    start: Annotated[float, typer.Option(help="Seconds into the video.")] = 0.0,
    prompt: Annotated[str, typer.Option(help="What happens; default: what a clip without words gets.")] = "",
    seed: Annotated[int | None, typer.Option(help="Default: the profile's.")] = None,
    json_: Json = False,
) -> None:
    """Generate egocentric video for every held-out clip, or, with --exo, for a single video of your own."""
    from egomill.flows.generate import by_request
    from egomill.flows.generate import generate as flow

    settings = [*(set_ or []), *([] if seed is None else [f"generate.seed={seed}"])]
    needed = {"trajectory": trajectory, "out": out_}
    more = {"fov": fov, "camera": camera, "depth": depth, "depth_focal": depth_focal, "ego_camera": ego_camera, "exo_pose": exo_pose}
    more |= {"start": start, "prompt": prompt}
    if exo is None:
        named = [name.replace("_", "-") for name, value in {**needed, **more}.items() if value not in (None, "", 0)]
        if named:
            raise ValueError(f"--{named[0]} goes with --exo, a video")
        return _run(flow, json_, lake=lake, adapter=adapter, profile=profile, settings=settings, tracking=tracking)
    if trajectory is None or out_ is None:
        raise ValueError(f"--exo also needs {' and '.join(f'--{name}' for name, value in needed.items() if value is None)}")
    answer = by_request(lake, adapter, {"exo": exo, "trajectory": trajectory, **more}, out_, profile, settings, tracking)

    def show() -> None:
        made = f"{out_}: {answer['video']['frames']} frames by {answer['adapter']}, seed {answer['seed']}"
        out.print(f"{made}; the prior covers {answer['coverage']:.0%} of the view", highlight=False, soft_wrap=True)
        out.print(f"prompt ({answer['prompt_source']}): {answer['prompt']}", highlight=False, soft_wrap=True)
        path, checks = answer["path"], answer["checks"]
        lines, seconds, away = ("{} to {}".format(*map(_short, pair)) for pair in (path["lines"], path["seconds"], checks["from_camera"]))
        out.print(f"path: lines {lines}, {seconds} s, {path['poses']} poses; {away} m from the camera", highlight=False, soft_wrap=True)
        how = f"{path['metres']:.2f} m, at most {path['metres_per_second']:.2g} m/s and {path['degrees_per_second']:.0f} degrees/s"
        out.print(f"the head moves {how}", highlight=False, soft_wrap=True)
        for warning in answer["warnings"]:
            err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        out.print(
            f"look at {answer['picture']['path']}: the head's axes, depth, prior, result", markup=False, highlight=False, soft_wrap=True
        )

    _answer(answer, json_, show)


@app.command()
def camera(
    annotation: Annotated[Path, typer.Argument(help="annotations/ego_pose/*/camera_pose/<take_uid>.json of Ego-Exo4D.")],
    name: Annotated[str, typer.Argument(help="The exo camera: cam01, gp02, ...")],
    exo: Annotated[Path | None, typer.Option(help="Its video, whose size the camera gets; default: 3840x2160.")] = None,
    camera_: Annotated[Path | None, typer.Option("--camera", help="Write what `generate --camera` takes.")] = None,
    exo_pose: Annotated[Path | None, typer.Option(help="Write what `generate --exo-pose` takes.")] = None,
) -> None:
    """An exo camera of Ego-Exo4D as a request takes it: its lens and T_world_exo, as JSON; written where files are named."""
    from egomill.tasks.pages.in_the_wild import camera_of

    found = camera_of(annotation, name, exo)
    for path, value in ((camera_, found["camera"]), (exo_pose, found["T_world_exo"])):
        if path is not None:
            if path.exists():
                raise ValueError(f"{path} is there already: name a new file")
            path.write_text(json.dumps(value, indent=2) + "\n")
    _answer(found, True, lambda: None)


@app.command()
def evaluate(
    adapter: Annotated[str, typer.Argument(help="name@alias, name@v3, base, prior or codec")] = "egox@champion",
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Score what was generated for held-out clips."""
    from egomill.flows.generate import evaluate as flow

    _run(flow, json_, lake=lake, adapter=adapter, profile=profile, settings=set_ or [], tracking=tracking)


@app.command()
def nightly(
    sources: list[Path],
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    allow: Allow = None,
    tracking: Tracking = "",
    report: Annotated[str, typer.Option(help="Where the report page goes; default: in the lake.")] = "",
    json_: Json = False,
) -> None:
    """Rebuild, retrain, compare, report: what runs every night."""
    from egomill.flows.nightly import nightly as flow

    places, settings = [str(s.absolute()) for s in sources], _allowing(profile, set_, allow)
    _run(flow, json_, lake=lake, sources_=places, profile=profile, settings=settings, tracking=tracking, report=report)


@app.command()
def report(
    page: Annotated[Path | None, typer.Argument(help="HTML file to write; default: in the lake.")] = None,
    lake: Lake = "lake",
    adapter: str = "egox@candidate",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Write the report page of the newest adapter: pictures, scores, rejections, lineage."""
    from egomill.flows.nightly import write_report

    where = write_report(lake, adapter, tracking, str(page or ""))
    _answer({"report": where}, json_, lambda: out.print(where))


@app.command()
def housekeeping(
    lake: Lake = "lake",
    days: Annotated[float, typer.Option(min=0, help="How long versions that no release names stay after they were replaced.")] = 7.0,
    json_: Json = False,
) -> None:
    """Merge small files, index keys, delete old versions that no release names and what crashed writers left; say what was freed."""
    from egomill.flows.housekeeping import housekeeping as flow

    _run(flow, json_, lake=lake, days=days)


@app.command()
def up(lake: Lake = "lake", host: str = "127.0.0.1", prefect_port: int = 4200, mlflow_port: int = 5000) -> None:
    """Start a Prefect server with a worker and the deployments, and the MLflow page, until Ctrl-C."""
    from egomill.flows.up import up as start

    start(lake, host, prefect_port, mlflow_port)


# -- a lake's keeping -------------------------------------------------------------------------------------------------


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
        return _answer(costs, json_, lambda: _costs(costs))
    steps = ask(lake, [str(s.absolute()) for s in sources], profile, _allowing(profile, set_, allow))

    def show() -> None:
        _table("a rebuild would", steps, ["stage", "inputs", "current", "compute", "may", "blocked", "retired", "unknown"])
        for step in steps:
            for r in step["reasons"]:
                out.print(f"{step['stage']}: {r['rows']} for {r['why']} {r['what']}", highlight=False, soft_wrap=True)
        out.print("compute: for certain; may: only if what is computed above comes out otherwise", style="dim")

    _answer(steps, json_, show)


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

    _answer(answer, json_, show)
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
            _table(f"release {held['release']}", counts, ["table", "version", "files", "damaged"])
            for t in held["tables"]:
                for d in t["damaged"]:
                    out.print(f"{t['table']} {d['what']}: {d['why']}", highlight=False, soft_wrap=True, markup=False)

        _answer(held, json_, told)
        raise typer.Exit(1 if held["damaged"] else 0)
    answer = ask(lake, release, sample, seed)

    def show() -> None:
        _table(f"release {answer['release']}", answer["tables"], ["table", "rows", "ok", "differs", "cannot"])
        for t in answer["tables"]:
            for d in t["details"]:
                out.print(f"{t['table']} {d['row']} {d['verdict']} {d['column']}: {d['what']}", highlight=False, soft_wrap=True)

    _answer(answer, json_, show)
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

    _answer(answer, json_, show)
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

    _answer(answer, json_, show)


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

    _answer(answer, json_, show)
    raise typer.Exit(1 if answer["left"] or not all(p["removed"] for p in answer["pictures"]) else 0)


# -- questions --------------------------------------------------------------------------------------------------------


@app.command()
def status(lake: Lake = "lake", tracking: Tracking = "", json_: Json = False) -> None:
    """What is in the lake, and for every stage how its inputs came out. Exit code 1: files of its tables are gone or cut."""
    from egomill.schemas.tables import TABLES
    from egomill.tasks.lake import releases, runs
    from egomill.tasks.lake.tables import ask

    at = ask(lake)
    stages = runs.stage_table(at)
    damaged = {f"{table}.lance/{path}": why for table in TABLES if at.exists(table) for path, why in at.lacking(table).items()}
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
        _table("stages", stages, ["stage", "inputs", "outputs", "rejected", "failed", "computed", "retired", "seconds"])
        _table("newest runs", answer["runs"], ["run_id", "flow", "status", "started", "release_out"])
        _table("releases", answer["releases"], ["name", "created", "clips"])
        for path, why in damaged.items():
            out.print(
                f"damaged: {path} is {why}; `egomill repair --lake {lake}` has it made again", style="red", soft_wrap=True, markup=False
            )

    _answer(answer, json_, show)
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
        return _answer(again, json_, lambda: out.print(f"{again['pending']} rows are pending again: rebuild, and they are tried"))
    rows = runs.failures(at, stage, reason)
    causes = runs.by_cause(rows)
    counts: dict[tuple, dict] = {}
    for r in causes:
        group = counts.setdefault(key := (r["stage"], r["status"], r["reason"]), dict(zip(COUNTED, (0, *key, 0), strict=True)))
        group["rows"] += 1
        group["upstream"] += len(r["upstream"])

    def show() -> None:
        _table("how many", list(counts.values()), list(COUNTED))
        for r in causes[:limit]:
            last = r["detail"].strip().splitlines()[-1:] or [""]
            then = f"; so none in {', '.join(r['upstream'])}" if r["upstream"] else ""
            out.print(f"{r['key']}  {r['stage']}  {r['reason']}: {last[0]}{then}", highlight=False, soft_wrap=True)
        if len(causes) > limit:
            out.print(f"... and {len(causes) - limit} more: --limit, --stage, --reason")

    _answer(rows, json_, show)


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(help="An adapter (name@alias), a release's name, or a clip_id.")] = "",
    lake: Lake = "lake",
    adapter: Annotated[str, typer.Option(help="For a clip: which adapter's versions to look through.")] = "egox",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """What was this model made of, and which models was this clip used for?"""
    from egomill.tasks.keeping import lineage as lines
    from egomill.tasks.lake.tables import Glimpse, ask

    at = Glimpse(lake) if "@" in what else ask(lake)  # a registered adapter needs no lake
    if what and at.rows("clips", [what], ["clip_id"]):
        found = lines.of_clip(at, _tracker(lake, tracking), adapter, what)
    elif "@" in what:
        found = lines.of_adapter(at, _asked(lake, tracking), what)
    else:
        found = lines.of_release(at, what)
    _answer(found, json_, lambda: _answer(found, True, indent=2))


@releases_app.command("list")
def release_list(lake: Lake = "lake", json_: Json = False) -> None:
    """All releases, newest first."""
    from egomill.tasks.lake import releases
    from egomill.tasks.lake.tables import ask

    rows = releases.every(ask(lake))
    _answer(rows, json_, lambda: _table("releases", rows, ["name", "created", "clips", "run_id", "withdrawn"]))


@releases_app.command("show")
def release_show(name: Annotated[str, typer.Argument(help="Default: the newest.")] = "", lake: Lake = "lake", json_: Json = False) -> None:
    """One release: its tables with their versions and what digests say of their content, tags, checks, profile."""
    from egomill.tasks.lake import releases
    from egomill.tasks.lake.tables import ask

    at = ask(lake)
    row = releases.get(at, name, withdrawn=bool(name))
    row |= {"tags": {table: f"release-{row['name']}" in at.tags(table) for table in row["tables"]}}

    def show() -> None:
        gone = f", withdrawn {row['withdrawn']:%F %T}: {row['why']}" if row["withdrawn"] else ""
        out.print(f"{row['name']}: {row['clips']} clips, {row['created']:%F %T}, run {row['run_id']}{gone}", highlight=False)
        tables = [{"table": t, "version": v, "content": row["content"].get(t), "tagged": row["tags"][t]} for t, v in row["tables"].items()]
        _table("tables", tables, ["table", "version", "content", "tagged"])
        _table("checks", [{"check": k, "result": v} for k, v in row["checks"].items()], ["check", "result"])
        _answer(row["profile"], True, indent=2)

    _answer(row, json_, show)


@releases_app.command("diff")
def release_diff(a: str, b: str, lake: Lake = "lake", limit: int = 20, json_: Json = False) -> None:
    """Which clips came, went and changed from release A to B, by which stage, and why."""
    from egomill.tasks.keeping.changes import diff
    from egomill.tasks.lake.tables import ask

    found = diff(ask(lake), a, b)

    def show() -> None:
        _table(f"{a} to {b}", [{"table": t, **n} for t, n in found["tables"].items()], ["table", "came", "went", "changed", "remade"])
        for r in found["why"]:
            out.print(f"{r['clips']} clips changed by {r['stage']}: {r['why']} {r['what']}", highlight=False, soft_wrap=True)
        for how in ("came", "went"):
            for clip in found[how][:limit]:
                out.print(f"{how}: {clip['clip_id']}, {clip['because']}", highlight=False, soft_wrap=True)
        for clip in found["changed"][:limit]:
            out.print(f"changed: {clip['clip_id']} in {', '.join(clip['tables'])}", highlight=False, soft_wrap=True)

    _answer(found, json_, show)


@releases_app.command("create")
def release_create(name: str = "", lake: Lake = "lake", profile: Profile = "local", set_: Set = None, json_: Json = False) -> None:
    """Publish the tables as they stand, after the checks."""
    from egomill.flows.rebuild import publish

    row, new = publish(lake, profile, set_ or [], name)
    _answer(row, json_, lambda: out.print(f"{row['name']}{'' if new else ' (nothing changed since)'}"))


# -- how they run and answer -----------------------------------------------------------------------------------------


def _run(flow: Any, json_: bool, **parameters: Any) -> None:
    from prefect.settings import PREFECT_API_URL

    orchestrated = bool(PREFECT_API_URL.value())
    if orchestrated:
        from egomill.flows.steps import greet

        greet(str(PREFECT_API_URL.value()))
    result = flow(**parameters) if orchestrated else flow.fn(**parameters)
    if json_:
        _answer(result, True)


def _allowing(profile: str, set_: list[str] | None, allow: list[Path] | None) -> list[str]:
    """The overrides, with the folders of --allow beside those that the profile allows."""
    from egomill.schemas.config import Profile as Settings

    for place in allow or []:
        if not place.exists():
            raise ValueError(f"--allow {place}: no such folder")
    known = Settings.load(profile, set_ or []).ingest.allow if allow else ()
    places = json.dumps([*known, *(str(place.absolute()) for place in allow or [])], ensure_ascii=False)
    return [*(set_ or []), *([f"ingest.allow={places}"] if allow else [])]


def _tracker(lake: str, tracking: str) -> Any:
    from egomill.tasks.lake.tracking import Tracker

    return Tracker.of(tracking, lake)


def _asked(lake: str, tracking: str) -> Any:
    """The tracker, for what makes no sense where nothing was ever registered."""
    tracker = _tracker(lake, tracking)
    if not tracker.exists():
        raise ValueError(f"no adapter was ever registered: nothing is at {tracker.uri}. Check --lake and --tracking")
    return tracker


def _answer(value: Any, as_json: bool, show: Any = None, indent: int | None = None) -> None:
    if as_json:
        text = json.dumps(value, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))
        print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=indent))  # JSON has no NaN
    else:
        show()


def _costs(found: dict) -> None:
    """What `plan` says of a training: one line a figure."""
    step, tokens = found["step"], found["tokens"]
    hours = "give --rate" if found["hours"] is None else f"{found['hours']:.1f}"
    lines = {
        "tokens of a clip": f"{tokens['all']:,} = {tokens['exo']:,} exo + {tokens['ego']:,} ego, {tokens['frames']} latent frames",
        "parameters": f"{step['parameters']:,}, and {step['trained']:,} trained",
        "arithmetic": f"{step['tflop']:,.3g} TFLOP a pass and worker",
        "memory": f"{found['memory_gib']:,.3g} GiB a worker: base {step['base_gib']:.3g}, adapter with gradients and moments "
        f"{step['adapter_gib']:.3g}, activations {step['activations_gib']:.3g}",
        "samples seen": f"{found['samples']:,} by {found['workers']} workers",
        "hours": hours,
    }
    if found["latents_gib"] is not None:
        lines["latents"] = f"{found['latents_gib']:.3g} GiB for {found['clips']:,} clips, before compression"
    for name, value in lines.items():
        out.print(f"{name:18} {value}", highlight=False, soft_wrap=True)


def _table(title: str, rows: list[dict], columns: list[str]) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if row[c] is None else f"{row[c]:%F %T}" if isinstance(row[c], datetime) else _short(row[c]) for c in columns))
    out.print(table)


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run a command; its exit code says how it ended (flows/terminal.py). What others did wrong is one line, what we did a traceback."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names on disk may be no Unicode, and a terminal may know little of it
    try:
        code = _command()
        sys.stdout.flush()
    except OSError as error:  # of writing the answer
        code = UNREAD if unread(sys.stdout.fileno()) else MACHINE
        if code == MACHINE:
            _tell("error", f"the answer could not be written: {explain(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends
    raise SystemExit(code)


def _command() -> int:
    from egomill.schemas.outcome import StageFailed

    try:
        settle()
        command = typer.main.get_command(app)
        with command.make_context("egomill", sys.argv[1:]) as context:
            command.invoke(context)
        return 0
    except typer.Exit as ended:
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _tell("error", "interrupted")
        return 130
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            context = getattr(error, "ctx", None)
            _tell("error", f"{error.format_message()} (see {context.command_path if context else 'egomill'} --help)")
        return 2
    except StageFailed as error:
        report = error.args[0]
        _tell("failed", f"{report.failed} of {report.inputs} rows of stage {report.stage}; see `egomill failures`")
        return 1
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 60) : error.end + 20]
        _tell("error", f"...{around}... is no Unicode, which no table can keep: rename it")
        return 2
    except ValueError as error:
        _tell("error", tidy(str(error)))
        return 2
    except Exception as error:
        if isinstance(error, BrokenPipeError) and unread(sys.stdout.fileno()):
            return UNREAD
        if line := explain(error):
            _tell("error", line)
            return MACHINE
        sys.stderr.write(plain(traceback.format_exc(), most=None, lines=True))
        _tell("error", "this is a fault of Egomill's own: please report it, with the lines above and the command")
        return 1


def _tell(what: str, text: str) -> None:
    err.print(what, end=": ", style="red")
    err.print(text, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
