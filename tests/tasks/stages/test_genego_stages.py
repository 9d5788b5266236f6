"""From a simulated H2O sequence to GenEgo's maps: hands of both cameras, alignments of every source, what is drawn and what is encoded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from egomill.kernels.poses import inverse, transform
from egomill.models.latents import encode_video
from egomill.scenes.take import simulate
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.rows import finished, handed
from egomill.tasks.media import video, views
from egomill.tasks.media.sources import discover
from egomill.tasks.networks import bases
from egomill.tasks.stages import alignments, captions, clips, depth, hands, picture_latents, scales, sparse, takes

PROFILE = Profile.load("local-genego", ["clips.frames=3", "clips.hop=0.2", "clips.min_overlap=0", "genego.jitter=[0.03,4.0]"])
EVERY = Profile.load("local-genego", ['genego.sources=["calibrated","annotated","jittered","predicted"]'])
SOURCES = ("calibrated", "annotated", "jittered")


def made(stage, rows: dict) -> dict | Rejected:
    """The stage's row from whole rows by table."""
    result = stage.worker()(handed(stage.reads, {table: rows[table] for table in stage.reads}))
    return result if isinstance(result, Rejected) else finished(stage, rows["clips"]["clip_id"], result)[0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict:
    """A clip's rows up to its hands."""
    root = tmp_path_factory.mktemp("h2o")
    simulate(root, 1, seed=3, seconds=0.4, layout="h2o")
    (item,) = discover([root])
    take = takes.stage(PROFILE).worker()(item.row)
    assert isinstance(take, dict), take
    cut = clips.stage(PROFILE)
    chosen = [row for row in finished(cut, take["take_uid"], cut.worker()(handed(cut.reads, {"takes": take}))) if row["chosen"]]
    found = {"clips": chosen[0]}
    for stage in (depth.stage(PROFILE), captions.stage(PROFILE), hands.stage(PROFILE)):
        found[stage.name] = made(stage, found)
        assert isinstance(found[stage.name], dict), found[stage.name]
    return found


def aligned(rows: dict, source: str) -> dict:
    found = made(alignments.stage(EVERY, source), rows)
    assert isinstance(found, dict), found
    return found


def test_both_cameras_files_show_one_pair_of_hands(rows):
    clip, found = rows["clips"], rows["hands"]
    exo, ego = (torch.from_numpy(unpack(found[name])).double() for name in ("joints_exo", "joints_ego"))
    T_world_exo, T_world_ego = (torch.from_numpy(unpack(clip[name])) for name in ("T_world_exo", "T_world_ego"))
    assert (transform(T_world_exo, exo.flatten(0, 2)) - transform(T_world_ego[:, None], ego).flatten(0, 2)).norm(dim=-1).max() < 1e-5
    assert unpack(found["picture"]).shape == (3, 3, PROFILE.ego_hands.picture, PROFILE.ego_hands.picture)
    assert (found["frames"], found["estimator"]) == (3, "annotated (H2O)")


def test_hands_of_files_get_their_ego_side_by_the_cameras(rows, tmp_path):
    joints = unpack(rows["hands"]["joints_exo"])
    stored = np.full((60, 2, 21, 3), np.nan, np.float32)
    stored[views.frame_numbers(rows["clips"])] = joints
    np.savez(tmp_path / "h.npz", joints=stored)
    clip = {**rows["clips"], "root": "/", "hands": f'{{"where": {{"files": {{"{rows["clips"]["exo_cam"]}": "{tmp_path}/h.npz"}}}}}}'}
    clip["exo_video"] = f"{rows['clips']['root']}/{rows['clips']['exo_video']}"
    profile = PROFILE.model_copy(update={"hands": PROFILE.hands.model_copy(update={"source": "files"})})
    result = hands.stage(profile).worker()({"clips": clip})
    assert isinstance(result, dict), result
    assert np.abs(unpack(result["joints_ego"]) - unpack(rows["hands"]["joints_ego"])).max() < 1e-4


def test_the_solver_gives_the_calibrated_motion_from_annotated_hands(rows):
    calibrated, annotated = (torch.from_numpy(unpack(aligned(rows, source)["T_ego_exo"])) for source in ("calibrated", "annotated"))
    assert (calibrated - annotated).abs().max() < 1e-4
    assert aligned(rows, "annotated")["centimetres"] < 0.01
    assert aligned(rows, "calibrated")["centimetres"] < 1e-6


def test_jitter_moves_camera_and_hands_together_and_is_the_same_each_time(rows):
    calibrated, one, other = (aligned(rows, source) for source in ("calibrated", "jittered", "jittered"))
    assert one["T_ego_exo"] == other["T_ego_exo"]
    assert 0 < one["degrees"] < 15
    T = torch.from_numpy(unpack(one["T_ego_exo"]))
    exo = torch.from_numpy(unpack(rows["hands"]["joints_exo"])).double()
    assert (transform(T[:, None], exo).float() - torch.from_numpy(unpack(one["joints_ego"]))).abs().max() < 1e-5
    assert (T - torch.from_numpy(unpack(calibrated["T_ego_exo"]))).abs().max() > 1e-3


def test_a_regressors_joints_are_aligned_and_smoothed_and_swapped_sides_are_found(rows):
    worker = alignments.Aligner("predicted")
    true = unpack(rows["hands"]["joints_ego"])
    noisy = true + np.random.default_rng(0).normal(0, 0.005, true.shape).astype(np.float32)
    for joints, exchanged in ((noisy, False), (noisy[:, ::-1].copy(), True)):
        found = worker({**rows, "ego_hands": {"joints_ego": pack(joints)}})
        assert isinstance(found, dict), found
        assert found["exchanged"] is exchanged
        assert found["centimetres"] < 5
        assert found["degrees"] < 5


def test_hands_that_fit_no_motion_are_a_named_rejection(rows):
    wild = unpack(rows["hands"]["joints_ego"]) * np.float32(1) + np.random.default_rng(0).normal(0, 0.2, (3, 2, 21, 3)).astype(np.float32)
    found = alignments.Aligner("predicted")({**rows, "ego_hands": {"joints_ego": pack(wild)}})
    assert isinstance(found, Rejected)
    assert found.reason == "hands_unaligned"
    assert "of 3 frames 3: the hands do not fit within" in found.detail
    bare = {**rows, "hands": {**rows["hands"], "joints_ego": None}}
    assert alignments.Aligner("annotated")(bare).reason == "no_hands"


@pytest.mark.parametrize("source", SOURCES)
def test_the_maps_show_the_table_and_the_hands_where_the_true_view_has_them(rows, source):
    found = {**rows, "alignments": aligned(rows, source)}
    drawn = made(sparse.stage(EVERY, source), found)
    assert isinstance(drawn, dict), drawn
    ego, picture, valid = views.read_ego(rows["clips"]), video.decode(drawn["video"]), unpack(drawn["valid"])
    assert 0.1 < drawn["coverage"] < 1
    assert (picture[~valid] == 0).all()
    apart = np.abs(picture.astype(int) - ego).mean(axis=-1)[valid]
    if source != "jittered":
        assert np.median(apart) < 25
    pose = video.decode(drawn["pose"])
    camera = views.ego_camera(rows["clips"])
    joints = torch.from_numpy(unpack(found["alignments"]["joints_ego"])).double()
    pixels, inside = camera.project(joints)
    at = pixels[inside & (joints[..., 2] > 0.06)].round().long()
    frame = (inside & (joints[..., 2] > 0.06)).nonzero()[:, 0]
    assert len(at) > 20
    assert (pose[frame, at[:, 1], at[:, 0]].max(axis=-1) > 40).all()


def test_what_lies_about_the_head_itself_is_not_drawn(rows):
    clip = rows["clips"]
    T = torch.from_numpy(unpack(aligned(rows, "calibrated")["T_ego_exo"]))
    centre = inverse(T)[:, :3, 3]
    assert (centre.norm(dim=-1) > 0.5).all()  # from the exo camera: the head is a thing in its picture
    drawn = made(sparse.stage(EVERY, "calibrated"), {**rows, "alignments": aligned(rows, "calibrated")})
    assert isinstance(drawn, dict), drawn
    ego, picture, valid = views.read_ego(clip), video.decode(drawn["video"]), unpack(drawn["valid"])
    near = np.abs(picture.astype(int) - ego).mean(axis=-1) < 40
    assert near[valid].mean() > 0.6


def test_the_hands_surface_says_that_metric_depth_is_metric_or_that_it_cannot_tell(rows):
    found = made(scales.stage(PROFILE), rows)
    if isinstance(found, Rejected):
        assert found.reason == "scale_unreliable"
    else:
        assert abs(math.log(found["factor"])) < 0.3


def test_latents_of_maps_are_of_the_ranges_that_the_released_code_has(rows):
    drawn = made(sparse.stage(EVERY, "calibrated"), {**rows, "alignments": aligned(rows, "calibrated")})
    stage = picture_latents.stage(EVERY, "calibrated")
    assert stage is not None
    worker = stage.worker()
    found = {row["name"]: unpack(row["tensor"]) for row in worker({"sparse": drawn})}
    assert {name: tensor.shape for name, tensor in found.items()} == dict.fromkeys(("sparse-calibrated", "pose-calibrated"), (4, 3, 32, 32))
    target = picture_latents.stage(PROFILE)
    assert target is not None
    assert stage.constants["model"] == f"{target.constants['model']}/calibrated"
    text = {row["name"]: unpack(row["tensor"]) for row in target.worker()({"clips": rows["clips"], "captions": rows["captions"]})}
    assert text["text"].shape == (77, 32)
    assert text["ego"].shape == (4, 3, 32, 32)
    black = video.encode(np.zeros((3, 128, 128, 3), np.uint8), 10, lossless=True)
    dark = {
        row["name"].partition("-")[0]: unpack(row["tensor"]) for row in worker({"sparse": {"clip_id": "c", "video": black, "pose": black}})
    }
    vae = bases.load(PROFILE.model, "vae").vae
    for name, level in (("pose", 0.0), ("sparse", -1.0)):  # black is 0 in a pose map, and -1 in a sparse map
        expected = encode_video(vae, torch.full((1, 3, 3, 128, 128), level))[0].half().numpy()
        np.testing.assert_allclose(dark[name], expected, atol=0.05)


def test_a_source_without_a_regressor_or_that_nobody_asks_for_makes_nothing():
    assert alignments.stage(PROFILE, "predicted") is None
    assert sparse.stage(PROFILE, "annotated") is None
    assert picture_latents.stage(PROFILE, "annotated") is None
