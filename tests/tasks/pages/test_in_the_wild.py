"""A request from outside gives what the pipeline gives for the same frames, twice the same bytes, and says what it lacks."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from egomill.kernels.cameras import Camera, T_shown_sensor, aria_rgb
from egomill.kernels.poses import inverse
from egomill.kernels.trajectory import poses_at
from egomill.models.egox import DIRECTIONS
from egomill.scenes.take import simulate
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import unpack, unpack_depth
from egomill.tasks.lake.rows import opened
from egomill.tasks.media import video, views
from egomill.tasks.media.sources import discover
from egomill.tasks.media.trajectory import read_tum
from egomill.tasks.networks import bases
from egomill.tasks.pages import in_the_wild
from egomill.tasks.stages import captions, clips, depth, directions, generations, latents, priors, takes
from egomill.tasks.training import adapters
from tests.tasks.networks import test_estimators
from tests.tasks.pages import wild_request

torch.set_num_threads(1)  # as in a stage's actor
PROFILE = Profile.load("local", ["clips.exo_cameras=1", "clips.hop=0.3"])
STAGES = (depth, priors, directions, captions, latents)


@pytest.fixture(scope="module")
def take(tmp_path_factory):
    root = tmp_path_factory.mktemp("sim")
    simulate(root, 1, seed=5, seconds=1.2)
    return wild_request.first_clip(root, PROFILE)


@pytest.fixture(scope="module")
def pipeline(take):
    """The clip's rows by the stages' workers, and frames by the base from the noise of a request."""
    rows = {"clips": take[1]}
    for stage in (module.stage(PROFILE) for module in STAGES):
        made = stage.worker()({table: rows[table] for table in stage.reads})
        assert not isinstance(made, Rejected), made
        rows[stage.name] = opened("latents", made) if isinstance(made, list) else made
    return rows


@pytest.fixture(scope="module")
def files(take, tmp_path_factory):
    return wild_request.write(tmp_path_factory.mktemp("request"), *take)


@pytest.fixture(scope="module")
def answered(files, tmp_path_factory):
    """A request answered by the base: (record, path of the video)."""
    out = tmp_path_factory.mktemp("out") / "ego.mp4"
    return in_the_wild.generate(PROFILE, "base", "", in_the_wild.Request(**files), out), out


def request(files, **changes) -> in_the_wild.Request:
    return in_the_wild.Request(**{**files, **changes})


def made_of(row: dict, *modules) -> dict:
    """Rows that the stages make of a request's clip."""
    rows = {"clips": row}
    for stage in (module.stage(PROFILE) for module in modules):
        made = stage.worker()({table: rows[table] for table in stage.reads})
        assert not isinstance(made, Rejected), made
        rows[stage.name] = opened("latents", made) if isinstance(made, list) else made
    return rows


def test_the_same_prior_and_directions_as_the_pipeline(files, pipeline):
    row = in_the_wild.clip_of(PROFILE.clips, request(files))
    for column in ("start", "stride", "frames", "fps", "exo_camera", "exo_crop", "ego_camera"):
        assert row[column] == pipeline["clips"][column], column
    assert np.abs(unpack(row["T_world_ego"]) - unpack(pipeline["clips"]["T_world_ego"])).max() < 1e-14
    rows = made_of(row, depth, priors, directions)
    assert np.array_equal(unpack_depth(rows["depth"]["depth"]), unpack_depth(pipeline["depth"]["depth"]))
    assert np.array_equal(video.decode(rows["priors"]["video"]), video.decode(pipeline["priors"]["video"]))
    assert np.array_equal(unpack(rows["priors"]["valid"]), unpack(pipeline["priors"]["valid"]))
    assert rows["priors"]["coverage"] == pipeline["priors"]["coverage"] > 0.3
    for column in DIRECTIONS:
        assert np.array_equal(unpack(rows["directions"][column]), unpack(pipeline["directions"][column])), column


def test_the_same_frames_as_the_generator(answered, pipeline):
    record, out = answered
    clip = {**pipeline["clips"], "clip_id": record["window"]["clip_id"]}
    assert record["prompt_source"] == "template"
    rows = {"clips": clip, "directions": pipeline["directions"], "latents": made_of_text(pipeline, record["prompt"])}
    stage = generations.stage(PROFILE, "base")
    made = stage.worker()({table: {name: rows[table].get(name) for name in ("clip_id", *names)} for table, names in stage.reads.items()})
    frames = video.decode(made["video"])
    assert made["seed"] == record["noise_seed"]
    assert hashlib.sha256(video.for_browser(frames, clip["fps"])).hexdigest() == record["video"]["sha256"]
    seen = video.decode(out.read_bytes())
    assert seen.shape == frames.shape == (9, 128, 128, 3)
    assert frames.std() > 20


def made_of_text(pipeline: dict, text: str) -> dict:
    stage = latents.stage(PROFILE)
    made = stage.worker()({**{table: pipeline[table] for table in stage.reads}, "captions": {"text": text}})
    return {row["name"]: row["tensor"] for row in made}


def test_the_record_says_what_made_it(answered, files):
    record, out = answered
    assert json.loads(out.with_suffix(".json").read_text()) == json.loads(json.dumps(record))
    assert record["video"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (record["adapter"], record["adapter_sha256"]) == ("base", "")
    assert record["base_revision"] == bases.revision(PROFILE.model)
    assert (record["steps"], record["guidance"], record["gga"], record["mask"], record["lambda_g"]) == (1, 1.0, "paper", "coverage", 1.0)
    assert record["inputs"]["exo"]["sha256"] == hashlib.sha256(files["exo"].read_bytes()).hexdigest()
    assert record["depth"]["monocular"]["kind"] == "range"
    assert len(record["depth"]["monocular"]["revision"]) == 32
    assert record["depth"]["files"] == str(files["depth"])
    assert Camera.from_dict(record["cameras"]["exo"]).width == 224
    assert record["environment"]["torch"] != "not installed"
    assert record["warnings"] == []
    assert record["path"]["lines"] == [2, 26]  # after a comment: frames 0 to 24
    assert record["checks"]["head_in_picture"] == 9
    assert record["checks"]["head_scale"] == pytest.approx(1, abs=0.1)
    assert record["checks"]["still"] > 0.5
    sheet = cv2.imread(record["picture"]["path"])
    assert sheet.shape[0] > 4 * 300  # four rows
    info = video.probe(out)
    assert (info.width, info.height, info.fps, info.frames) == (128, 128, 10.0, 9)


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(answered, files, tmp_path):
    again = in_the_wild.generate(PROFILE, "base", "", in_the_wild.Request(**files), tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == answered[1].read_bytes()
    assert {**again, "video": 0, "picture": 0} == {**answered[0], "video": 0, "picture": 0}
    assert again["picture"]["sha256"] == answered[0]["picture"]["sha256"]
    other = PROFILE.model_copy(update={"generate": PROFILE.generate.model_copy(update={"seed": 7})})
    in_the_wild.generate(other, "base", "", request(files, prompt="A person cooks."), tmp_path / "other.mp4")
    assert (tmp_path / "other.mp4").read_bytes() != answered[1].read_bytes()


def test_an_adapter_is_conditioned_as_in_its_training(answered, files, tmp_path):
    folder = wild_request.adapter(tmp_path / "adapter", PROFILE)
    record = in_the_wild.generate(PROFILE, "mine@v3", str(folder), in_the_wild.Request(**files), tmp_path / "ego.mp4")
    assert (record["adapter"], record["gga"], record["mask"]) == ("mine@v3", "off", "paper")
    assert record["adapter_sha256"] == hashlib.sha256((folder / adapters.WEIGHTS).read_bytes()).hexdigest()
    assert record["noise_seed"] == answered[0]["noise_seed"]
    assert record["video"]["sha256"] != answered[0]["video"]["sha256"]


def test_a_video_a_path_a_field_of_view_and_a_network_are_enough(files, tmp_path):
    network = test_estimators.tiny_depth_anything(tmp_path / "network", "metric")  # random: some wall, ten metres away
    (tmp_path / "path.txt").write_text("".join(f"{n / 10} 0.5 {n / 120} 2 0 0 0 1\n" for n in range(13)))
    profile = Profile.load("local", [f"depth.monocular={network}", "depth.height=64", "depth.max_head_scale=100"])
    asked = in_the_wild.Request(exo=files["exo"], trajectory=tmp_path / "path.txt", fov=80.0, start=0.1, prompt="A person cooks.")
    record = in_the_wild.generate(profile, "base", "", asked, tmp_path / "ego.mp4")
    assert record["coverage"] > 0.1
    assert record["depth"]["monocular"]["name"] == network
    assert record["window"]["start"] == 3
    assert (record["prompt"], record["prompt_source"]) == ("A person cooks.", "given")
    assert record["cameras"]["ego"]["turns"] == 1  # the typical Aria lens


def test_real_clips_with_the_depth_of_a_network_beside_them(real_data, tmp_path):
    profile = Profile.load("local", ["clips.exo_cameras=1", "clips.frames=5", "clips.min_overlap=0.0"])
    (item, *_) = discover([real_data / "egox"])
    take = takes.stage(profile).worker()(item.row)
    clip = next(row for row in clips.stage(profile).worker()({"takes": take}) if row["pose_coverage"] == 1)
    asked = in_the_wild.Request(**wild_request.write(tmp_path, take, clip))
    told = in_the_wild.judged(profile, asked)[1]
    assert told["warnings"] == []
    assert 0.67 < told["checks"]["head_scale"] < 1.5
    row = in_the_wild.clip_of(profile.clips, asked)
    assert 0.6 < row["depth_focal"] < 0.8  # EgoX's networks took the pictures for a pinhole's
    assert row["depth_kind"] == clip["depth_kind"] == "pinhole-z"
    asked, known = (made_of(r, depth, priors, directions) for r in (row, clip))
    assert np.array_equal(video.decode(asked["priors"]["video"]), video.decode(known["priors"]["video"]))
    assert asked["priors"]["coverage"] > 0.3
    for column in DIRECTIONS:
        assert np.array_equal(unpack(asked["directions"][column]), unpack(known["directions"][column])), column


def test_without_a_world_the_path_is_in_the_exo_cameras_frame(files, pipeline, tmp_path):
    seconds, T, _ = read_tum(files["trajectory"])
    T_exo_world = inverse(torch.tensor(json.loads(files["exo_pose"].read_text()), dtype=torch.float64))
    (tmp_path / "path.txt").write_text(wild_request.tum(seconds.tolist(), T_exo_world @ T))
    row = in_the_wild.clip_of(PROFILE.clips, request(files, trajectory=tmp_path / "path.txt", exo_pose=None))
    rows = made_of(row, depth, priors)
    same = unpack(rows["priors"]["valid"]) == unpack(pipeline["priors"]["valid"])
    assert same.mean() > 0.999  # float32 rounds otherwise in another world
    seen, known = (video.decode(r["priors"]["video"]).astype(int) for r in (rows, pipeline))
    assert np.abs(seen - known).mean() < 0.5


def test_the_path_is_that_of_the_upright_picture():
    lens = aria_rgb(448)
    ahead, right, down = torch.tensor([[0, 0, 1, 1], [0.3, 0, 1, 1], [0, 0.3, 1, 1]], dtype=torch.float64)
    T_sensor_shown = inverse(T_shown_sensor(lens.turns))
    middle, at_right, at_down = (lens.project((T_sensor_shown @ point)[:3])[0] for point in (ahead, right, down))
    assert (at_right - middle).tolist() == pytest.approx([57, 0], abs=3)
    assert (at_down - middle).tolist() == pytest.approx([0, 57], abs=3)


def test_the_field_of_view_is_that_of_the_whole_picture(files):
    info = video.probe(files["exo"])
    asked = request(files, fov=90.0, camera=None)
    exo = views.exo_camera(in_the_wild.clip_of(PROFILE.clips, asked))
    whole = PROFILE.clips.exo_size[0] / in_the_wild.clip_of(PROFILE.clips, asked)["exo_crop"][2] * info.width
    assert exo.model == "pinhole"
    assert exo.params[0] == pytest.approx(whole / 2)  # the tangent of 45 degrees is 1
    assert exo.params[2] == pytest.approx((exo.width - 1) / 2, abs=0.5)


def test_poses_between_and_beyond():
    seconds = torch.tensor([0.0, 1.0], dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    T[1, :2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    T[1, :3, 3] = torch.tensor([2.0, 0.0, 4.0])
    found = poses_at(seconds, T, torch.tensor([0.0, 0.5, 1.0005, 1.01, -0.01], dtype=torch.float64))
    half = 0.5**0.5
    assert torch.allclose(found[1, :3, :3], torch.tensor([[half, -half, 0], [half, half, 0], [0, 0, 1]], dtype=torch.float64))
    assert found[1, :3, 3].tolist() == [1.0, 0.0, 2.0]
    assert torch.allclose(found[2], T[1])
    assert found[3:].isnan().all()


LACKS = {
    "depth is missing": {"depth": None},
    "the exo lens: either": {"camera": None},
    "--camera) is asked for": {"fov": 90.0},
    "a field of view between 0 and 170": {"camera": None, "fov": 180.0},
    "trajectory: no file": {"trajectory": Path("/nowhere/path.txt")},
    "frames 33 to 57 of 36": {"start": 1.1},
    "frames -3 to": {"start": -0.1},
}


@pytest.mark.parametrize("words", LACKS)
def test_a_request_that_cannot_be_is_told_so(words, files, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        in_the_wild.generate(PROFILE, "base", "", request(files, **LACKS[words]), tmp_path / "ego.mp4")
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_named(files, tmp_path):
    def told(out: Path = tmp_path / "ego.mp4", **changes) -> str:
        with pytest.raises(ValueError) as error:  # noqa: PT011  the words are looked at where it is called
            in_the_wild.generate(PROFILE, "base", "", request(files, **changes), out)
        return str(error.value)

    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    seconds, T, _ = read_tum(files["trajectory"])
    late = written("late.txt", wild_request.tum((seconds[5:]).tolist(), T[5:]))
    assert "does not reach frame 0 of cam" in told(trajectory=late)
    assert "2 of the clip's 9 frames have no pose" in told(trajectory=late)
    T[:, :3, 3] *= 1000
    assert "pose_units" in told(trajectory=written("mm.txt", wild_request.tum(seconds.tolist(), T)))
    away = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    away[:, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    away[:, 2, 3] = -20.0  # behind the exo camera, looking away from all that it sees
    path = written("away.txt", wild_request.tum([0.0, 1.2], away))
    assert told(trajectory=path, exo_pose=None).startswith("priors: prior_empty, the rendered prior covers less")
    assert "is of 448x448" in told(camera=files["ego_camera"])
    assert "ego picture is square" in told(ego_camera=files["camera"])
    assert "no camera: " in told(camera=written("lens.json", '{"model": "pinhole"}'))
    bent = {**json.loads(files["camera"].read_text()), "max_theta": "wide"}
    assert "no camera: " in told(camera=written("lens.json", json.dumps(bent)))
    assert "calibration_invalid" in told(camera=written("lens.json", "{"))
    assert "rotation is not orthonormal" in told(exo_pose=written("pose.json", str([[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])))
    assert "depth: depth_sidecar_invalid" in told(depth=tmp_path)
    assert "video_undecodable" in told(exo=written("exo.mp4", "no video"))
    assert "would replace what the request reads" in told(out=files["camera"].with_suffix(".mp4"))
    assert "asked for" in told(out=tmp_path / "ego.avi")
    assert "--depth-focal goes with" in told(depth_focal=0.7)
    assert not (tmp_path / "ego.mp4").exists()


def other(name: str, files: dict, folder: Path) -> dict:
    """The request with one thing wrong."""
    seconds, T, _ = read_tum(files["trajectory"])
    T_world_exo = torch.tensor(json.loads(files["exo_pose"].read_text()), dtype=torch.float64)
    w_first = T.clone()
    w_first[:, :3, :3] = torch.from_numpy(Rotation.from_quat(np.roll(Rotation.from_matrix(T[:, :3, :3]).as_quat(), 1, axis=1)).as_matrix())
    paths = {
        "sensor poses": T @ T_shown_sensor(1),
        "upside down": T @ T_shown_sensor(2),
        "w first": inverse(T_world_exo) @ w_first,
        "inverse poses": inverse(inverse(T_world_exo) @ T),
        "feet": (inverse(T_world_exo) @ T) * torch.tensor([1, 1, 1, 3.28], dtype=torch.float64),
    }
    paths["feet"][:, 3, 3] = 1
    if name in paths:
        (folder / "path.txt").write_text(wild_request.tum(seconds.tolist(), paths[name]))
        return {"trajectory": folder / "path.txt", **({"exo_pose": None} if name in ("w first", "inverse poses", "feet") else {})}
    if name == "frame numbers":
        (folder / "path.txt").write_text(wild_request.tum((seconds * 30).tolist(), T))
        return {"trajectory": folder / "path.txt"}
    if name == "field of view":
        return {"camera": None, "fov": 40.0}
    with np.load(files["depth"]) as arrays:
        by = {"depth in millimetres": 1000.0, "depth in feet": 3.28}.get(name, 1.0)
        flip = (lambda a: a[..., ::-1, ::-1]) if name == "depth of another view" else (lambda a: a)
        np.savez(folder / "depth.npz", **{key: flip(value) * np.float32(by) for key, value in arrays.items()})
    return {"depth": folder / "depth.npz"}


@pytest.mark.parametrize(
    ("name", "refused", "words"),
    [
        ("sensor poses", False, "the head lies on its side"),
        ("upside down", False, "the head is upside down"),
        ("w first", False, "the head is upside down"),
        ("inverse poses", False, "invert them"),
        ("feet", False, "the depth is not checked"),
        ("frame numbers", True, "look like frame numbers"),
        ("field of view", False, "the head is not in the exo picture"),
        ("depth in millimetres", True, "millimetres"),
        ("depth in feet", True, "depth: depth_scale"),
        ("depth of another view", True, "depth"),
    ],
)
def test_inputs_that_are_wrong_are_refused_or_warned_of(name, refused, words, files, tmp_path):
    asked = request(files, **other(name, files, tmp_path))
    try:
        told = "; ".join(in_the_wild.judged(PROFILE, asked)[1]["warnings"])
    except ValueError as error:
        told = f"refused: {error}"
    assert words in told
    assert told.startswith("refused") or not refused


def test_a_camera_that_moves_is_refused(files, tmp_path):
    frames = video.read(files["exo"], range(25))
    panned = np.stack([np.roll(frame, 3 * n, axis=1) for n, frame in enumerate(frames)])
    (tmp_path / "exo.mp4").write_bytes(video.encode(panned, 30))
    with pytest.raises(
        ValueError, match=r"exo_camera_moves: exo.mp4: \d+% of what the picture shows is elsewhere in frame 3 and \d% in place"
    ):
        in_the_wild.judged(PROFILE, request(files, exo=tmp_path / "exo.mp4"))
