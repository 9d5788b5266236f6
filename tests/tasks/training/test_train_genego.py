"""GenEgo and its regressor by the one loop: what two workers train is what one trains. Killed and gone on with: test_resume.py."""

from __future__ import annotations

import pytest
import torch

from egomill.models import method
from egomill.schemas.config import Profile
from egomill.tasks.lake import releases
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.training import adapters, regressor, train
from tests.tasks import tiny_lake
from tests.tasks.tiny_lake import run_here
from tests.tasks.training.test_resume import HANDS, of_hands

pytestmark = pytest.mark.slow  # tests/flows/test_genego_nightly.py trains both, once
SHORT = ["train.steps=8", "train.batch=2", "train.workers=1", "train.checkpoint_every=2", "train.learning_rate=1e-3"]
KINDS = {
    "whole": ["train.method=genego"],
    "LoRA": ["train.method=genego", "genego.full=false", 'train.targets=["to_q","to_v","conv_in"]', "train.rank=4", "train.alpha=4"],
    "regressor": ["train.method=ego_hands", "ego_hands.sees=both"],
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> tuple[Lake, dict]:
    found = Lake(str(tmp_path_factory.mktemp("lake")))
    keys = tiny_lake.build(found, clips=6, takes=3, held_out=2)
    tiny_lake.square(found, keys)
    tiny_lake.hands(found, keys)
    profile = Profile.load("local-genego", HANDS)
    for stage in of_hands(profile):
        run_here(found, stage, keys)
    return found, releases.publish(found, "run", profile, "r1")[0]


@pytest.fixture(scope="module", params=list(KINDS))
def one(request, lake, ray_cluster):
    profile = Profile.load("local-genego", [*HANDS, *KINDS[request.param], *SHORT])
    tracker = Tracker.beside(lake[0].uri)
    return lake, profile, tracker, train.train(*lake, profile, tracker, "night")


def with_(profile: Profile, **changes) -> Profile:
    return profile.model_copy(update={"train": profile.train.model_copy(update=changes)})


def test_the_adapter_is_of_its_method_and_learns(one):
    lake, profile, tracker, adapter = one
    about = adapters.describe(adapter.folder)
    assert about["method"] == method.of(profile).name
    assert train.existing(*lake, profile, tracker).spec == adapter.spec
    assert len(tracker.history(adapter.run_id, "loss")) == 8
    if profile.train.method == "ego_hands":
        net = regressor.load(adapter.folder)
        seen = net.joints(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.full((2, 2, 21, 3), torch.nan))
        assert seen.isfinite().all()  # of hands that nobody knows it says what the picture says


def test_two_workers_train_what_one_trains(one):
    lake, profile, tracker, alone = one
    two = train.train(*lake, with_(profile, workers=2, batch=1), tracker, "night")
    for metric in ("loss", "val_loss"):
        assert tracker.history(alone.run_id, metric) == pytest.approx(tracker.history(two.run_id, metric), rel=2e-4), metric
    others = adapters._all(two.folder)
    for name, tensor in adapters._all(alone.folder).items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=4e-4)
