"""The gate at work: better is promoted, worse is refused, roll-back restores; the lineage command and MLflow tell all of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from egomill.flows.cli import app
from egomill.flows.retrain import retrain
from egomill.schemas.config import Profile
from egomill.tasks.lake import releases
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.pages import report
from egomill.tasks.stages import latents
from tests.tasks import tiny_lake

SMALL = ["train.rank=16", "train.alpha=16", "train.targets=['to_out.0', 'ffn.net.0.proj', 'ffn.net.2', 'proj_out']", "train.batch=2"]
SMALL += ["train.workers=1", "train.warmup=1", "train.checkpoint_every=1000", "generate.steps=1"]


def lineage(lake: Lake, spec: str) -> dict:
    answer = CliRunner().invoke(app, ["lineage", spec, "--lake", lake.uri, "--json"])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)["adapter"]


def released(folder: Path, release: str, seed: int = 0) -> list[str]:
    """Settings with a base of that seed, of which the lake in the folder has a release."""
    lake = Lake(str(folder / "lake"))
    settings = [*SMALL, f"model.base='{tiny_lake.base(folder / release, seed=seed)}'"]
    profile = Profile.load("local", settings)
    keys = tiny_lake.build(lake, clips=8, takes=4, held_out=4)
    tiny_lake.run_here(lake, latents.stage(profile), keys)
    releases.publish(lake, "run", profile, release)
    return settings


def test_better_is_promoted_worse_is_refused_and_roll_back_restores(tmp_path, ray_cluster):
    lake, settings = Lake(str(tmp_path / "lake")), released(tmp_path, "r1")
    tracker = Tracker.beside(lake.uri)

    def night(steps: int, rate: float) -> dict:
        return retrain.fn(lake.uri, settings=[*settings, f"train.steps={steps}", f"train.learning_rate={rate}"])

    first = night(12, 5e-3)
    assert (first["adapter"], first["promoted"]) == ("egox@v1", True), first["why"]
    assert "against base" in first["why"]
    worse = night(1, 1e-6)
    assert (worse["adapter"], worse["promoted"]) == ("egox@v2", False)
    assert "against egox@v1" in worse["why"]
    better = night(60, 5e-3)
    assert (better["adapter"], better["promoted"]) == ("egox@v3", True), better["why"]

    told = {n: lineage(lake, f"egox@v{n}") for n in (1, 2, 3)}
    assert [told[n]["tags"]["decision"] for n in (1, 2, 3)] == [first["why"], worse["why"], better["why"]]
    assert (told[3]["tags"]["champion_before"], told[3]["aliases"]) == ("egox@v1", ["candidate", "champion"])
    assert "promoted" not in told[2]["tags"]

    picture = report.glance(lake, "egox@v3")
    assert picture.startswith("data:image/png;base64,")
    (tmp_path / "glance.png").write_bytes(base64.b64decode(picture.partition(",")[2]))
    assert report.glance(lake, "egox@v9") == ""

    rolled = CliRunner().invoke(app, ["rollback", "egox", "--lake", lake.uri, "--json"])
    assert json.loads(rolled.stdout) == {"champion": "egox@v1", "was": "egox@v3"}
    assert lineage(lake, "egox@champion")["spec"] == "egox@v1"
    assert lineage(lake, "egox@v3")["tags"]["rolled_back"] == "to egox@v1"
    by_version = {a["version"]: a for a in tracker.adapters("egox")}  # as MLflow's pages show it
    assert by_version["1"]["aliases"] == ["champion"]
    again = night(60, 5e-3)
    assert (again["adapter"], again["trained"], again["promoted"]) == ("egox@v3", False, False)  # not back by itself
    assert "rolled back" in again["why"]
    same = night(12, 5e-3)
    assert (same["adapter"], same["trained"], same["why"]) == ("egox@v1", False, "it is the champion")
    assert lineage(lake, "egox@v1")["tags"]["decision"] == first["why"]


@pytest.mark.slow
def test_the_champion_of_another_base_is_what_candidates_are_measured_by_with_the_scores_that_it_has(tmp_path, ray_cluster):
    lake = Lake(str(tmp_path / "lake"))
    for number, name in enumerate(("r1", "r2")):
        settings = [*released(tmp_path, name, seed=number), "train.steps=12", "train.learning_rate=5e-3"]
        answer = retrain.fn(lake.uri, settings=settings)
        assert (answer["adapter"], answer["trained"]) == (f"egox@v{number + 1}", True)
    assert "against egox@v1" in answer["why"]
