"""Exo2EgoSyn's three phases: by several workers, and killed and gone on with in each of them, as by one that nobody disturbed."""

from __future__ import annotations

import pytest
import torch

from egomill.schemas.config import Profile
from egomill.tasks.lake import releases
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.stages import view_latents
from egomill.tasks.training import adapters, train
from tests.tasks import tiny_lake
from tests.tasks.tiny_lake import run_here
from tests.tasks.training.dying import __name__ as DYING

SMALL = ["exo2egosyn.align_width=32", "exo2egosyn.align_heads=2", "exo2egosyn.align_depth=1", "exo2egosyn.ray_width=8"]
SMALL += ["clips.exo_size=[64,64]", "clips.ego_size=64", "clips.frames=5", "clips.views=2"]
SMALL += ["train.steps=9", "train.rank=4", "train.alpha=4", "train.batch=2", "train.workers=1", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A lake of clips with square exo pictures, and its release."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    keys = tiny_lake.build(lake, clips=6, takes=3, held_out=2)
    tiny_lake.square(lake, keys)
    profile = Profile.load("local-exo2egosyn", [*SMALL, f"model.base='{tiny_lake.base(tmp_path_factory.mktemp('base'))}'"])
    run_here(lake, view_latents.stage(profile), keys)
    release, _ = releases.publish(lake, "run", profile, "r1")
    return lake, profile, release, Tracker.beside(lake.uri)


def with_(profile: Profile, **changes) -> Profile:
    return profile.model_copy(update={"train": profile.train.model_copy(update=changes)})


@pytest.fixture(scope="module")
def undisturbed(built, ray_cluster):
    lake, profile, release, tracker = built
    return train.train(lake, release, profile, tracker, "night")


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"workers": 2, "batch": 1}, {"workers": 2, "batch": 1, "sharding": "fsdp"}], ids=["copies", "shards"])
def test_two_workers_train_what_one_trains(built, undisturbed, other):
    lake, profile, release, tracker = built
    two = train.train(lake, release, with_(profile, **other), tracker, "night")
    for metric in ("loss", "grad_norm", "val_loss", "val_loss.align"):
        assert tracker.history(undisturbed.run_id, metric) == pytest.approx(tracker.history(two.run_id, metric), rel=1e-4), metric
    others = adapters._all(two.folder)
    for name, tensor in adapters._all(undisturbed.folder).items():
        torch.testing.assert_close(
            tensor, others[name], rtol=1e-3, atol=2e-4
        )  # Adam makes steps of 1e-3 of gradients that are next to none


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 8, 16], ids=["align", "tokens", "rays"])  # two clips are validated every second step
def test_what_broke_off_in_a_phase_ends_the_same_to_the_byte(built, undisturbed, batches, tmp_path):
    """A worker that dies once in each phase, and is started again from the last checkpoint."""
    lake, profile, release, tracker = built
    died = tmp_path / "died"
    other = with_(profile, method=DYING, checkpoint_every=2).model_copy(update={"name": f"{died}:{batches}"})
    again = train.train(lake, release, other, tracker, "night")
    assert died.exists()
    assert adapters.sha256(again.folder) == adapters.sha256(undisturbed.folder)
