"""GenEgo from takes with hands to a gated adapter and a report: the regressor first, then its predictions, then the inpainter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.flows.generate import by_request
from egomill.flows.nightly import nightly
from egomill.flows.rebuild import rebuild
from egomill.kernels.cameras import Camera
from egomill.kernels.poses import inverse, transform
from egomill.schemas.tensors import unpack
from egomill.tasks.keeping import forget, lineage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.media import stills, views
from egomill.tasks.training import adapters, regressor
from tests.flows.conftest import write_small
from tests.kernels import hands
from tests.tasks.tiny_release import FRAMES, exo_pose

SETTINGS = ["clips.hop=0.6", "clips.frames=3", "clips.unseen=0", "clips.exo_size=[64,64]", "clips.ego_size=64", "clips.min_overlap=0"]
SETTINGS += ["priors.min_coverage=0", "hands.source=files", "ego_hands.steps=200", "ego_hands.hidden=32", "ego_hands.batch=2"]
SETTINGS += ["train.steps=4", "train.batch=1", "train.workers=1", "train.checkpoint_every=2"]


def write_hands(root) -> None:
    """Beside every take, the hands as its cameras have them: half a metre before the head, and not the same in all takes."""
    for number, take in enumerate(sorted((root / "takes").iterdir())):
        (root / "hands" / take.name).mkdir(parents=True, exist_ok=True)
        for i, cam in enumerate(("cam01", "cam02")):
            world = hands.two(seed=number) + torch.tensor([0.0, 0.15, 0.45 + 0.01 * number])
            T_exo_world = inverse(torch.from_numpy(exo_pose(away=i > 0)))
            joints = transform(T_exo_world, world.flatten(0, 1)).view_as(world)
            np.savez(root / "hands" / take.name / f"{cam}.npz", joints=np.repeat(joints.numpy()[None].astype(np.float32), FRAMES, axis=0))


@pytest.fixture(scope="module")
def night(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("genego")
    takes = write_small(folder / "in", 3)
    write_hands(takes)
    lake = Lake(str(folder / "lake"))
    told = nightly.fn(lake.uri, [str(takes)], "local-genego", SETTINGS, report=str(folder / "report.html"))
    return lake, takes, told


def test_from_hands_to_a_gated_adapter_and_a_report(night):
    lake, _, told = night
    assert (told["adapter"], told["trained"]) == ("genego@v1", True)
    tracker = Tracker.beside(lake.uri)
    phi = tracker.resolve("ego_hands@candidate")
    known = regressor.revision(phi.folder)
    assert {row["regressor"] for row in lake.read("ego_hands").to_pylist()} == {known}
    clips = lake.read("clips", where="chosen").to_pylist()
    aligned = lake.read("alignments").to_pylist()
    assert {row["source"] for row in aligned} == {"calibrated", "jittered", "predicted"}
    off = {source: [r["centimetres"] for r in aligned if r["source"] == source] for source in ("calibrated", "jittered", "predicted")}
    assert max(off["calibrated"]) < 1e-4
    assert 0.1 < max(off["jittered"]) < 20
    assert len(off["calibrated"]) == len(clips)
    names = {row["name"] for row in lake.read("latents", ["name"]).to_pylist()}
    assert names == {"ego", "text", *(f"{kind}-{source}" for kind in ("sparse", "pose") for source in off)}

    assert set(told["comparison"]["means"]) == {"sparse", "codec", "base", "genego@v1+calibrated", "genego@v1"}
    assert "psnr.hand" in told["comparison"]["means"]["genego@v1"]
    about = adapters.describe(tracker.resolve("genego@v1").folder)
    assert (about["method"], about["reducer"], about["full"]) == ("genego", "trained", True)
    text = Path(told["report"]).read_text()
    assert all(word in text for word in ("exo, hands", "sparse map, predicted, off by", "pose map, predicted", "filled sparse map"))
    assert lineage.of_adapter(lake, tracker, "genego@v1")["adapter"]["regressors"] == [phi.spec]
    assert lineage.of_adapter(lake, tracker, "genego@v1")["release"]["tables"].keys() >= {"hands", "alignments", "sparse", "latents"}


def test_the_next_night_does_nothing_and_a_new_annotation_makes_anew_what_looks_at_hands(night):
    lake, takes, told = night
    again = nightly.fn(lake.uri, [str(takes)], "local-genego", SETTINGS, report=str(takes / "again.html"))
    assert (again["adapter"], again["trained"], again["new"], again["computed"]) == (told["adapter"], False, False, 0)

    before = {t: lake.read(t, ["clip_id", "content", "run_id"]).to_pylist() for t in ("clips", "depth", "hands", "latents")}
    first = sorted((takes / "takes").iterdir())[0].name
    path = takes / "hands" / first / "cam01.npz"
    kept = path.read_bytes()
    with np.load(path) as stored:
        joints = stored["joints"] + np.float32(0.01)
    np.savez(path, joints=joints)
    try:
        built = rebuild.fn(lake.uri, [str(takes)], "local-genego", [*SETTINGS, "genego.given=jittered", 'genego.sources=["jittered"]'])
        assert built["computed"]
        after = {t: lake.read(t, ["clip_id", "content", "run_id"]).to_pylist() for t in before}
        assert {r["content"] for r in after["clips"]} == {r["content"] for r in before["clips"]}
        assert sorted(map(str, after["depth"])) == sorted(map(str, before["depth"]))  # not made again
        assert {r["content"] for r in after["hands"]} != {r["content"] for r in before["hands"]}
    finally:
        path.write_bytes(kept)


def test_a_single_picture_and_hands_are_enough_of_a_request(night, tmp_path):
    lake, _, _ = night
    clip = lake.read("clips", where="chosen").to_pylist()[0]
    exo = views.read_exo(clip)[0]
    (tmp_path / "exo.png").write_bytes(stills.png(exo))
    camera = Camera.from_dict(json.loads(clip["exo_camera"])).rescale(exo.shape[1], exo.shape[0])
    (tmp_path / "camera.json").write_text(json.dumps(camera.to_dict()))
    joints = unpack(lake.rows("hands", [clip["clip_id"]])[0]["joints_exo"])[:1]
    np.savez(tmp_path / "hands.npz", joints=joints)
    np.savez(tmp_path / "depth.npz", static_depth=np.full(exo.shape[:2], 4.0, np.float32))
    files = {"exo": "exo.png", "camera": "camera.json", "hands": "hands.npz", "depth": "depth.npz"}
    request = {name: tmp_path / file for name, file in files.items()}
    asked = [*SETTINGS, "clips.frames=1"]
    answer = by_request(lake.uri, "genego@v1", request, tmp_path / "out.mp4", "local-genego", asked)
    assert answer["video"]["frames"] == 1
    assert answer["path"] is None
    assert "files" in answer["hands"]
    assert (tmp_path / "out.png").is_file()
    np.savez(tmp_path / "hands.npz", joints=np.full_like(joints, np.nan))
    with pytest.raises(ValueError, match=r"hands: no_hands"):
        by_request(lake.uri, "genego@v1", request, tmp_path / "out.mp4", "local-genego", asked)


def test_forgetting_a_take_taints_both_the_regressor_and_the_inpainter(night):
    lake, _, _ = night
    tracker = Tracker.beside(lake.uri)
    uid = lake.read("clips", where="chosen AND split = 'train'").to_pylist()[0]["take_uid"]
    told = forget.forget(lake, tracker, forget.find(lake, uid), "test")
    assert {a["spec"] for a in told["adapters"] if a["trained"]} >= {"ego_hands@v1", "genego@v1"}
    for table in ("hands", "alignments", "sparse", "ego_hands", "scales"):
        assert not [row for row in lake.read(table, ["clip_id"]).to_pylist() if row["clip_id"].startswith(f"{uid}.")]
