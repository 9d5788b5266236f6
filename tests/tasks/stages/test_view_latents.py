"""A clip's views to what Exo2EgoSyn takes: one row a tensor, views in the clip's order, rays through the clip's cameras."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from egomill.kernels import rays
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.tables import Lake
from egomill.tasks.media import views
from egomill.tasks.stages import view_latents
from tests.tasks import tiny_lake


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    key, other = tiny_lake.build(lake, clips=2, takes=2, held_out=0)
    profile = Profile.load("local-exo2egosyn", [f"model.base='{tiny_lake.base(tmp_path_factory.mktemp('base'))}'"])
    clip, second = lake.rows("clips", [key, other])
    T_second = torch.eye(4, dtype=torch.float64)
    T_second[0, 3] = -1.5
    view = {name: second[name] for name in ("exo_cam", "exo_video", "exo_camera", "exo_crop", "exo_lens")}
    clip["more_views"] = [{**view, "exo_cam": "cam02", "T_world_exo": pack(T_second.numpy())}]
    worker = view_latents.stage(profile).worker()
    return clip, worker, {row["name"]: unpack(row["tensor"]) for row in worker({"clips": clip})}


def test_the_views_stand_in_their_order_and_what_is_missing_is_zero(made):
    clip, worker, found = made
    assert {name: (t.shape, str(t.dtype)) for name, t in found.items()} == {
        "exo": ((4, 16, 2, 8, 12), "float16"),
        "seen": ((4,), "bool"),
        "rays": ((97, 2, 8, 8), "float16"),
        "fold": ((1,), "uint8"),
        "ego": ((16, 2, 8, 8), "float16"),
    }
    assert found["seen"].tolist() == [True, True, False, False]
    assert not found["exo"][2:].any()
    assert not found["rays"][48:-1].any()
    for number, view in enumerate(views.of(clip)):
        alone = {row["name"]: unpack(row["tensor"]) for row in worker({"clips": {**view, "more_views": None}})}
        assert np.array_equal(alone["exo"][0], found["exo"][number])
        assert np.array_equal(alone["rays"][:24], found["rays"][24 * number : 24 * number + 24])


def test_rays_are_those_of_the_clip_s_cameras(made):
    clip, _, found = made
    wanted = rays.maps(
        views.ego_camera(clip),
        torch.from_numpy(unpack(clip["T_world_ego"])),
        torch.stack([torch.from_numpy(unpack(view["T_world_exo"])) for view in views.of(clip)]),
    )
    assert np.array_equal(wanted[:-1].half().numpy(), found["rays"][:48])
    assert np.array_equal(wanted[-1].half().numpy(), found["rays"][-1])


def test_a_fold_is_the_take_s_whatever_the_clip():
    folds = [view_latents.fold(f"take{i}") for i in range(200)]
    assert 80 < sum(folds) < 120
    assert folds == [view_latents.fold(f"take{i}") for i in range(200)]


def test_without_an_ego_video_and_with_a_broken_one(made, tmp_path):
    clip, worker, found = made
    rows = worker({"clips": {**clip, "ego_video": ""}})
    assert {row["name"] for row in rows} == found.keys() - {"ego"}
    assert all(row["names"] == ["exo", "fold", "rays", "seen"] for row in rows)
    (view,) = clip["more_views"]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    other = worker({"clips": {**clip, "more_views": [{**view, "exo_video": str(tmp_path / "broken.mp4")}]}})
    assert isinstance(other, Rejected)
    assert other.reason == "video_undecodable"
