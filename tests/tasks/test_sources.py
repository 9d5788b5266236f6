"""Discovery finds every take that is on disk, links it by what files say and never by what names look like, and stays inside its folder."""

import json
import os
import shutil

import pytest
from tiny_release import change, put, write_egox, write_release, write_take

from egomill.tasks.sources import _hold_one_out, discover, task_of
from egomill.tasks.untrusted import Bad, inside, load_json


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_release(root, takes=3)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(made, tmp_path / "release")


def rows(*roots):
    return {item.key: item.row for item in discover(list(roots))}


def test_a_release_with_its_indices(root):
    found = rows(root)
    assert list(found) == ["uid-0", "uid-1", "uid-2"]
    row = found["uid-0"]
    assert (row["take_name"], row["split"], row["task"], row["fault"]) == ("site_bike_00_1", "train", "Fixing a bike", None)
    assert found["uid-2"]["split"] == "test"
    assert [d["text"] for d in row["descriptions"]] == ["C picks up a wrench.", "C turns a bolt."]
    names = sorted(os.path.basename(f) for f in row["files"])
    assert names == ["aria01_214-1.mp4", "cam01.mp4", "cam02.mp4", "online_calibration.jsonl", "uid-0.json"]


def test_walking_where_takes_json_is_absent(root):
    listed = rows(root)
    (root / "takes.json").unlink()
    (root / "annotations" / "splits.json").unlink()
    walked = rows(root)
    assert list(walked) == list(listed)
    assert [r["split"] for r in walked.values()] == ["train", "train", "test"]  # from the annotation's folder
    assert walked["uid-0"]["task"] == "bike"


def test_uids_come_from_metadata_and_not_from_names_that_look_alike(root):
    (root / "takes.json").unlink()
    shutil.copytree(root / "takes" / "site_bike_00_1", root / "takes" / "site_bike_00_2")
    fault = rows(root)["site_bike_00_2"]["fault"]
    assert fault[0] == "no_camera_pose"
    assert "0 annotations name take site_bike_00_2" in fault[1]


def test_other_names_of_cameras_and_glasses(tmp_path):
    put(tmp_path / "takes.json", [write_take(tmp_path, "upenn_dance_1", "u", cams=("gp01", "gp02"), aria="aria03")])
    names = {os.path.basename(f) for f in rows(tmp_path)["u"]["files"]}
    assert {"gp01.mp4", "gp02.mp4", "aria03_214-1.mp4"} < names


def test_takes_that_nobody_downloaded_are_no_takes(root):
    change(root / "takes.json", lambda takes: takes.append({"take_uid": "far", "take_name": "far_1", "root_dir": "takes/far_1"}))
    assert "far" not in rows(root)


def test_digests_follow_files_and_indices(root):
    def digests():
        return {item.key: item.digest for item in discover([root])}

    before = digests()
    assert digests() == before
    os.utime(next((root / "takes" / "site_bike_00_1").rglob("cam01.mp4")), ns=(1, 1))
    touched = digests()
    assert [k for k in before if touched[k] != before[k]] == ["uid-0"]
    change(root / "takes.json", lambda takes: takes[1].update(task_name="Another"))
    assert [k for k in before if digests()[k] != touched[k]] == ["uid-1"]


def test_the_second_take_of_a_uid_is_marked(root, tmp_path):
    other = shutil.copytree(root, tmp_path / "other")
    items = discover([root, other])
    assert len(items) == 6
    assert len({item.key for item in items}) == 6
    twins = items[3:]
    assert all(item.row["fault"][0] == "duplicate_take_uid" and item.key.startswith("uid-") and "#" in item.key for item in twins)


def test_paths_that_lead_out(root, tmp_path):
    secret = tmp_path / "secret"
    write_take(secret, "s", "s")
    change(root / "takes.json", lambda takes: takes[0].update(root_dir="../secret/takes/s"))
    link = next((root / "takes" / "site_bike_01_1").rglob("cam01.mp4"))
    link.unlink()
    link.symlink_to(secret / "takes/s/frame_aligned_videos/downscaled/448/cam01.mp4")
    found = rows(root)
    assert found["uid-0"]["fault"][0] == "path_outside_root"
    assert found["uid-1"]["fault"][0] == "path_outside_root"
    assert found["uid-2"]["fault"] is None
    assert not found["uid-0"]["files"]
    assert not found["uid-1"]["files"]


def test_an_unreadable_index_faults_every_take(root):
    (root / "annotations" / "splits.json").write_text('{"take_uid_to_split": {"uid-0": "train", "uid-0": "test"}}')
    found = rows(root)
    assert len(found) == 3
    assert all(row["fault"][0] == "take_unreadable" and "twice" in row["fault"][1] for row in found.values())


def test_annotations_in_two_splits_are_no_guess(root):
    (root / "annotations" / "splits.json").unlink()
    poses = root / "annotations" / "ego_pose"
    shutil.copy(poses / "train/camera_pose/uid-0.json", poses / "test/camera_pose/uid-0.json")
    assert rows(root)["uid-0"]["fault"] == ["split_invalid", "annotated in test and train"]


def test_egox_examples(tmp_path):
    write_egox(tmp_path)
    (row,) = rows(tmp_path).values()
    assert (row["take_uid"], row["task"], row["fault"]) == ("site_cooking_3_100_140", "cooking", None)
    assert len(row["files"]) == 42
    assert row["descriptions"] == [
        {"text": "[Exo view] **Scene Overview:** A kitchen.", "timestamp": 0.0}
    ]  # the ego half may have seen the truth
    change(tmp_path / "meta.json", lambda meta: meta["test_datasets"].append({"exo_path": "/etc/passwd"}))
    change(tmp_path / "meta.json", lambda meta: meta["test_datasets"].append({"prompt": 3}))
    faults = [item.row["fault"] for item in discover([tmp_path])]
    assert [f and f[0] for f in faults] == [None, "path_outside_root", "take_unreadable"]


def test_a_folder_that_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match="no data set"):
        discover([tmp_path])
    put(tmp_path / "meta.json", {"train": []})
    with pytest.raises(ValueError, match="no list of EgoX takes"):
        discover([tmp_path])


@pytest.mark.parametrize(("name", "task"), [("cmu_bike08_2", "bike"), ("iiith_cooking_57_2_2451_2499", "cooking"), ("x", "")])
def test_task_of(name, task):
    assert task_of(name) == task


def test_json_is_strict(tmp_path):
    for text in ("{", '{"a": 1, "a": 2}', "[" * 100_000, "\xff", '["\\ud800"]'):
        (tmp_path / "x.json").write_text(text, encoding="latin-1")
        with pytest.raises(Bad):
            load_json(tmp_path / "x.json", "take_unreadable")
    (tmp_path / "x.json").write_text(json.dumps([0] * 100))
    with pytest.raises(Bad, match="more than 50"):
        load_json(tmp_path / "x.json", "take_unreadable", limit=50)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", None, 3, "a\0b"])
def test_inside(tmp_path, path):
    with pytest.raises(Bad, match="path_outside_root"):
        inside(tmp_path, path)


def test_a_data_set_without_any_split_keeps_one_take_apart():
    rows = [{"take_uid": f"u{i}", "split": ""} for i in range(5)]
    _hold_one_out(rows)
    assert sorted(row["split"] for row in rows) == ["", "", "", "", "held-out"]
    apart = next(row["take_uid"] for row in rows if row["split"])
    again = [{"take_uid": f"u{i}", "split": ""} for i in reversed(range(5))]
    _hold_one_out(again)
    assert next(row["take_uid"] for row in again if row["split"]) == apart
    official = [{"take_uid": "a", "split": "train"}, {"take_uid": "b", "split": ""}]
    _hold_one_out(official)
    assert [row["split"] for row in official] == ["train", ""]
