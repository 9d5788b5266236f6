"""Exo2EgoSyn from takes to a gated adapter and a report, through the flows that know no method by name."""

from __future__ import annotations

import numpy as np
import torch

from egomill.flows.rebuild import rebuild
from egomill.flows.retrain import retrain
from egomill.models.exo2egosyn import METHOD, PHASES
from egomill.models.latents import to_frames
from egomill.schemas.config import Profile
from egomill.schemas.tensors import unpack
from egomill.tasks.keeping import lineage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.media import video, views
from egomill.tasks.networks import bases
from egomill.tasks.pages import report
from egomill.tasks.stages import view_latents
from egomill.tasks.training import adapters, train
from tests.flows.conftest import write_small
from tests.tasks import tiny_lake

SETTINGS = ["clips.hop=0.6", "clips.frames=5", "clips.unseen=0", "clips.exo_size=[64,64]", "clips.ego_size=64", "clips.min_overlap=0"]
SETTINGS += ["exo2egosyn.align_width=32", "exo2egosyn.align_heads=2", "exo2egosyn.align_depth=1", "exo2egosyn.ray_width=8"]
SETTINGS += ["train.steps=10", "train.rank=4", "train.batch=2", "train.workers=1", "train.checkpoint_every=2"]


def test_from_takes_to_a_gated_adapter_and_a_report(tmp_path, ray_cluster):
    lake, takes = Lake(str(tmp_path / "lake")), str(write_small(tmp_path / "in", 3))
    settings = [*SETTINGS, f"model.base='{tiny_lake.base(tmp_path / 'base')}'"]
    assert rebuild.fn(lake.uri, [takes], "local-exo2egosyn", settings, release="first")["new"]
    clips = lake.read("clips", where="chosen").to_pylist()
    assert {len(views.of(clip)) for clip in clips} == {2}  # the release's cameras
    rows = {row["clip_id"]: unpack(row["tensor"]) for row in lake.read("latents", where="name = 'seen'").to_pylist()}
    assert {tuple(seen.tolist()) for seen in rows.values()} == {(True, True, False, False)}
    assert lake.count("depth") == lake.count("priors") == lake.count("captions") == 0

    night = retrain.fn(lake.uri, "local-exo2egosyn", settings)
    assert (night["adapter"], night["trained"]) == ("exo2egosyn@v1", True), night
    assert retrain.fn(lake.uri, "local-exo2egosyn", settings)["trained"] is False
    one, other = (Profile.load("local-exo2egosyn", [*settings, *more]) for more in ([], ["exo2egosyn.drop=0.5"]))
    assert train.recipe(one) != train.recipe(other)  # a setting of the method's own is another training
    tracker = Tracker.beside(lake.uri)
    adapter = tracker.resolve("exo2egosyn@v1")
    about = adapters.describe(adapter.folder)
    assert (about["method"], about["views"], about["frame"]) == ("exo2egosyn", 4, "align")
    weights = adapters._all(adapter.folder)
    moved = ("align.1.leave.weight", "tokens.out.weight", "rays.encode.weight")  # of all three phases
    assert all(weights[name].abs().sum() > 0 for name in moved)
    width = weights["rays.fuse.weight"].shape[0]
    assert not torch.equal(weights["rays.fuse.weight"][:, :width], torch.eye(width))
    assert all(tracker.history(adapter.run_id, f"val_loss.{phase.name}") for phase in PHASES)
    metrics = {row["metric"] for row in lake.read("scores").to_pylist() if row["value"]}
    assert {"psnr.all", "psnr.first", "psnr.after"} <= metrics
    beside = {f"exo2egosyn@v1+{name}": variant for name, variant in METHOD.variants.items()}
    assert beside.keys() < {row["adapter"] for row in lake.read("scores").to_pylist()}
    assert set(night["comparison"]["means"]) == {"base", "codec", "exo2egosyn@v1", *beside}
    held_out = lake.read("clips", where="chosen AND split <> 'train'")["clip_id"].to_pylist()
    made = {(row["clip_id"], row["adapter"]): video.decode(row["video"]) for row in lake.read("generations").to_pylist()}
    assert {name for _, name in made} == {"base", "exo2egosyn@v1", "exo2egosyn@v1+true-first-frame"}
    for key in held_out:
        (row,) = lake.rows("latents", [key], where="name = 'ego'")
        first = to_frames(bases.load(one.model, "vae").vae, torch.from_numpy(unpack(row["tensor"]))[:, :1])
        np.testing.assert_array_equal(made[key, "exo2egosyn@v1+true-first-frame"][0], first[0])
    told = lineage.of_adapter(lake, tracker, "exo2egosyn@v1")["clips"]
    assert {clip["clip_id"]: clip["fold"] for clip in told} == {clip["clip_id"]: view_latents.fold(clip["take_uid"]) for clip in told}
    page = report.render(lake, tracker, "exo2egosyn@v1", tmp_path / "report.html").read_text()
    assert "up to 4 exocentric cameras" in page
    assert all(name in page for name in ("cam01", "cam02", "first frame", "after it", "first frame repeated", "true first frame"))
