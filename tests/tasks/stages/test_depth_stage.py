"""Depth, prior and directions of a clip, as stages make them: a scene with known depth first, the real clips where they are."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.exo_lens import exo_lens
from egomill.kernels.poses import from_rt, inverse
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import MADE, TABLES
from egomill.schemas.tensors import pack, unpack, unpack_depth
from egomill.tasks.media import video, views
from egomill.tasks.networks import estimators
from egomill.tasks.stages import depth, directions, priors
from tests.tasks.networks.test_estimators import tiny_depth_anything
from tests.tasks.stages.depth_clips import row, scene_row


def make(stage, **tables) -> dict:
    """What a stage's worker makes of a row, by way of a pickle as on Ray."""
    made = pickle.loads(pickle.dumps(stage.worker))()({name: {c: table[c] for c in stage.reads[name]} for name, table in tables.items()})
    assert not isinstance(made, Rejected), made
    assert set(made) == set(TABLES[stage.name].names) - {"clip_id", *MADE}
    return made


def apart(prior: np.ndarray, valid: np.ndarray, truth: np.ndarray, dx: int, dy: int) -> float:
    """Mean absolute difference (grey levels) of a prior moved by whole pixels, where it is valid. Where something hides what the exo camera
    saw the two differ in any case, and squares would see little else."""
    moved, where = np.roll(prior, (dy, dx), (1, 2)), np.roll(valid, (dy, dx), (1, 2))
    return float(np.abs(moved[where].astype(float) - truth[where]).mean())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in an actor of a stage."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def profile():
    return Profile.load("local", ["depth.height=128"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return scene_row(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def made(profile, scene):
    return make(depth.stage(profile), clips=scene[0])


def test_true_depth_goes_through(made, scene):
    _, clip = scene
    found, static = unpack_depth(made["depth"]), unpack(made["static"])
    close = np.abs(found / np.maximum(clip.exo_depth, 1e-3) - 1) < 5e-3  # float16 of the sidecar, log steps of the table
    assert close[clip.exo_depth > 0].mean() > 0.999
    assert not static[clip.exo_dynamic].any()
    assert static.mean() > 0.7
    assert close[clip.exo_dynamic].mean() > 0.99  # the person keeps its own depth
    assert np.allclose(unpack(made["alpha"]), 1, atol=1e-3)
    assert np.allclose(unpack(made["beta"]), 0, atol=1e-3)
    assert (unpack(made["inliers"]) > 0.99).all()
    assert made["known"] > 0.9
    estimator = json.loads(made["estimator"])
    assert estimator["monocular"] == {"name": "sidecar", "kind": "range", "revision": "digest"}
    assert estimator["mask"]["name"] == "sidecar"
    assert estimator["temporal"]["name"] == "static-median"


def test_without_temporal_estimate_nothing_is_fitted(scene):
    made = make(depth.stage(Profile.load("local", ["depth.temporal=none", "depth.height=64"])), clips=scene[0])
    assert unpack(made["alpha"]).tolist() == [1] * 5
    assert unpack(made["beta"]).tolist() == [0] * 5
    assert made["depth"]["shape"] == [5, 64, 112]


def test_networks_stand_in_for_the_sidecar(scene, tmp_path):
    mono, relative = tiny_depth_anything(tmp_path / "mono", "metric"), tiny_depth_anything(tmp_path / "relative", "relative")
    settings = [f"depth.monocular={mono}", "depth.height=64", "depth.mask=background", "depth.min_head_scale=0", "depth.max_head_scale=1e9"]
    stage = depth.stage(Profile.load("local", settings))
    made = make(stage, clips=scene[0] | {"depth_path": ""})
    estimator = json.loads(made["estimator"])
    assert estimator["monocular"]["revision"].startswith("sha256:")
    assert estimator["monocular"]["revision"] in stage.weights
    assert estimator["mask"]["name"] == "background"
    assert made["known"] == 1.0
    both = depth.stage(Profile.load("local", [*settings, f"depth.temporal={relative}", "depth.mode=momentum"]))
    result = both.worker()({"clips": scene[0]})  # random weights: a fit, or a fit refused, and nothing else
    assert isinstance(result, dict) or getattr(result, "reason", "") == "alignment_failed"


def test_a_moved_folder_of_weights_is_the_same_stage(tmp_path):
    stages = []
    for folder in ("here", "there"):
        name = tiny_depth_anything(tmp_path / folder, "metric")
        stages.append(depth.stage(Profile.load("local", [f"depth.monocular={name}"])))
    assert stages[0].fingerprint(["x"]) == stages[1].fingerprint(["x"])
    assert stages[0].fingerprint(["x"]) != depth.stage(Profile.load("local")).fingerprint(["x"])


def test_a_network_without_revision_is_an_error_at_once():
    with pytest.raises(ValueError, match="pin a revision"):
        depth.stage(Profile.load("paper"))


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        ({"depth_path": ""}, [], "no_depth_estimator"),
        ({"depth_path": "gone.npz"}, [], "depth_sidecar_invalid"),
        ({"exo_video": "gone.mp4"}, [], "video_undecodable"),
        ({"depth_path": "half.npz"}, ["depth.min_known=0.8"], "depth_empty"),
    ],
)
def test_bad_clips_are_rejected_by_name(scene, change, settings, reason):
    half = np.where(np.arange(224) < 112, scene[1].exo_depth[0], 0)
    np.savez(Path(scene[0]["root"]) / "half.npz", static_depth=half)
    worker = depth.stage(Profile.load("local", ["depth.height=64", *settings])).worker()
    result = worker({"clips": scene[0] | change})
    assert isinstance(result, Rejected)
    assert result.reason == reason


def test_the_prior_lies_on_the_true_ego_view(profile, scene, made):
    clip, _ = scene
    prior = make(priors.stage(profile), clips=clip, depth=made)
    pictures, valid, truth = video.decode(prior["video"]), unpack(prior["valid"]), views.read_ego(clip)
    assert pictures.shape == truth.shape == (5, 128, 128, 3)
    assert valid.shape == truth.shape[:3]
    assert not pictures[~valid].any()
    assert 0.2 < prior["coverage"] <= 1
    seen = valid & ~scene[1].ego_dynamic
    here = apart(pictures, seen, truth, 0, 0)
    assert all(apart(pictures, seen, truth, dx, dy) > here for dx, dy in ((2, 0), (-2, 0), (0, 2), (0, -2), (3, 3), (-3, 3)))


def test_a_prior_of_too_little_is_rejected(scene, made):
    recipe = Profile.load("local", ["priors.min_coverage=1.0"])
    result = priors.stage(recipe).worker()({"clips": scene[0], "depth": made})
    assert isinstance(result, Rejected)
    assert result.reason == "prior_empty"


def test_directions_on_the_token_grid(profile, scene, made):
    clip, truth = scene
    found = {k: unpack(v) for k, v in make(directions.stage(profile), clips=clip, depth=made).items()}
    assert found["exo_points"].shape == (2, 8, 14, 3)
    assert found["ego_rays"].shape == (2, 8, 8, 3)
    assert found["centres"].shape == (2, 3)
    assert found["exo_valid"].mean() > 0.9
    assert found["ego_valid"].any()
    assert np.allclose(np.linalg.norm(found["ego_rays"][found["ego_valid"]].astype(float), axis=-1), 1, atol=2e-3)
    assert np.allclose(found["centres"][0], truth.T_world_ego[0, :3, 3], atol=1e-5)
    rays = truth.exo_camera.rays(torch.float64)[0].numpy() * truth.exo_depth[0][..., None]
    points = rays @ truth.T_world_exo[:3, :3].T + truth.T_world_exo[:3, 3]
    block = points[64:80, 112:128].reshape(-1, 3)
    assert (found["exo_points"][0, 4, 7] > block.min(0) - 0.05).all()
    assert (found["exo_points"][0, 4, 7] < block.max(0) + 0.05).all()


def test_the_released_geometry_by_name(profile, scene, made):
    found, true = (
        {k: unpack(v) for k, v in make(directions.stage(recipe), clips=scene[0], depth=made).items()}
        for recipe in (Profile.load("local", ["directions.geometry=egox-released"]), profile)
    )
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in true.items()}
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in true.items()}
    assert np.allclose(found["centres"], scene[1].T_world_ego[::4, :3, 3], atol=1e-5)
    seen = true["ego_valid"] & found["ego_valid"]
    cosines = (found["ego_rays"].astype(float) * true["ego_rays"].astype(float)).sum(-1)[seen]
    assert 5 < np.degrees(np.arccos(cosines.clip(-1, 1))).mean() < 20  # kernels/test_directions_released.py measures it


def test_depth_knows_its_scale_at_the_head(made):
    assert made["head_scale"] == pytest.approx(1, abs=0.05)
    assert json.loads(made["estimator"])["scale"] == {"factor": 1.0, "landmarks": 0}


def spoilt(scene, edit, name: str = "spoilt") -> dict:
    """The scene's clip with other numbers in the place of its depth."""
    folder = Path(scene[0]["root"]) / name
    folder.mkdir(exist_ok=True)
    for frame, picture in enumerate(scene[1].exo_depth):
        np.save(folder / f"{frame:05d}.npy", edit(picture.astype(np.float32)))
    return scene[0] | {"depth_path": name, "depth_kind": "pinhole-z"}


def inverted(depth: np.ndarray) -> np.ndarray:
    return np.where(depth > 0, 1 / np.maximum(depth, 1e-3), 0)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: 1000 * d, "millimetres"),
        (lambda d: 100 * d, "centimetres"),
        (lambda d: d / 0.0254, "inches"),
        (lambda d: d / 0.3048, "feet"),
        (lambda d: d / 1000, "kilometres"),
        (inverted, "inverse depth"),
        (lambda d: 3.7 * inverted(d), "inverse depth"),  # relative inverse depth: by chance of the right size at the head
        (lambda d: 0.3 * d, "0.5 to 2 are accepted"),
    ],
)
@pytest.mark.parametrize("mask", ["sidecar-or-background", "none"])
def test_depth_in_another_unit_is_refused_by_its_name(scene, edit, said, mask):
    worker = depth.stage(Profile.load("local", ["depth.height=64", f"depth.mask={mask}"])).worker()
    result = worker({"clips": spoilt(scene, edit)})
    if mask == "none" and said.startswith("0.5"):  # where nothing is known to move, something may stand before the head
        assert isinstance(result, dict)
        assert result["head_scale"] is None
        return
    assert isinstance(result, Rejected)
    assert result.reason == "depth_scale"
    assert said in result.detail


def test_inverse_depth_in_an_archive_is_refused_by_its_name(scene):
    with np.load(Path(scene[0]["root"]) / "depth.npz") as arrays:
        inverse = {"static_depth": inverted(arrays["static_depth"]), "dynamic_depth": 1 / arrays["dynamic_depth"]}
    np.savez(Path(scene[0]["root"]) / "inverse.npz", **inverse)
    result = depth.stage(Profile.load("local", ["depth.height=64"])).worker()({"clips": scene[0] | {"depth_path": "inverse.npz"}})
    assert isinstance(result, Rejected)
    assert result.reason == "depth_scale"
    assert "inverse depth" in result.detail


def test_depth_that_is_off_by_less_is_kept_and_said(scene):
    made = make(depth.stage(Profile.load("local", ["depth.height=64"])), clips=spoilt(scene, lambda d: 1.4 * d))
    assert made["head_scale"] == pytest.approx(1.4, rel=0.05)
    strict = depth.stage(Profile.load("local", ["depth.height=64", "depth.max_head_scale=1.25"])).worker()
    result = strict({"clips": spoilt(scene, lambda d: 1.4 * d)})
    assert isinstance(result, Rejected)
    assert result.reason == "depth_scale"


def test_a_head_behind_what_stands_still_or_out_of_the_picture_refuses_nothing(scene):
    profile, clip = Profile.load("local", ["depth.height=64", "depth.mask=background"]), scene[1]
    shelf = np.full_like(clip.exo_depth[0], 0.6)
    np.savez(Path(scene[0]["root"]) / "shelf.npz", static_depth=shelf)
    still = np.repeat(clip.exo[:1], len(clip.exo), axis=0)
    (Path(scene[0]["root"]) / "still.mp4").write_bytes(video.encode(still, 5.0, lossless=True))
    assert make(depth.stage(profile), clips=scene[0] | {"depth_path": "shelf.npz", "exo_video": "still.mp4"})["head_scale"] is None
    aside = unpack(scene[0]["T_world_ego"]).copy()
    aside[:, :3, 3] = clip.T_world_exo[:3, 3] - 5 * clip.T_world_exo[:3, 2]  # behind the exo camera
    assert make(depth.stage(profile), clips=scene[0] | {"T_world_ego": pack(aside)})["head_scale"] is None


def test_depth_of_which_nothing_is_known_is_empty(scene, monkeypatch):
    monkeypatch.setattr(estimators, "revision", lambda *_: "r")
    monkeypatch.setattr(estimators, "load", lambda *_, **__: lambda frames, camera: np.zeros(frames.shape[:3], np.float32))
    worker = depth.stage(Profile.load("local", ["depth.height=64", "depth.monocular=network"])).worker()
    result = worker({"clips": scene[0] | {"depth_path": ""}})
    assert isinstance(result, Rejected)
    assert result.reason == "depth_empty"


def test_a_training_clips_room_is_brought_to_its_size_by_its_true_ego_frames(tmp_path):
    scene = scene_row(tmp_path, seed=5, frames=10, ego_size=256)
    off, profile = spoilt(scene, lambda d: 1.4 * d), Profile.load("local", ["depth.height=128", "depth.scale=landmarks"])
    made = make(depth.stage(profile), clips=off)
    scale = json.loads(made["estimator"])["scale"]
    assert scale["factor"] == pytest.approx(1 / 1.4, rel=0.05)
    assert scale["landmarks"] >= 20
    assert made["head_scale"] == pytest.approx(1, abs=0.1)
    held_out = make(depth.stage(profile), clips=off | {"split": "test", "ego_video": "none.mp4"})  # its truth is not looked at
    assert json.loads(held_out["estimator"])["scale"] == {"factor": 1.0, "landmarks": 0}
    assert held_out["head_scale"] == pytest.approx(1.4, rel=0.05)
    result = depth.stage(profile).worker()({"clips": off | {"ego_video": "none.mp4"}})
    assert isinstance(result, Rejected)
    assert result.reason == "video_undecodable"


def real_row(root: Path, index: int) -> dict:
    entry = json.loads((root / "meta.json").read_text())["test_datasets"][index]
    k, size = np.array(entry["camera_intrinsics"]), (224, 128)
    lens = exo_lens(k.tolist(), (0.036902, 0.057131, -0.057154, 0.018458))
    exo: Camera = lens.rescale(796, 448).crop(6, 0, 784, 448).rescale(*size)
    poses = [inverse(from_rt(torch.tensor(entry[k], dtype=torch.float64))).numpy() for k in ("camera_extrinsics", "ego_extrinsics")]
    made = row(root, exo, aria_rgb(128), poses[0], poses[1][::12])
    take = Path(entry["exo_path"]).parent.name
    files = {"exo_video": entry["exo_path"], "ego_video": entry["ego_gt_path"], "depth_path": f"depth_maps/{take}"}
    return made | files | {"exo_crop": [0, 0, 784, 448], "depth_kind": "pinhole-z", "depth_focal": k[0, 0] / lens.params[0], "stride": 12}


@pytest.mark.parametrize("index", [0, 2])
def test_the_prior_of_real_footage_lies_on_the_true_ego_view(real_data, index):
    profile, clip = Profile.load("local"), real_row(real_data / "egox", index)
    prior = make(priors.stage(profile), clips=clip, depth=make(depth.stage(profile), clips=clip))
    pictures, valid, truth = video.decode(prior["video"]), unpack(prior["valid"]), views.read_ego(clip)
    here = apart(pictures, valid, truth, 0, 0)
    assert all(apart(pictures, valid, truth, dx, dy) > here for dx, dy in ((5, 0), (-5, 0), (0, 5), (0, -5)))


@pytest.mark.parametrize(("index", "at_head", "room"), [(0, 1.05, 1.11), (1, 1.4, 1.06), (2, 1.09, 1.11)])
def test_what_real_depth_says_at_the_head_and_of_the_room(real_data, index, at_head, room):
    """Networks' depth is off by up to 0.4 at the head, and less in the room: the head is for refusing, landmarks are for scaling."""
    entry = json.loads((real_data / "egox" / "meta.json").read_text())["test_datasets"][index]
    poses = inverse(from_rt(torch.tensor(entry["ego_extrinsics"], dtype=torch.float64))).numpy()[:49:3]
    clip = real_row(real_data / "egox", index) | {"T_world_ego": pack(poses), "frames": len(poses), "stride": 3}
    made = make(depth.stage(Profile.load("local", ["depth.scale=landmarks"])), clips=clip)
    scale = json.loads(made["estimator"])["scale"]
    assert scale["factor"] == pytest.approx(room, rel=0.07)
    assert scale["landmarks"] >= 20
    assert made["head_scale"] / scale["factor"] == pytest.approx(at_head, rel=0.07)
