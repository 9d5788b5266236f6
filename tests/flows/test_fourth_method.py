"""A method that is not ours goes from clips to a gated adapter and generations without a change in egomill/."""

from __future__ import annotations

import pytest
import torch

from egomill.flows.rebuild import rebuild
from egomill.flows.retrain import retrain
from egomill.flows.verbs import plan
from egomill.schemas.config import Profile
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.media import video
from egomill.tasks.pages import report
from egomill.tasks.training import adapters
from tests.flows.conftest import write_small
from tests.flows.toy_method import __name__ as TOY

SETTINGS = [f"train.method={TOY}", "train.targets=[]", "train.steps=40", "train.learning_rate=1e-2", "train.workers=1"]
SETTINGS += ["train.checkpoint_every=25", "clips.exo_cameras=1", "clips.hop=0.6", "clips.frames=5", "clips.unseen=0"]
SETTINGS += ["clips.exo_size=[64,64]", "clips.ego_size=64"]


def test_a_fourth_method_is_a_file_of_its_own(tmp_path, ray_cluster):
    lake, takes = Lake(str(tmp_path / "lake")), str(write_small(tmp_path / "in", 3))
    made = rebuild.fn(lake.uri, [takes], settings=SETTINGS, release="first")
    assert made["new"]
    assert {(row["name"], row["tensor"]["shape"][0]) for row in lake.read("latents").to_pylist()} == {("both", 32)}
    assert lake.count("depth") == lake.count("priors") == 0
    steps = plan(lake.uri, [takes], settings=SETTINGS)
    assert [step["stage"].split("/")[0] for step in steps] == ["takes", "clips", "latents"]
    assert not any(step["compute"] or step["may"] for step in steps)

    night = retrain.fn(lake.uri, settings=SETTINGS)
    assert (night["adapter"], night["trained"], night["promoted"]) == ("toy@v1", True, True), night["why"]
    assert retrain.fn(lake.uri, settings=SETTINGS)["trained"] is False
    adapter = Tracker.beside(lake.uri).resolve("toy@champion")
    assert adapters.describe(adapter.folder)["method"] == "toy"
    weights = adapters._all(adapter.folder)
    assert weights.keys() == {"linear.weight", "linear.bias"}
    torch.manual_seed(0)
    assert not torch.equal(weights["linear.bias"], torch.nn.Linear(16, 16).bias)  # the second phase, after the first
    videos = lake.read("generations", ["adapter", "video"]).to_pylist()
    assert {row["adapter"] for row in videos} == {"base", "toy@v1"}
    assert video.decode(videos[0]["video"]).shape == (5, 64, 64, 3)
    assert {row["metric"] for row in lake.read("scores").to_pylist() if row["value"]} == {"psnr.all", "ssim.all", "haarpsi.all"}
    assert "toy@v1" in report.render(lake, Tracker.beside(lake.uri), "toy@v1", tmp_path / "report.html").read_text()


def test_a_method_that_is_not_there_is_named_with_those_that_are():
    from egomill.models.method import of

    for name, says in (
        ("egoxx", "did you mean 'egox'"),
        ("tests.nowhere", "known: ego_h.*, egox"),
        ("lora", "no module egomill.models.lora with"),
    ):
        with pytest.raises(ValueError, match=says):
            of(Profile.load("local", [f"train.method='{name}'"]))
