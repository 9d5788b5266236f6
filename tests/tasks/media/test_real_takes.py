"""The real layouts: an Ego-Exo4D take with a separator in its opening, and EgoX examples. Skips where no real data is named."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from egomill.kernels.cameras import Camera
from egomill.schemas.config import Profile
from egomill.schemas.tensors import unpack
from egomill.tasks.media import views
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import captions, clips, takes, view_latents

torch.set_num_threads(1)
PROFILE = Profile.load("local", ["clips.exo_cameras=1", "clips.hop=3.0"])


def taken(root):
    return [takes.stage(PROFILE).worker()(item.row) for item in discover([root])]


@pytest.fixture(scope="module")
def release(real_data):
    (take,) = taken(real_data / "egoexo4d")
    return take


def test_the_release_take(release):
    assert isinstance(release, dict), release
    assert (release["take_name"], release["split"], release["lens_source"]) == ("cmu_bike08_2", "test", "calibration file")
    assert (release["frames"], release["fps"]) == (634, 30.0)
    assert list(json.loads(release["exo"])) == ["cam01", "cam02", "cam03", "cam04"]
    T = unpack(release["T_world_ego"])
    assert np.isfinite(T[:632]).all()
    assert np.isnan(T[632:]).all()
    assert (-T[:632, 2, 0] > 0).all()  # gravity is -z of the world; up is -x of the landscape sensor
    ego = Camera.from_dict(json.loads(release["ego_camera"]))
    assert ego.params[0] == pytest.approx(194.185, abs=1e-3)
    assert ego.params[2:4] == pytest.approx((227.496, 223.957), abs=1e-3)


def test_the_release_take_is_curated(release):
    rows = clips.stage(PROFILE).worker()({"takes": release})
    assert isinstance(rows, list)
    assert {row["split"] for row in rows} == {"unseen"}
    assert all(row["overlap"] > 0.5 and row["exo_crop"] == [6, 0, 784, 448] for row in rows if row["chosen"])
    assert len({row["exo_cam"] for row in rows}) > 1  # the wearer walks around the bike
    row = next(row for row in rows if row["chosen"])
    assert views.read_exo(row).shape == (9, 128, 224, 3)
    caption = captions.stage(PROFILE).worker()({"clips": row})
    assert caption == {"text": "A person at work: bike.", "source": "template"}


def test_the_take_separator_is_skipped(release):
    alone = {"cam01": json.loads(release["exo"])["cam01"]}  # frame 0 shows a telephone with a QR code
    profile = Profile.load("local", ["clips.exo_cameras=1", "clips.hop=0.2", "clips.min_overlap=0.0"])
    rows = clips.stage(profile).worker()({"takes": {**release, "exo": json.dumps(alone)}})
    assert isinstance(rows, list)
    covered = [row["start"] for row in rows if "covers the lens" in row["why"]]
    assert covered[0] == 0
    assert all(start < 9 or start > 580 for start in covered)  # it comes back at the end
    assert max(covered) > 580


def test_rays_of_four_views_lead_to_what_the_annotation_says_is_there(real_data, release):
    """The exo cameras themselves are known points: where the ego view shows one, the ray of that pixel leads to it, as seen from each."""
    (file,) = (real_data / "egoexo4d" / "annotations").rglob("*.json")
    said = json.loads(file.read_text())
    profile = Profile.load("local-exo2egosyn", ["clips.hop=3.0"])
    rows = clips.stage(profile).worker()({"takes": release})
    whole = [row for row in rows if row["chosen"] and len(views.of(row)) == 4]
    assert whole
    worker, checked = view_latents.stage(profile).worker(), 0
    for row in whole[:3]:
        made = {r["name"]: torch.from_numpy(unpack(r["tensor"]).copy()) for r in worker({"clips": row})}
        assert made["exo"].shape == (4, 16, 3, 16, 16)
        assert made["seen"].all()
        maps = made["rays"][:-1].float().unflatten(0, (4, 4, 6))  # view, frame of the latent frame, line
        disc = torch.from_numpy(views.ego_disc(row)).float()[None, None]
        cells = -functional.max_pool2d(-disc, 8)  # wholly within the lens: others stand for a part of themselves
        camera = views.ego_camera(row)
        T_exo_world = [torch.tensor(said[view["exo_cam"]]["camera_extrinsics"]) for view in views.of(row)]
        for number, frame in enumerate(views.frame_numbers(row)):
            T_ego_world = torch.tensor(said["aria01"]["camera_extrinsics"][str(frame)])
            origin = -T_ego_world[:, :3].T @ T_ego_world[:, 3]
            latent, place = ((number - 1) // 4 + 1, (number - 1) % 4) if number else (0, 0)
            for T in T_exo_world:
                point = -T[:, :3].T @ T[:, 3]
                pixel, seen = camera.project((T_ego_world[:, :3] @ point + T_ego_world[:, 3])[None])
                at = ((pixel[0] - 3.5) / 8 / 7.5 - 1)[None, None, None]  # in cells, from centre to centre
                if not seen[0] or functional.grid_sample(cells, at, align_corners=True) < 0.999:
                    continue
                for v, T_v in enumerate(T_exo_world):
                    line = functional.grid_sample(maps[v, place, :, latent][None], at, align_corners=True)
                    moment, direction = line[0, :, 0, 0].split(3)
                    o, p = (T_v[:, :3] @ x + T_v[:, 3] for x in (origin, point))
                    wanted = functional.normalize(p - o, dim=0)
                    assert torch.linalg.vector_norm(functional.normalize(direction, dim=0) - wanted) < 0.01, (number, v)
                    assert torch.linalg.vector_norm(moment - torch.linalg.cross(o, wanted)) < 0.01 * (1 + torch.linalg.vector_norm(o))
                    checked += 1
    assert checked >= 16


def test_the_egox_examples(real_data):
    takes = taken(real_data / "egox")
    assert len(takes) == 3
    for take in takes:
        assert isinstance(take, dict), take
        assert (take["frames"], take["fps"], take["pose_coverage"], take["lens_source"]) == (49, 20.0, 1.0, "typical lens")
        (view,) = json.loads(take["exo"]).values()
        assert view["depth_kind"] == "pinhole-z"
        assert Camera.from_dict(view["camera"]).width == 784
        rows = clips.stage(PROFILE).worker()({"takes": take})
        assert isinstance(rows, list)
        assert rows[0]["chosen"]
        assert rows[0]["overlap"] > 0.2
        assert rows[0]["depth_files"]
        assert "[Ego view]" not in captions.stage(PROFILE).worker()({"clips": rows[0]})["text"]
