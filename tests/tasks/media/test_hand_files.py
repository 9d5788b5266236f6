"""Hands as data sets and other programs write them down: read where they are whole, named where they are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.kernels.poses import inverse, transform
from egomill.schemas.config import Hands
from egomill.schemas.tensors import pack
from egomill.tasks.media import hand_files, hand_places
from egomill.tasks.media.hand_files import NAMES, SIDES
from egomill.tasks.media.untrusted import Bad
from tests.kernels import hands

FRAMES = np.array([0, 3, 6])
MANUAL, NPZ = {"egoexo4d": {"manual": "manual.json"}}, {"files": {"cam2": "cam2.npz"}}
MIXED = [0, 20, 1, 19, 2, 18, 3, 17, 4, 9, 5, 16, 6, 15, 7, 14, 8, 13, 10, 12, 11]  # no order of joints
ANNOTATED, FILES = Hands(), Hands(source="files")


def two_hands() -> torch.Tensor:
    """[2, 21, 3] half a metre before the camera."""
    return hands.two() + torch.tensor([0.0, 0.0, 0.5])


def clip_of(root: Path, where: dict, **more: object) -> dict:
    """The columns of a clip that `read` asks for; the cameras stand apart."""
    T_world_exo, T_world_ego = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64).repeat(len(FRAMES), 1, 1)
    T_world_exo[:3, 3], T_world_ego[:, :3, 3] = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.1, -0.2, 0.0])
    poses = {"T_world_exo": pack(T_world_exo.numpy()), "T_world_ego": pack(T_world_ego.numpy())}
    return {"root": str(root), "exo_cam": "cam2", "take_name": "take", "hands": json.dumps({"where": where}), **poses, **more}


def h2o(root: Path, ego: bool = True) -> dict:
    """Both cameras' files of seven frames, in H2O's form, and the clip that reads them."""
    for cam in ("cam2", *(("cam4",) if ego else ())):
        (root / cam).mkdir(parents=True)
        for number in range(7):
            (root / cam / f"{number:06d}.txt").write_text(line(two_hands().numpy()))
    return clip_of(root, {"h2o": {"cam2": "cam2", **({"cam4": "cam4"} if ego else {})}})


def line(joints: np.ndarray, flags: tuple[float, float] = (1, 1)) -> str:
    return " ".join(f"{flag:g} " + " ".join(f"{v:.6f}" for v in hand.flatten()) for flag, hand in zip(flags, joints, strict=True))


def annotation(joints: np.ndarray, views: int = 4) -> dict:
    """A frame's entry of Ego-Exo4D."""
    point = {
        f"{side}_{name}": {**dict(zip("xyz", map(float, joints[h, j]), strict=True)), "num_views_for_3d": views}
        for h, side in enumerate(SIDES)
        for j, name in enumerate(NAMES)
    }
    return {"annotation3D": point, "annotation2D": {}}


def release(root: Path, manual: dict | None = None, automatic: dict | None = None) -> dict:
    where = {}
    for kind, told in (("manual", manual), ("automatic", automatic)):
        if told is not None:
            (root / f"{kind}.json").write_text(json.dumps(told))
            where[kind] = f"{kind}.json"
    return clip_of(root, {"egoexo4d": where})


def npz(root: Path, joints: np.ndarray, **more: np.ndarray) -> dict:
    np.savez(root / "cam2.npz", joints=joints, **more)
    return clip_of(root, NPZ)


def many(frames: int = 7) -> np.ndarray:
    return two_hands().numpy()[None].repeat(frames, axis=0).astype(np.float32)


def test_h2os_files_are_read_in_both_cameras_frames(tmp_path):
    clip = h2o(tmp_path)
    (tmp_path / "cam2" / "000003.txt").write_text(line(two_hands().numpy(), (1, 0)))
    (tmp_path / "cam2" / "000006.txt").unlink()
    found = hand_files.read(clip, FRAMES, ANNOTATED)
    assert torch.allclose(found.exo[0], two_hands().float(), atol=1e-5)
    assert torch.isfinite(found.exo[1, 0]).all()
    assert found.exo[1, 1].isnan().all()  # not annotated
    assert found.exo[2].isnan().all()  # no file
    assert found.ego is not None
    assert torch.isfinite(found.ego).all()
    assert hand_files.seen(found.exo).tolist() == [True, True, False]


def test_joints_of_ego_exo4d_are_in_its_world(tmp_path):
    world = two_hands().double()
    clip = release(tmp_path, {"0": [annotation(world.numpy())], "3": [], "6": [annotation(world.numpy(), views=2)]})
    found = hand_files.read(clip, FRAMES, ANNOTATED)
    T_world_exo = torch.eye(4, dtype=torch.float64)
    T_world_exo[2, 3] = -1
    assert torch.allclose(found.exo[0].double(), transform(inverse(T_world_exo), world.flatten(0, 1)).view_as(world), atol=1e-5)
    assert found.ego is not None
    assert torch.allclose(found.ego[0].double() + torch.tensor([0.1, -0.2, 0.0]).double(), world, atol=1e-5)
    assert found.exo[1].isnan().all()  # an empty list
    assert found.exo[2].isnan().all()  # triangulated by two cameras only


def test_manual_joints_go_before_automatic_ones_and_few_views_are_no_matter_to_those(tmp_path):
    true, guessed = two_hands().numpy(), two_hands().numpy() + 0.01
    clip = release(tmp_path, {"0": [annotation(true)]}, {"0": [annotation(guessed, 1)], "3": [annotation(guessed, 1)]})
    both = hand_files.read(clip, FRAMES, ANNOTATED)
    alone = hand_files.read(clip, FRAMES, Hands(labels="manual"))
    assert torch.allclose(both.exo[0], alone.exo[0])
    assert both.exo[1].isfinite().all()
    assert alone.exo[1].isnan().all()
    assert "manual and automatic" in both.said


def test_a_hand_without_its_wrist_is_dropped(tmp_path):
    entry = annotation(two_hands().numpy())
    del entry["annotation3D"]["left_wrist"]
    found = hand_files.read(release(tmp_path, {"0": [entry]}), FRAMES, ANNOTATED)
    assert found.exo[0, 0].isnan().all()
    assert found.exo[0, 1].isfinite().all()


def test_files_of_other_programs_are_read_by_number_of_frame(tmp_path):
    joints = many()
    joints[:, :, :, 0] += np.arange(7)[:, None, None] / 100
    joints[3, 1] = np.nan
    found = hand_files.read(npz(tmp_path, joints), FRAMES, FILES)
    assert torch.allclose(found.exo, torch.from_numpy(joints[FRAMES]), equal_nan=True)
    assert found.ego is None


def _edited(change: Callable[[dict], object]) -> Callable[[Path], tuple[dict, Hands]]:
    def make(root: Path) -> tuple[dict, Hands]:
        told = {"0": [annotation(two_hands().numpy())], "3": [annotation(two_hands().numpy())]}
        change(told)
        return release(root, told), ANNOTATED

    return make


def _text(text: str) -> Callable[[Path], tuple[dict, Hands]]:
    def make(root: Path) -> tuple[dict, Hands]:
        clip = h2o(root)
        (root / "cam2" / "000003.txt").write_text(text)
        return clip, ANNOTATED

    return make


def _array(joints: np.ndarray) -> Callable[[Path], tuple[dict, Hands]]:
    return lambda root: (npz(root, joints), FILES)


def _bytes(data: bytes, name: str, where: dict, settings: Hands) -> Callable[[Path], tuple[dict, Hands]]:
    def make(root: Path) -> tuple[dict, Hands]:
        (root / name).write_bytes(data)
        return clip_of(root, where), settings

    return make


def _linked(root: Path) -> tuple[dict, Hands]:
    clip = h2o(root / "data")
    (root / "secret.txt").write_text(line(two_hands().numpy()))
    (root / "data" / "cam2" / "000003.txt").unlink()
    os.symlink(root / "secret.txt", root / "data" / "cam2" / "000003.txt")
    return {**clip, "root": str(root / "data")}, ANNOTATED


def _objects(root: Path) -> tuple[dict, Hands]:
    np.savez(root / "cam2.npz", joints=np.array([{"a": 1}], dtype=object))
    return clip_of(root, NPZ), FILES


def _unnamed(root: Path) -> tuple[dict, Hands]:
    np.savez(root / "cam2.npz", hands=many())
    return clip_of(root, NPZ), FILES


def _cut(root: Path) -> tuple[dict, Hands]:
    clip = npz(root, many())
    (root / "cam2.npz").write_bytes((root / "cam2.npz").read_bytes()[:-200])
    return clip, FILES


def _first(told: dict) -> dict:
    return told["0"][0]["annotation3D"]


FAULTS: dict[str, tuple[str, str, Callable[[Path], tuple[dict, Hands]]]] = {
    "no annotation": ("no_hands", "no hand annotations", lambda root: (clip_of(root, {}), ANNOTATED)),
    "no file": ("no_hands", "no hands/take/cam2.npz", lambda root: (clip_of(root, {}), FILES)),
    "a file of another camera": ("no_hands", "cam2.npz", lambda root: (clip_of(root, {"files": {"cam1": "x.npz"}}), FILES)),
    "H2O: another camera's folder": ("no_hands", "cam2 has no", lambda root: (clip_of(root, {"h2o": {"cam1": "cam1"}}), ANNOTATED)),
    "labels that are not there": ("no_hands", "no manual", lambda root: (release(root, None, {"0": []}), Hands(labels="manual"))),
    "found broken by discovery": ("path_outside_root", "out", lambda root: (
        {**clip_of(root, {}), "hands": json.dumps({"fault": ["path_outside_root", "leads out"]})}, ANNOTATED
    )),
    "H2O: too few numbers": ("hands_invalid", "127 numbers", _text(" ".join(["1"] * 127))),
    "H2O: 59 numbers a hand, as MANO's files have": ("hands_invalid", "118 numbers", _text(" ".join(["1"] * 118))),
    "H2O: words": ("hands_invalid", "not numbers", _text(" ".join(["left"] * 128))),
    "H2O: not finite": ("hands_invalid", "not finite", _text(line(two_hands().numpy()).replace("1 ", "1 nan ", 1).rsplit(" ", 1)[0])),
    "H2O: a flag of 2": ("hands_invalid", "a flag", _text(line(two_hands().numpy(), (2, 1)))),
    "H2O: annotated, and all zero": ("hands_invalid", "all its numbers are zero", _text(line(np.zeros((2, 21, 3))))),
    "H2O: empty": ("hands_invalid", "0 numbers", _text("")),
    "H2O: a file of megabytes": ("hands_invalid", "bytes", _text("0 " * 100_000)),
    "H2O: a link that leads out": ("path_outside_root", "000003", _linked),
    "H2O: millimetres": ("hands_invalid", "metres", _text(line(two_hands().numpy() * 1000))),
    "JSON cut short": ("hands_invalid", "manual.json", _bytes(b'{"0": [', "manual.json", MANUAL, ANNOTATED)),
    "JSON with a key twice": ("hands_invalid", "twice", _bytes(
        b'{"0": [], "0": []}', "manual.json", MANUAL, ANNOTATED
    )),
    "a list instead of frames": ("hands_invalid", "by frame", _bytes(
        b"[]", "manual.json", MANUAL, ANNOTATED
    )),
    "a frame that is no number": ("hands_invalid", "is no frame", _edited(lambda told: told.update({"first": []}))),
    "a frame's entry that is no list": ("hands_invalid", "no list", _edited(lambda told: told.update({"3": {"annotation3D": {}}}))),
    "joints that are no dictionary": ("hands_invalid", "no dictionary", _edited(lambda told: told["0"][0].update(annotation3D=[1]))),
    "a joint of no known name": ("hands_invalid", "no joint", _edited(lambda told: _first(told).update(left_palm={"x": 0}))),
    "a joint that is no point": ("hands_invalid", "no point", _edited(lambda told: _first(told).update(left_wrist=[0, 0, 1]))),
    "a joint without z": ("hands_invalid", "left_wrist", _edited(lambda told: _first(told)["left_wrist"].pop("z"))),
    "a joint that is null": ("hands_invalid", "left_wrist", _edited(lambda told: _first(told)["left_wrist"].update(z=None))),
    "views in words": ("hands_invalid", "numbers", _edited(lambda told: _first(told)["left_wrist"].update(num_views_for_3d="many"))),
    "the file is gone": ("file_unusable", "gone.json", lambda root: (clip_of(root, {"egoexo4d": {"manual": "gone.json"}}), ANNOTATED)),
    "no array of that name": ("hands_invalid", "no array", _unnamed),
    "20 joints": ("hands_invalid", "no row of", _array(many()[:, :, :20])),
    "one hand": ("hands_invalid", "no row of", _array(many()[:, 0])),
    "whole numbers": ("hands_invalid", "floats", _array(many().astype(np.int32))),
    "fewer frames than the clip": ("hands_invalid", "ends with frame 6", _array(many(5))),
    "infinite": ("hands_invalid", "infinite", _array(np.where(np.arange(7)[:, None, None, None] == 3, np.inf, many()))),
    "centimetres": ("hands_invalid", "metres", _array(many() * 100)),
    "pixels": ("hands_invalid", "metres", _array(many() * 700)),
    "MediaPipe's own metres times ten": ("hands_invalid", "wrist to middle knuckle", _array(many() * np.float32(3))),
    "a pickle": ("hands_invalid", "object", _objects),
    "no zip": ("hands_invalid", "cam2.npz", _bytes(b"PK nothing", "cam2.npz", NPZ, FILES)),
    "cut short": ("hands_invalid", "cam2.npz", _cut),
    "a path that leads out": ("path_outside_root", "../x.npz", lambda root: (clip_of(root, {"files": {"cam2": "../x.npz"}}), FILES)),
    "joints in another order": ("hands_invalid", "usual order", _array(many()[:, :, MIXED])),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_hands_is_one_named_rejection(tmp_path, fault):
    reason, words, make = FAULTS[fault]
    clip, settings = make(tmp_path)
    with pytest.raises(Bad) as caught:
        hand_files.read(clip, FRAMES, settings)
    assert caught.value.rejected.reason == reason
    assert words in caught.value.rejected.detail


def test_what_there_is_is_found_without_opening_it(tmp_path):
    (tmp_path / "hands" / "take").mkdir(parents=True)
    (tmp_path / "hands" / "take" / "cam01.npz").write_bytes(b"anything")
    (tmp_path / "annotations/ego_pose/val/hand/automatic").mkdir(parents=True)
    (tmp_path / "annotations/ego_pose/val/hand/automatic/uid.json").write_text("anything")
    row = {"root": str(tmp_path), "take_name": "take", "take_uid": "uid", "layout": "egoexo4d", "entry": {}}
    found = hand_places.there(row)
    assert found == {
        "egoexo4d": {"automatic": "annotations/ego_pose/val/hand/automatic/uid.json"},
        "files": {"cam01": "hands/take/cam01.npz"},
    }
    assert hand_places.files_of(found) == ["annotations/ego_pose/val/hand/automatic/uid.json", "hands/take/cam01.npz"]
    assert hand_places.there({**row, "take_name": "other", "take_uid": "other"}) == {}
