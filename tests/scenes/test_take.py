"""Simulated takes have the release's files and keys, do not depend on how many there are, and say what was rendered."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from egomill.kernels.cameras import Camera, aria_sensor_to_stored, gopro
from egomill.kernels.exo_lens import exo_lens
from egomill.scenes.render import lattice, picture, render
from egomill.scenes.take import load_depth, simulate, write_take
from egomill.scenes.world import EXO

SECONDS = 0.2


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    out = tmp_path_factory.mktemp("sim")
    seen = []
    records = simulate(out, 1, seed=2, seconds=SECONDS, progress=lambda *step: seen.append(step))
    assert seen == [(1, 1, records[0]["take_name"])]
    return out, records[0]


def test_layout(release):
    out, record = release
    name, uid = record["take_name"], record["take_uid"]
    split = json.loads((out / "annotations/splits.json").read_text())["take_uid_to_split"][uid]
    videos = f"takes/{name}/frame_aligned_videos/downscaled/448"
    assert set(digests(out)) == {
        "takes.json",
        "annotations/splits.json",
        *(f"annotations/atomic_descriptions_{s}.json" for s in ("train", "val", "test")),
        f"annotations/ego_pose/{split}/camera_pose/{uid}.json",
        *(f"{videos}/{cam}.mp4" for cam in EXO),
        f"{videos}/aria01_214-1.mp4",
        f"takes/{name}/trajectory/online_calibration.jsonl",
        "sidecar/README.txt",
        *(f"sidecar/{name}/{cam}.npz" for cam in EXO),
    }
    assert json.loads((out / "takes.json").read_text()) == [record]
    assert record["root_dir"] == f"takes/{name}"
    assert [c["cam_id"] for c in record["capture"]["cameras"] if c["is_ego"]] == ["aria01"]
    for streams in record["frame_aligned_videos"].values():
        for stream in streams.values():
            assert (out / record["root_dir"] / stream["relative_path"]).is_file()
    texts = json.loads((out / f"annotations/atomic_descriptions_{split}.json").read_text())["annotations"]
    assert set(texts) == {uid}


def test_videos_and_poses(release):
    out, record = release
    frames = round(SECONDS * 30)
    folder = out / record["root_dir"] / "frame_aligned_videos/downscaled/448"
    for file, size in (("cam02.mp4", (796, 448)), ("aria01_214-1.mp4", (448, 448))):
        with av.open(str(folder / file)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate, stream.pix_fmt) == ("h264", 30, "yuv420p")
            assert [(f.width, f.height) for f in container.decode(stream)] == [size] * frames
    pose = json.loads(next((out / "annotations/ego_pose").rglob("*.json")).read_text())
    assert set(pose) == {"metadata", "aria01", *EXO}
    assert list(pose["aria01"]["camera_extrinsics"]) == [str(k) for k in range(frames - 2)]
    for Rt in (pose["cam03"]["camera_extrinsics"], pose["aria01"]["camera_extrinsics"]["1"]):
        R = np.array(Rt)[:, :3]
        assert np.abs(R @ R.T - np.eye(3)).max() < 1e-9
        assert np.linalg.det(R) > 0


def test_the_written_calibration_is_the_one_rendered_with(release):
    """Rendering again from what the files say gives the sidecar's depth."""
    import egomill.scenes.take as take

    out, record = release
    rng = np.random.default_rng([2, 0, 5])
    scene = take.make_scene(int(rng.integers(2**31)), SECONDS + 1.0, (0.0, SECONDS))
    pose = json.loads(next((out / "annotations/ego_pose").rglob("*.json")).read_text())["cam01"]
    K = np.array(pose["camera_intrinsics"])
    camera = exo_lens(K.tolist(), pose["distortion_coeffs"]).rescale(796, 448)
    T_world_cam = np.linalg.inv(np.vstack([pose["camera_extrinsics"], (0, 0, 0, 1)]))
    grid = lattice(camera, False)
    _, depth, dynamic = picture(scene, grid, render(scene, grid, T_world_cam, scene.moment(3 / 30)))
    stored, stored_dynamic = load_depth(out / "sidecar" / record["take_name"] / "cam01.npz")
    assert stored.shape == (6, 448, 796)
    assert (np.abs(stored[3] - depth) < 0.005).mean() > 0.999
    assert (stored_dynamic[3] != dynamic).mean() < 0.001
    assert dynamic.any()

    line = json.loads((out / record["root_dir"] / "trajectory/online_calibration.jsonl").read_text().splitlines()[0])
    by_label = {c["Label"]: c["Projection"] for c in line["CameraCalibrations"]}
    assert set(by_label) == {"camera-slam-left", "camera-slam-right", "camera-rgb"}
    assert all(p["Name"] == "FisheyeRadTanThinPrism" and len(p["Params"]) == 15 for p in by_label.values())
    f, *rest = by_label["camera-rgb"]["Params"]
    ego = aria_sensor_to_stored(Camera("fisheye624", (f, f, *rest), 2880, 2880))
    assert (ego.width, ego.height, ego.turns) == (448, 448, 1)
    assert 185 < ego.params[0] < 200
    assert 0.9 < camera.params[0] / gopro().params[0] < 1.1


def test_more_takes_leave_the_first_as_they_are(release, tmp_path):
    out, record = release
    name = record["take_name"]
    write_take(tmp_path, 2, 1, SECONDS)
    write_take(tmp_path, 2, 0, SECONDS)  # in another order, in another place: the same bytes
    ours = digests(out / "takes" / name) | digests(out / "sidecar" / name)
    assert digests(tmp_path / "takes" / name) | digests(tmp_path / "sidecar" / name) == ours
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "takes").rglob("*.mp4")}
    records = simulate(tmp_path, 2, seed=2, seconds=SECONDS)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "takes").rglob("*.mp4")} == stamps
    assert records[0] == record
    assert len({r["take_uid"] for r in records}) == 2
    with pytest.raises(ValueError, match="another seed"):
        write_take(tmp_path, 2, 0, SECONDS * 2)


def test_nothing_to_simulate(tmp_path):
    with pytest.raises(ValueError, match="nothing to simulate"):
        simulate(tmp_path, 0, seed=1)
