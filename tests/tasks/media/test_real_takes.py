"""The real layouts: an Ego-Exo4D take with a separator in its opening, and EgoX examples. Skips where no real data is named."""

import json

import numpy as np
import pytest
import torch

from egomill.kernels.cameras import Camera
from egomill.schemas.config import Profile
from egomill.schemas.tensors import unpack
from egomill.tasks.media import views
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import captions, clips, takes

torch.set_num_threads(1)
PROFILE = Profile.load("local", ["clips.exo_cameras=1", "clips.hop=3.0"])


def taken(root):
    return [takes.stage(PROFILE).worker()(item.row) for item in discover([root])]


@pytest.fixture(scope="module")
def release(real_data):
    (take,) = taken(real_data / "egoexo4d")
    return take


def test_the_release_take(release):
    assert isinstance(release, dict), release
    assert (release["take_name"], release["split"], release["lens_source"]) == ("cmu_bike08_2", "test", "calibration file")
    assert (release["frames"], release["fps"]) == (634, 30.0)
    assert list(json.loads(release["exo"])) == ["cam01", "cam02", "cam03", "cam04"]
    T = unpack(release["T_world_ego"])
    assert np.isfinite(T[:632]).all()
    assert np.isnan(T[632:]).all()
    assert (-T[:632, 2, 0] > 0).all()  # gravity is -z of the world; up is -x of the landscape sensor
    ego = Camera.from_dict(json.loads(release["ego_camera"]))
    assert ego.params[0] == pytest.approx(194.185, abs=1e-3)
    assert ego.params[2:4] == pytest.approx((227.496, 223.957), abs=1e-3)


def test_the_release_take_is_curated(release):
    rows = clips.stage(PROFILE).worker()({"takes": release})
    assert isinstance(rows, list)
    assert {row["split"] for row in rows} == {"unseen"}
    assert all(row["overlap"] > 0.5 and row["exo_crop"] == [6, 0, 784, 448] for row in rows if row["chosen"])
    assert len({row["exo_cam"] for row in rows}) > 1  # the wearer walks around the bike
    row = next(row for row in rows if row["chosen"])
    assert views.read_exo(row).shape == (9, 128, 224, 3)
    caption = captions.stage(PROFILE).worker()({"clips": row})
    assert caption == {"text": "A person at work: bike.", "source": "template"}


def test_the_take_separator_is_skipped(release):
    alone = {"cam01": json.loads(release["exo"])["cam01"]}  # frame 0 shows a telephone with a QR code
    profile = Profile.load("local", ["clips.exo_cameras=1", "clips.hop=0.2", "clips.min_overlap=0.0"])
    rows = clips.stage(profile).worker()({"takes": {**release, "exo": json.dumps(alone)}})
    assert isinstance(rows, list)
    covered = [row["start"] for row in rows if "covers the lens" in row["why"]]
    assert covered[0] == 0
    assert all(start < 9 or start > 580 for start in covered)  # it comes back at the end
    assert max(covered) > 580


def test_the_egox_examples(real_data):
    takes = taken(real_data / "egox")
    assert len(takes) == 3
    for take in takes:
        assert isinstance(take, dict), take
        assert (take["frames"], take["fps"], take["pose_coverage"], take["lens_source"]) == (49, 20.0, 1.0, "typical lens")
        (view,) = json.loads(take["exo"]).values()
        assert view["depth_kind"] == "pinhole-z"
        assert Camera.from_dict(view["camera"]).width == 784
        rows = clips.stage(PROFILE).worker()({"takes": take})
        assert isinstance(rows, list)
        assert rows[0]["chosen"]
        assert rows[0]["overlap"] > 0.2
        assert rows[0]["depth_files"]
        assert "[Ego view]" not in captions.stage(PROFILE).worker()({"clips": rows[0]})["text"]
