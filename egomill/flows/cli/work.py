"""Commands that make something: takes, releases, adapters, videos, pages; and the servers for it."""

from __future__ import annotations

import json
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
    asked,
    err,
    out,
    reply,
    run_flow,
    short,
    tracker_of,
)  # fmt: skip


@app.command()
def simulate(
    folder: Path,
    takes: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    seed: int = 0,
    seconds: Annotated[float, typer.Option(help="Length of each take.")] = 3.0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    layout: Annotated[str, typer.Option(help="How they lie on disk: egoexo4d or h2o.")] = "egoexo4d",
    json_: Json = False,
) -> None:
    """Write procedural takes in the Ego-Exo4D release layout or H2O's, with exact depth beside them."""
    from egomill.flows.progress import Meter
    from egomill.scenes.take import simulate as write

    with Meter("simulate", err.print, err) as advance:
        made = write(folder, takes, seed, seconds=seconds, workers=workers, progress=advance, layout=layout)
    reply(made, json_, lambda: out.print(f"{len(made)} takes in {folder}"))


@app.command()
def pretrain(
    folder: Path,
    minutes: Annotated[float, typer.Option(help="Wall clock of the training.")] = 60.0,
    seeds: Annotated[int, typer.Option(help="How many simulated scenes.")] = 2000,
    method: Annotated[str, typer.Option(help="Whose embedded base.")] = "egox",
) -> None:
    """Train the embedded base model of a method from nothing, on simulated scenes that no take uses."""
    from egomill.tasks.training.pretrain import of_method
    from egomill.tasks.training.pretrain import pretrain as train

    record = train(folder, of_method(method), seeds=seeds, minutes=minutes)
    reply(record, True)


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

    places, settings = [str(s.absolute()) for s in sources], allowing(profile, set_, allow)
    run_flow(flow, json_, lake=lake, sources_=places, profile=profile, settings=settings, release=release)


@app.command()
def retrain(
    lake: Lake = "lake", profile: Profile = "local", set_: Set = None, release: str = "", tracking: Tracking = "", json_: Json = False
) -> None:
    """Train an adapter on a release, compare it with the champion, and promote it if it is better."""
    from egomill.flows.retrain import retrain as flow

    run_flow(flow, json_, lake=lake, profile=profile, settings=set_ or [], release=release, tracking=tracking)


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

    made = add(file, Settings.load(profile, set_ or []), tracker_of(lake, tracking))
    reply({"adapter": made.spec, **made.tags}, json_, lambda: out.print(made.spec))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The registered adapter; default: the only one.")] = "",
    lake: Lake = "lake",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Give the champion's place back to the adapter that held it before."""
    tracker = asked(lake, tracking)
    left, restored = tracker.roll_back(name or tracker.only())
    answer = {"champion": restored.spec, "was": left.spec}
    reply(answer, json_, lambda: out.print(f"{restored.spec} is champion again, {left.spec} is not"))


@app.command()
def generate(
    adapter: Annotated[str, typer.Argument(help="name@alias, name@v3, or base; default: the champion of the profile's method")] = "",
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    tracking: Tracking = "",
    exo: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead: this video (or .png) of a fixed camera, or several of one moment, where a method takes them. No lake changes."
        ),
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(
            help="Head poses, TUM's format: timestamp tx ty tz qx qy qz qw. Metres; seconds of the video; the ego picture's frame "
            "(x right, y down, z forward, upright) in the exo camera's (likewise). GenEgo needs none."
        ),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="FILE.mp4; FILE.json and FILE.png beside it say what made it.")] = None,
    fov: Annotated[list[float] | None, typer.Option(help="Exo lens: horizontal field of view in degrees, without distortion.")] = None,
    camera: Annotated[
        list[Path] | None,
        typer.Option(help="Exo lens: JSON of a camera at the video's size; see `egomill camera`. One for each --exo, in order."),
    ] = None,
    depth: Annotated[Path | None, typer.Option(help=".npz or folder of .npy; default: the network depth.monocular.")] = None,
    depth_focal: Annotated[
        float | None, typer.Option(help="Of a folder of z-depth: the focal length its network was told, over the lens' own; default 1.")
    ] = None,
    ego_camera: Annotated[Path | None, typer.Option(help="Ego lens, JSON; default: a typical Aria RGB's.")] = None,
    exo_pose: Annotated[
        list[Path] | None, typer.Option(help="T_world_exo, JSON, 4x4: the trajectory is in that world. One for each --exo, in order.")
    ] = None,
    hands: Annotated[
        Path | None,
        typer.Option(help=".npz of joints [frames, 2, 21, 3] in the exo camera's frame, metres; default: as the profile finds hands."),
    ] = None,
    start: Annotated[float, typer.Option(help="Seconds into the video.")] = 0.0,
    prompt: Annotated[str, typer.Option(help="What happens; default: what a clip without words gets.")] = "",
    seed: Annotated[int | None, typer.Option(help="Default: the profile's.")] = None,
    json_: Json = False,
) -> None:
    """Generate egocentric video for every held-out clip, or, with --exo, for a single video of your own."""
    from egomill.flows.generate import by_request
    from egomill.flows.generate import generate as flow

    settings = [*(set_ or []), *([] if seed is None else [f"generate.seed={seed}"])]
    of_views: dict[str, list | None] = {"fov": fov, "camera": camera, "exo_pose": exo_pose}
    more = {"trajectory": trajectory, "hands": hands, "depth": depth, "depth_focal": depth_focal, "ego_camera": ego_camera}
    more |= {"start": start, "prompt": prompt, **of_views}
    if not exo:
        named = [name.replace("_", "-") for name, value in {"out": out_, **more}.items() if value not in (None, "", 0)]
        if named:
            raise ValueError(f"--{named[0]} goes with --exo, a video")
        return run_flow(flow, json_, lake=lake, adapter=adapter, profile=profile, settings=settings, tracking=tracking)
    to = _where(out_, trajectory, profile, settings)
    first, *others = _views(exo, of_views)
    answer = by_request(lake, adapter, {**more, **dict.fromkeys(of_views), **first, "more": others}, to, profile, settings, tracking)
    reply(answer, json_, lambda: _show_request(answer, to))


def _where(to: Path | None, trajectory: Path | None, profile: str, settings: list[str]) -> Path:
    """Where a request's video goes. ValueError where that is not said, or not where the head is, which some methods find by themselves."""
    from egomill.models.method import of
    from egomill.schemas.config import Profile as Settings

    lacking = [name for name, value in {"trajectory": trajectory, "out": to}.items() if value is None]
    if to is None or (lacking and of(Settings.load(profile, settings)).path):
        raise ValueError(f"--exo also needs {' and '.join(f'--{name}' for name in lacking)}")
    return to


def _views(exo: list[Path], told: dict[str, list | None]) -> list[dict]:
    """What is told of each video, in order. ValueError where an option is not there once for each."""
    for name, values in told.items():
        if values and len(values) != len(exo):
            raise ValueError(f"{len(exo)} videos (--exo) and {len(values)} of --{name.replace('_', '-')}: one for each video, in order")
    return [{"exo": video, **{name: values[i] for name, values in told.items() if values}} for i, video in enumerate(exo)]


def _show_request(answer: dict, to: Path) -> None:
    made = f"{to}: {answer['video']['frames']} frames by {answer['adapter']}, seed {answer['seed']}"
    covers = f"; what the exo view shows covers {answer['coverage']:.0%} of the view" if "coverage" in answer else ""
    out.print(made + covers, highlight=False, soft_wrap=True)
    if "prompt" in answer:
        out.print(f"prompt ({answer['prompt_source']}): {answer['prompt']}", highlight=False, soft_wrap=True)
    if path := answer["path"]:
        pairs = (path["lines"], path["seconds"], answer["checks"]["from_camera"])
        lines, seconds, away = ("{} to {}".format(*map(short, pair)) for pair in pairs)
        out.print(f"path: lines {lines}, {seconds} s, {path['poses']} poses; {away} m from the camera", highlight=False, soft_wrap=True)
        how = f"{path['metres']:.2f} m, at most {path['metres_per_second']:.2g} m/s and {path['degrees_per_second']:.0f} degrees/s"
        out.print(f"the head moves {how}", highlight=False, soft_wrap=True)
    if "hands" in answer:
        seen = f"hands in {answer['hand_frames']} of {answer['video']['frames']} frames: {answer['hands']}"
        out.print(seen, highlight=False, soft_wrap=True)
    for warning in answer["warnings"]:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"look at {answer['picture']['path']}: the head's axes, what the video was made of, and the result",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


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
    reply(found, True, lambda: None)


@app.command()
def evaluate(
    adapter: Annotated[str, typer.Argument(help="name@alias, name@v3, base, prior or codec; default: the champion of the method")] = "",
    lake: Lake = "lake",
    profile: Profile = "local",
    set_: Set = None,
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Score what was generated for held-out clips."""
    from egomill.flows.generate import evaluate as flow

    run_flow(flow, json_, lake=lake, adapter=adapter, profile=profile, settings=set_ or [], tracking=tracking)


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

    places, settings = [str(s.absolute()) for s in sources], allowing(profile, set_, allow)
    run_flow(flow, json_, lake=lake, sources_=places, profile=profile, settings=settings, tracking=tracking, report=report)


@app.command()
def report(
    page: Annotated[Path | None, typer.Argument(help="HTML file to write; default: in the lake.")] = None,
    lake: Lake = "lake",
    adapter: Annotated[str, typer.Option(help="name@alias, name@v3 or base; default: the candidate, where one name is registered")] = "",
    tracking: Tracking = "",
    json_: Json = False,
) -> None:
    """Write the report page of the newest adapter: pictures, scores, rejections, lineage."""
    from egomill.flows.nightly import write_report

    where = write_report(lake, adapter, tracking, str(page or ""))
    reply({"report": where}, json_, lambda: out.print(where))


@app.command()
def housekeeping(
    lake: Lake = "lake",
    days: Annotated[float, typer.Option(min=0, help="How long versions that no release names stay after they were replaced.")] = 7.0,
    json_: Json = False,
) -> None:
    """Merge small files, index keys, delete old versions that no release names and what crashed writers left; say what was freed."""
    from egomill.flows.housekeeping import housekeeping as flow

    run_flow(flow, json_, lake=lake, days=days)


@app.command()
def up(lake: Lake = "lake", host: str = "127.0.0.1", prefect_port: int = 4200, mlflow_port: int = 5000) -> None:
    """Start a Prefect server with a worker and the deployments, and the MLflow page, until Ctrl-C."""
    from egomill.flows.up import up as start

    start(lake, host, prefect_port, mlflow_port)
