"""A request with several exo videos, for a method that takes them: what the stages make of it is what they make of the take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.scenes.take import simulate
from egomill.schemas.config import Profile
from egomill.schemas.tensors import unpack
from egomill.tasks.media import video, views
from egomill.tasks.pages import in_the_wild
from egomill.tasks.stages import view_latents
from tests.tasks.pages import wild_request

torch.set_num_threads(1)  # as in a stage's actor
PROFILE = Profile.load("local-exo2egosyn", ["clips.hop=0.3", "clips.min_overlap=0"])


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> tuple[dict, dict, list[in_the_wild.View]]:
    """The take's clip of four views, what a request takes of it but for the views, and these, in the order of their names."""
    root, folder = tmp_path_factory.mktemp("sim"), tmp_path_factory.mktemp("request")
    simulate(root, 1, seed=5, seconds=1.2)
    take, clip = wild_request.first_clip(root, PROFILE)
    files = wild_request.write(folder, take, clip)
    found = []
    for name, exo in sorted(json.loads(take["exo"]).items()):
        for what, value in (("lens", exo["camera"]), ("pose", exo["T_world_exo"])):
            (folder / f"{name}-{what}.json").write_text(json.dumps(value))
        video_, lens, pose = root / exo["video"], folder / f"{name}-lens.json", folder / f"{name}-pose.json"
        found.append(in_the_wild.View(exo=video_, camera=lens, exo_pose=pose))
    return clip, {name: files[name] for name in ("trajectory", "ego_camera", "start")}, found


def request(files: dict, seen: list[in_the_wild.View], **changes) -> in_the_wild.Request:
    first, *more = seen
    named = {"exo": first.exo, "camera": first.camera, "exo_pose": first.exo_pose}
    return in_the_wild.Request(**{**files, **named, "more": tuple(more), **changes})


def test_what_is_made_of_it_is_what_is_made_of_the_take(asked):
    """In whichever order the videos are named: views stand by their azimuth around the wearer."""
    clip, files, seen = asked
    worker = view_latents.stage(PROFILE).worker()
    wanted = {row["name"]: unpack(row["tensor"]) for row in worker({"clips": clip})}
    for order in (seen, seen[::-1]):
        row = in_the_wild.clip_of(PROFILE.clips, request(files, order))
        assert [view["exo_video"] for view in views.of(row)] == [str(Path(clip["root"]) / view["exo_video"]) for view in views.of(clip)]
        found = {row["name"]: unpack(row["tensor"]) for row in worker({"clips": row})}
        assert found.keys() == wanted.keys() - {"ego"}
        assert found["seen"].all()
        assert np.array_equal(found["exo"], wanted["exo"])
        np.testing.assert_allclose(found["rays"].astype(float), wanted["rays"].astype(float), atol=2e-3)


def test_a_video_comes_out_and_the_record_names_every_view(asked, tmp_path):
    _, files, seen = asked
    record = in_the_wild.generate(PROFILE, "base", "", request(files, seen), tmp_path / "ego.mp4")
    assert video.decode((tmp_path / "ego.mp4").read_bytes()).shape == (9, 128, 128, 3)
    assert len(record["more_views"]) == 3
    named = {record["cameras"]["video"], *(view["video"] for view in record["more_views"])}
    assert named == {str(view.exo) for view in seen}
    assert {"exo", "exo 2", "exo 3", "exo 4", "exo_pose 4"} <= record["inputs"].keys()
    assert "coverage" not in record
    assert (tmp_path / "ego.png").stat().st_size > 1000


def test_what_does_not_go_together_is_named(asked, tmp_path):
    _, files, seen = asked
    alone = in_the_wild.View(exo=seen[1].exo, camera=seen[1].camera)
    with pytest.raises(ValueError, match=r"cam02\.mp4: of several exo views each needs its T_world_exo \(--exo-pose\)"):
        in_the_wild.clip_of(PROFILE.clips, request(files, [seen[0], alone]))
    with pytest.raises(ValueError, match=r"4 exo videos, and the profile takes 1 \(clips.views\)"):
        in_the_wild.clip_of(Profile.load("local").clips, request(files, seen))
    (tmp_path / "slow.mp4").write_bytes(
        video.encode(np.arange(12, dtype=np.uint8)[:, None, None, None] * np.full((1, 448, 796, 3), 20, np.uint8), 10.0)
    )
    slow = in_the_wild.View(exo=tmp_path / "slow.mp4", camera=seen[1].camera, exo_pose=seen[1].exo_pose)
    with pytest.raises(ValueError, match=r"slow\.mp4 has 12 frames at 10 a second, cam01\.mp4 36 at 30"):
        in_the_wild.clip_of(PROFILE.clips, request(files, [seen[0], slow]))
