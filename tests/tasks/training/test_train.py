"""LoRA training on Ray Train, then generation and scores by the adapter: two steps on a tiny lake."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from egomill.models import egox, lora
from egomill.models.method import of
from egomill.schemas.config import Directions, Profile
from egomill.schemas.fingerprint import content_of
from egomill.schemas.tables import NO_CONTENT
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake import releases
from egomill.tasks.lake.heartbeat import beating
from egomill.tasks.lake.tables import Damaged, Lake
from egomill.tasks.lake.tracking import BY, Tracker
from egomill.tasks.media import video
from egomill.tasks.networks import bases
from egomill.tasks.stages import generations, latents, scores
from egomill.tasks.training import adapters, gate, loop, samples, train
from tests.tasks import tiny_lake
from tests.tasks.lake.listeners import abroad, watched
from tests.tasks.tiny_lake import run_here

READS = egox.METHOD.reads
SMALL = ["train.steps=2", "train.rank=4", "train.alpha=8", "train.batch=2", "train.workers=1", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    keys = tiny_lake.build(lake, clips=6, takes=3, held_out=2)
    base = tiny_lake.base(tmp_path_factory.mktemp("base"))
    profile = Profile.load("local", [*SMALL, f"model.base='{base}'"])
    run_here(lake, latents.stage(profile), keys)
    release, _ = releases.publish(lake, "run", profile, "r1")
    return lake, keys, profile, release, Tracker.beside(lake.uri)


def test_train_generate_score(built, ray_cluster):
    lake, keys, profile, release, tracker = built
    assert train.existing(lake, release, profile, tracker) is None
    adapter = train.train(lake, release, profile, tracker, "night")
    assert (adapter.tags["release"], adapter.tags["steps"], adapter.tags["profile"]) == ("r1", "2", "local")
    again = train.existing(lake, release, profile, tracker)
    assert again is not None
    assert again.spec == adapter.spec
    assert train.existing(lake, release, with_(profile, learning_rate=0.5), tracker) is None
    assert set(tracker.history(adapter.run_id, "loss")) == {0, 1}
    assert len(tracker.history(adapter.run_id, "val_loss")) == 2
    assert tracker.inputs(adapter.run_id)[0]["tables"] == release["tables"]
    assert [f.path for f in tracker.client.list_artifacts(adapter.run_id, "samples")] == ["samples/first-batch.png"]

    about = adapters.describe(adapter.folder)
    assert (about["base_revision"], about["mask"], about["rank"], about["step"]) == (bases.revision(profile.model), "coverage", 4, 2)
    fresh = bases.load(profile.model, "transformer").transformer
    adapters.load(egox.Net(fresh, 1.0), adapter.folder, about["base_revision"])
    layer = fresh.blocks[0].attn1.to_q
    assert set(layer.scaling.values()) == {2.0}  # alpha / rank came with the file
    assert any(layer.lora_B[k].weight.abs().max() > 0 for k in layer.lora_B)  # and it has learnt
    with pytest.raises(ValueError, match="trained on base"):
        adapters.load(egox.Net(fresh, 1.0), adapter.folder, "another")

    held_out = keys[-2:]
    stage = generations.stage(profile, adapter.spec, adapter.folder)
    made = run_here(lake, stage, held_out)
    frames = video.decode(made[0]["video"])
    assert frames.shape == (tiny_lake.FRAMES, 64, 64, 3)
    assert json.loads(made[0]["sampler"])["gga"] == profile.model.gga
    assert run_here(lake, stage, held_out[::-1])[1]["video"] == made[0]["video"]  # same seed, same bytes, whatever the order
    fetch = partial(tracker.folder, adapter.spec)  # as on a machine where the driver's folder is not
    elsewhere = replace(stage, worker=partial(generations.Generator, profile, "/not/here", fetch, of(profile).given(profile)))
    assert run_here(lake, elsewhere, held_out)[0]["video"] == made[0]["video"]
    run_here(lake, generations.stage(profile, "base"), held_out)
    base = video.decode(lake.rows("generations", held_out[:1], where="adapter = 'base'")[0]["video"])
    assert not np.array_equal(frames, base)
    for name in ("base", "prior", "codec", adapter.spec):
        run_here(lake, scores.stage(profile, name), held_out)
    comparison = gate.compare(lake, ["prior", "codec", "base", adapter.spec])
    assert comparison["n_clips"] == 2
    assert all(set(gate.METRICS) <= set(values) for values in comparison["means"].values())
    assert comparison["not_computed"]["lpips"] == "not computed: no weights"


def with_(profile: Profile, **changes) -> Profile:
    return profile.model_copy(update={"train": profile.train.model_copy(update=changes)})


@pytest.mark.parametrize(
    "other",
    [
        {"workers": 2, "batch": 1},
        {"workers": 2, "batch": 1, "sharding": "fsdp"},
        {"batch": 1, "accumulate": 2, "gradient_checkpointing": True},
    ],
    ids=["two copies", "two shards", "two passes"],
)
def test_the_same_global_batch_trains_the_same_adapter(built, ray_cluster, other):
    lake, _, profile, release, tracker = built
    one = train.existing(lake, release, profile, tracker) or train.train(lake, release, profile, tracker, "night")
    with watched() as listened:
        two = train.train(lake, release, with_(profile, **other), tracker, "night")
    assert any(name.startswith("ray::RayTrainWorker") for name in listened.values()), listened
    assert abroad(listened) == {}
    for metric in ("loss", "grad_norm", "val_loss"):
        assert tracker.history(one.run_id, metric) == pytest.approx(tracker.history(two.run_id, metric), rel=1e-4)
    others = adapters.tensors(two.folder)
    for name, tensor in adapters.tensors(one.folder).items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-5)
    assert not list(Path(lake.uri, "training").glob("*"))  # nothing left behind


def test_two_trainings_of_the_same_never_run_at_once(built):
    lake, _, profile, release, tracker = built
    other = with_(profile, seed=9)
    left = tracker.start("egox-r1", {"release": "r1", "recipe": train.recipe(other), BY: "first"})
    with beating(lake, "first"), pytest.raises(ValueError, match=f"run first is training the same, of release r1, in MLflow run {left}"):
        train.train(lake, release, other, tracker, "second")
    assert tracker.running() == {left: "first"}
    tracker.end(left, "KILLED")


def test_a_release_with_other_directions_than_the_settings_say_is_refused(built):
    lake, _, profile, release, tracker = built
    other = profile.model_copy(update={"directions": Directions(geometry="egox-released")})
    with pytest.raises(ValueError, match=r"release r1 has directions\.geometry 'calibrated', not 'egox-released'"):
        train.train(lake, release, other, tracker, "night")
    assert tracker.running() == {}


def test_what_was_cut_off_is_dropped_and_what_is_whole_stays(tmp_path):
    lake, folder = Lake(str(tmp_path / "a lake")), tmp_path / "a lake" / "training" / "egox-1"
    for name in ("checkpoint_1", "checkpoint_2"):
        (folder / name / "adapter").mkdir(parents=True)
    (folder / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}')
    train._drop_halves(lake, "egox-1")
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint_1", "checkpoint_manager_snapshot.json"]
    (folder / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{"checkpoint_d')
    train._drop_halves(lake, "egox-1")
    assert not folder.exists()
    train._drop_halves(lake, "egox-1")


def poisoned(lake, profile, release, which, name):
    """A release in which latents of some training clips are not finite; (release, training clips)."""
    revision = bases.revision(profile.model)
    clips = samples.clips_of(lake, release["tables"], revision, READS, ("train",))
    rows = lake.rows("latents", [clips[i] for i in which], where=f"model = '{revision}' AND name = 'ego'")
    for row in rows:
        row["tensor"] = pack(unpack(row["tensor"]) * np.float16("nan"))
        row["content"] = content_of(row, NO_CONTENT)
    lake.upsert("latents", rows)
    return releases.publish(lake, "run", profile, name)[0], clips


def test_a_batch_that_is_not_finite_is_skipped_by_all_workers(built, ray_cluster):
    lake, _, profile, release, tracker = built
    profile = with_(profile, steps=6, batch=1, workers=2, sharding="fsdp", checkpoint_every=4)
    release, clips = poisoned(lake, profile, release, [0], "r2")
    adapter = train.train(lake, release, profile, tracker, "night")
    bad = [step for step in range(6) if 0 in samples.batch_indices(len(clips), 2, 0, step)]
    assert 0 < len(bad) < 6
    assert tracker.history(adapter.run_id, "skipped") == {step: i + 1 for i, step in enumerate(bad)}
    assert adapter.tags["skipped"] == str(len(bad))
    assert sorted(tracker.history(adapter.run_id, "loss")) == [step for step in range(6) if step not in bad]
    assert all(tensor.isfinite().all() for tensor in adapters.tensors(adapter.folder).values())


def test_batch_after_batch_that_is_not_finite_ends_by_name_and_once(built, ray_cluster):
    lake, _, profile, release, tracker = built
    profile = with_(profile, steps=20, batch=1, checkpoint_every=2)
    release, _ = poisoned(lake, profile, release, range(4), "r3")
    with pytest.raises(ValueError, match=r"given up: 5 batches in a row .* the last is step 4: loss nan, gradient nan, of clips take"):
        train.train(lake, release, profile, tracker, "night")
    run = tracker.unfinished({"release": "r3"})
    points = tracker.client.get_metric_history(run, "skipped")
    assert [(p.step, p.value) for p in points] == [(step, step + 1) for step in range(5)]  # never replayed
    kept = [loop.read_report(path.parent) for path in Path(lake.uri, "training").glob(f"*{run}/checkpoint_*/step.json")]
    last = max(kept, key=lambda report: report["step"])  # whoever goes on from it goes on counting
    assert (last["step"], last["skipped"], last["in_a_row"]) == (4, 4, 4)


def test_a_checkpoint_holds_all_that_the_next_step_needs(built, tmp_path):
    lake, _, profile, release, _ = built
    model, settings = profile.model, profile.train
    clips = samples.clips_of(lake, release["tables"], bases.revision(model), READS, ("train",))
    data = samples.Samples(lake, release["tables"], bases.revision(model), READS, clips)

    def fresh(seed):
        transformer = bases.load(model, "transformer").transformer
        parameters = lora.add(transformer, settings.rank, settings.alpha, settings.targets, seed)
        return transformer, parameters, torch.optim.AdamW(parameters.values(), lr=1e-2)

    def advance(transformer, optimiser, step):
        columns = samples.stack(data.get(samples.batch_indices(len(data), 2, 0, step)))
        generators = [samples.noise_generator(0, step, place) for place in range(2)]
        batch = egox.make_batch(columns, profile.model_copy(update={"model": model.model_copy(update={"gga": "off"})}), torch.device("cpu"))
        optimiser.zero_grad()
        egox.Net(transformer, 1.0)(batch, generators).mean().backward()
        optimiser.step()

    one, parameters, optimiser = fresh(0)
    for step in range(2):
        advance(one, optimiser, step)
    adapters.save(lora.state(one), lora.config(one), {}, tmp_path / "adapter", adapters.about(profile, "r", 2, "r1"))
    loop.save(tmp_path, loop.whole_moments(optimiser, parameters), {"step": 2})
    two, others, second = fresh(1)
    assert loop.read_report(tmp_path)["step"] == 2
    lora.restore(two, adapters.tensors(tmp_path / "adapter"))
    loop.read_moments(tmp_path, second, others)
    advance(one, optimiser, 2)
    advance(two, second, 2)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name]), name


def test_a_damaged_row_ends_the_training_by_name(built, ray_cluster, monkeypatch):
    monkeypatch.setattr(train, "RESTARTS", 0)
    lake, keys, profile, release, tracker = built
    row, other = (lake.rows("latents", keys[:1], where=f"name = '{name}'")[0] for name in ("ego", "exo"))
    lake.upsert("latents", [{**row, "tensor": other["tensor"]}])  # under the digest of the values that were committed
    damaged = {**release, "name": "damaged", "tables": {**release["tables"], "latents": lake.version("latents")}}
    with pytest.raises(Damaged, match=f"row {keys[0]} .* of table latents is not what was committed: `egomill repair`"):
        train.train(lake, damaged, with_(profile, batch=4), tracker, "night")
    lake.upsert("latents", [row])
