"""Discovery finds every take that is on disk, links it by what files say and never by what names look like, and stays inside its folder."""

import json
import os
import shutil

import pytest

from egomill.tasks.media.indices import task_of
from egomill.tasks.media.sources import _hold_one_out, discover
from egomill.tasks.media.untrusted import Bad, inside, load_json
from tests.tasks.tiny_release import change, put, write_egox, write_release, write_take


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
    lens = next((root / "takes" / "site_bike_02_1").rglob("online_calibration.jsonl"))
    lens.unlink()
    lens.symlink_to(secret / "takes/s/trajectory/online_calibration.jsonl")
    found = rows(root)
    assert found["uid-0"]["fault"][0] == "path_outside_root"
    assert found["uid-1"]["fault"] is None  # there is another camera
    (((barred, (reason, detail))),) = found["uid-1"]["barred"].items()
    assert (barred, reason) == (link.relative_to(root).as_posix(), "path_outside_root")
    assert detail.endswith("--allow FOLDER")
    assert found["uid-2"]["fault"][0] == "path_outside_root"
    assert not found["uid-0"]["files"]
    assert not found["uid-2"]["files"]


def hub(folder, tmp_path):
    """The files of a folder as a hub's cache keeps them: links in snapshots/ to blobs beside it, which are named by content. And back."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(os.path.relpath(blobs / f"{number:040x}", path.parent))
    return blobs


def test_links_lead_where_the_user_allows_and_nowhere_else(root, tmp_path):
    before = rows(root)
    scratch = tmp_path / "scratch" / "far" / "site_bike_01_1"
    scratch.parent.mkdir(parents=True)
    shutil.move(root / "takes" / "site_bike_01_1", scratch)
    (root / "takes" / "site_bike_01_1").symlink_to(scratch)
    blobs = hub(root, tmp_path)
    assert all(row["fault"] for row in rows(root).values())
    assert "--allow" in next(iter(rows(root).values()))["fault"][1]
    assert all(item.row["fault"] for item in discover([root], [str(tmp_path / "scratch")]))  # the indices lie in blobs
    half = {item.key: item.row["fault"] for item in discover([root], [str(blobs)])}
    assert {uid: fault and fault[0] for uid, fault in half.items()} == {"uid-0": None, "uid-1": "path_outside_root", "uid-2": None}
    allow = [str(blobs), str(tmp_path / "scratch")]
    items = discover([root], allow)
    assert {item.key: item.row for item in items} == before
    assert [item.digest for item in discover([root], [*allow, str(tmp_path)])] == [item.digest for item in items]
    (blobs / f"{0:040x}").rename(tmp_path / "elsewhere")  # links of links
    (blobs / f"{0:040x}").symlink_to(tmp_path / "elsewhere")
    assert all(item.row["fault"] for item in discover([root], allow))


def test_egox_examples_linked_from_a_hub(tmp_path):
    write_egox(tmp_path / "snapshot")
    blobs = hub(tmp_path / "snapshot", tmp_path)
    (row,) = rows(tmp_path / "snapshot").values()
    assert row["fault"][0] == "path_outside_root"
    assert row["fault"][1].startswith("meta.json leads to")
    (item,) = discover([tmp_path / "snapshot"], [str(blobs)])
    assert (item.row["fault"], len(item.row["files"])) == (None, 42)


def test_of_two_copies_the_whole_one_counts(root, tmp_path):
    begun = shutil.copytree(root, tmp_path / "begun")
    for path in (begun / "takes" / "site_bike_00_1").rglob("aria01_214-1.mp4"):
        path.unlink()
    kept = {item.key: item.row for item in discover([begun, root])}
    assert kept["uid-0"]["root"] == str(root)
    assert kept["uid-1"]["root"] == str(begun)  # alike: the first


def test_takes_without_takes_hide_no_examples(tmp_path):
    write_egox(tmp_path)
    (tmp_path / "takes").mkdir()
    assert [row["layout"] for row in rows(tmp_path).values()] == ["egox"]
    put(tmp_path / "meta.json", {"about": "something else"})
    assert not rows(tmp_path)


def test_of_two_annotations_the_whole_one_counts(root):
    poses = root / "annotations" / "ego_pose"
    (poses / "a" / "camera_pose").mkdir(parents=True)
    (poses / "a" / "camera_pose" / "uid-0.json").write_text('{"metadata": {"take_uid": "uid-0", "take_name": "site_bike_00_1"}, "ca')
    assert rows(root)["uid-0"]["pose"] == "annotations/ego_pose/train/camera_pose/uid-0.json"
    (root / "takes.json").unlink()
    assert rows(root)["uid-0"]["fault"] is None


def test_the_paths_of_the_published_examples(tmp_path):
    """As EgoX's own meta.json tells them: from its repository, in which the examples lie two folders down."""
    write_egox(tmp_path)
    told = "./example/egoexo4D/videos/site_cooking_3_100_140/"
    change(tmp_path / "meta.json", lambda m: m["test_datasets"][0].update(exo_path=told + "exo.mp4", ego_gt_path=told + "ego_GT.mp4"))
    (row,) = rows(tmp_path).values()
    assert row["fault"] is None
    assert row["entry"]["exo_path"] == "videos/site_cooking_3_100_140/exo.mp4"
    assert len(row["files"]) == 42
    repository = tmp_path / "repository"
    (repository / "example").mkdir(parents=True)
    shutil.copy(tmp_path / "meta.json", repository)
    for name in ("videos", "depth_maps"):
        shutil.move(tmp_path / name, repository / "example" / "egoexo4D" / name)
    (row,) = rows(repository).values()  # the index where its paths begin
    assert (row["fault"], len(row["files"])) == (None, 42)
    assert row["entry"]["exo_path"] == "example/egoexo4D/videos/site_cooking_3_100_140/exo.mp4"
    change(repository / "meta.json", lambda m: m["test_datasets"][0].update(exo_path="../../" + told + "exo.mp4"))
    (row,) = rows(repository).values()
    assert row["fault"][0] == "path_outside_root"


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
