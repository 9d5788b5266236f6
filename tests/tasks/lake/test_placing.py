"""Which code workers get, and what they ask of the machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import egomill
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import check_code, code_parts
from egomill.tasks.lake import cluster
from egomill.tasks.training.train import share


def test_the_driver_s_package_travels_and_what_a_submitted_job_brings_stands(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    sent = cluster.code("/empty")
    assert sent == {"py_modules": [str(Path(egomill.__file__).parent)], "excludes": ["__pycache__"], "working_dir": "/empty"}
    told = {"runtime_env": {"working_dir": "gcs://a.zip", "env_vars": {"A": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    assert cluster.code("/empty").keys() == {"py_modules", "excludes"}


def test_a_name_of_ray_s_for_this_machine_is_no_cluster(monkeypatch):
    for named, address in (("local", ""), ("", ""), ("10.0.0.7:6379", "10.0.0.7:6379")):
        monkeypatch.setenv("RAY_ADDRESS", named)
        assert cluster.address() == address


def test_other_code_is_refused_by_name():
    parts = code_parts("egomill.tasks.stages.captions")
    check_code(parts)
    with pytest.raises(RuntimeError, match=r"other code .*: egomill\.tasks\.media\.views$"):
        check_code({**parts, "egomill.tasks.media.views": "0"})
    mine = code_parts("tests.tasks.tiny_lake")  # a user's own: itself, and what of ours it reaches
    assert {"tests.tasks.tiny_lake", "egomill.kernels.cameras"} < mine.keys()
    check_code({**mine, "somebody.elses": "0", "__main__": "0"})  # not to be had here: it came with what runs


@pytest.mark.parametrize(
    ("workers", "machines", "gpu", "cpus"),
    [
        (2, [{"CPU": 8.0}], False, 1.0),
        (4, [{"CPU": 2.0}], False, 0.5),
        (3, [{"CPU": 1.0}, {"CPU": 1.0}], False, 0.5),  # two thirds would leave no room for the third
        (8, [{"CPU": 64.0}, {"CPU": 16.0, "GPU": 8.0}], True, 1.0),
        (2, [{"CPU": 1.0, "GPU": 2.0}], True, 0.5),
        (8, [{"CPU": 64.0}], True, 1.0),  # machines with GPUs may come
    ],
)
def test_workers_of_a_training_have_room_at_once(workers, machines, gpu, cpus):
    assert share(workers, machines, gpu) == cpus


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("resources.gpus={generation=1.0}", "unknown stage generation; did you mean 'generations'"),
        ("resources.actors={depth=0}", "depth = 0"),
        ("resources.cpus={depth=-1}", "depth = -1"),
    ],
)
def test_resources_of_stages_that_are_not_there_are_refused(setting, says):
    with pytest.raises(ValueError, match=says):
        Profile.load("local", [setting])


def test_more_than_this_machine_has_is_refused_and_not_waited_for(ray_cluster):
    cluster.require("an actor", 0.5, 0.0)
    with pytest.raises(ValueError, match="an actor takes 0 CPUs and 99 GPUs; here are"):
        cluster.require("an actor", 0.0, 99.0)
