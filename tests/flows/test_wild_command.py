"""`egomill generate --exo`: one video answered, the lake left as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from egomill.flows.cli import app
from egomill.kernels.cameras import T_shown_sensor
from egomill.scenes.take import simulate
from egomill.schemas.config import Profile
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.media import video
from egomill.tasks.media.trajectory import read_tum
from egomill.tasks.training import adapters
from tests.tasks.pages import wild_request


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A request as options."""
    folder = tmp_path_factory.mktemp("request")
    simulate(folder / "sim", 1, seed=5, seconds=1.0)
    profile = Profile.load("local", ["clips.exo_cameras=1"])
    files = wild_request.write(folder, *wild_request.first_clip(folder / "sim", profile))
    return [part for name, value in files.items() if value is not None for part in (f"--{name.replace('_', '-')}", str(value))]


def generate(*options: object):
    return CliRunner().invoke(app, ["generate", *map(str, options)])


def on_disk(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_by_the_base_without_any_lake(arguments, tmp_path):
    nowhere, out = tmp_path / "no lake", tmp_path / "ego.mp4"
    done = generate("base", "--lake", nowhere, *arguments, "--out", out, "--prompt", "A person cooks.", "--seed", 7, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record == json.loads(out.with_suffix(".json").read_text())
    assert (record["adapter"], record["seed"], record["prompt"]) == ("base", 7, "A person cooks.")
    assert video.probe(out).frames == 9
    assert not nowhere.exists()
    done = generate("base", "--lake", nowhere, *arguments, "--out", tmp_path / "again.mp4", "--prompt", "A person cooks.", "--seed", 7)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()
    assert "9 frames by base, seed 7" in done.stdout
    assert "path: lines 2 to 26, 0.0 to 0.8 s, 25 poses" in done.stdout
    assert f"look at {tmp_path / 'again.png'}" in done.stdout
    assert "warning" not in done.output


def test_what_is_odd_is_said_in_the_terminal_and_in_the_record(arguments, tmp_path):
    at = arguments.index("--trajectory") + 1
    seconds, T, _ = read_tum(Path(arguments[at]))
    (tmp_path / "path.txt").write_text(wild_request.tum(seconds.tolist(), T @ T_shown_sensor(2)))
    turned = [*arguments[:at], str(tmp_path / "path.txt"), *arguments[at + 1 :]]
    done = generate("base", "--lake", tmp_path / "lake", *turned, "--out", tmp_path / "ego.mp4")
    assert done.exit_code == 0, done.output
    assert "warning: the head is upside down" in done.stderr
    assert "warning: " + json.loads((tmp_path / "ego.json").read_text())["warnings"][0] in done.stderr


def test_a_camera_of_an_annotation_is_what_a_request_takes(arguments, tmp_path):
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    root = Path(given["--exo"]).parents[5]
    (annotation,) = root.glob("annotations/ego_pose/*/camera_pose/*.json")
    lens, pose = tmp_path / "lens.json", tmp_path / "pose.json"
    asked = ["camera", str(annotation), Path(given["--exo"]).stem, "--exo", given["--exo"], "--camera", str(lens), "--exo-pose", str(pose)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert json.loads(lens.read_text()) == json.loads(Path(given["--camera"]).read_text()) == json.loads(done.stdout)["camera"]
    assert json.loads(pose.read_text()) == json.loads(Path(given["--exo-pose"]).read_text())
    again = CliRunner().invoke(app, asked)
    assert "is there already" in str(again.exception)
    aria = CliRunner().invoke(app, ["camera", str(annotation), "aria01"])
    assert "no exo camera 'aria01' in it; there is cam01" in str(aria.exception)


def test_by_an_adapter_of_a_lake_that_stays_as_it_is(arguments, tmp_path):
    lake, made = tmp_path / "lake", wild_request.adapter(tmp_path / "adapter", Profile.load("local"))
    tracker = Tracker.beside(str(lake))
    tracker.alias(tracker.register("egox", made, tracker.start("t"), {}), "champion")
    before = on_disk(lake)
    done = generate("egox@champion", "--lake", lake, *arguments, "--out", tmp_path / "ego.mp4", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["adapter"], record["adapter_sha256"]) == ("egox@v1", adapters.sha256(made))
    assert on_disk(lake) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["base", "--fov", 60], "--fov goes with --exo"),
        (["base", "--depth-focal", 0.7], "--depth-focal goes with --exo"),
        (["base", "--exo", "a.mp4"], "--exo also needs --trajectory and --out"),
        (["base", "--exo", "a.mp4", "--trajectory", "a.txt", "--out", "b.mp4"], "depth is missing"),
        (["prior", "--exo", "a.mp4", "--trajectory", "a.txt", "--out", "b.mp4"], "prior is a reference"),
        (["egox@v1", "--exo", "a.mp4", "--trajectory", "a.txt", "--out", "b.mp4"], "nothing was ever registered"),
    ],
)
def test_what_is_missing_is_named(options, words, tmp_path):
    done = generate(*options, "--lake", tmp_path / "lake")
    assert isinstance(done.exception, ValueError)
    assert words in str(done.exception)
