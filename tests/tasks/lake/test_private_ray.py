"""A Ray of our own: who may talk to it, where its files lie, and what is said where it does not come up."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import ray

from egomill.schemas.config import Resources
from egomill.tasks.lake import actors, cluster, runner
from egomill.tasks.lake.tables import Lake
from tests.tasks.lake.listeners import abroad, listeners
from tests.tasks.lake.test_stage import add_clips, toy

LISTED = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=b"fun"))
"""
SERVICES = ("CoreWorkerService/PushTask", "NodeManagerService/GetNodeStats", "ObjectManagerService/Push")
SERVICES += ("JobInfoGcsService/GetAllJobInfo", "ReporterService/GetTraceback")


def stranger(address: str, **environment: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | environment
    return subprocess.run([sys.executable, "-c", LISTED, address], env=env, capture_output=True, text=True, check=False)


def test_while_a_stage_runs_only_its_own_processes_may_talk_to_its_ray(tmp_path, ray_cluster, monkeypatch):
    from ray import get_runtime_context
    from ray._private import worker

    monkeypatch.setattr(actors, "FEW", 0)
    lake, open_ = Lake(str(tmp_path)), {}
    add_clips(lake, ["a", "b", "c"])
    runner.run(toy(), lake, "r1", Resources(shard=1), progress=lambda *_: open_.update(listeners()))
    assert {"gcs_server", "raylet"} < set(open_.values())
    assert any(name.startswith("ray::") for name in open_.values())  # a worker, at work or between two rows
    assert abroad(open_) == {}

    gcs = get_runtime_context().gcs_address
    for environment in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = stranger(gcs, **environment)
        assert refused.returncode, refused.stdout
        assert "AuthenticationError" in refused.stderr
    assert stranger(gcs, **cluster.PRIVATE).returncode == 0  # it is the token
    asked = 0
    for _, port in listeners():
        if os.environ.get("AWS_ENDPOINT_URL", "").endswith(f":{port}"):  # the S3 server of other tests
            continue
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/logs", timeout=10).status_code == 401
            asked += 1
        except httpx.RemoteProtocolError:  # gRPC's
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                for service in SERVICES:
                    with pytest.raises(grpc.RpcError) as error:
                        channel.unary_unary(f"/ray.rpc.{service}")(b"", timeout=10)
                    assert error.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
                    asked += error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert asked >= 7  # gcs, raylet, object manager, both agents, driver, worker

    node: Any = worker._global_node
    folder = Path(node.temp_dir).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not any("RAY_AUTH" in name for name in os.environ)  # what else this process starts has no need of it


def test_ray_s_folder_is_private_short_and_where_there_is_room(tmp_path, monkeypatch):
    long = tmp_path / ("department_of_something/" * 5)
    long.mkdir(parents=True)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for bad in (long, tmp_path / "gone", Path(__file__), Path("/proc")):
        monkeypatch.setenv("TMPDIR", str(bad))
        folder = cluster.room()
        assert folder.parent == Path("/tmp")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder.rmdir()
    assert list(long.iterdir()) == []
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    folder = cluster.room()
    assert folder.parent == Path("/var/tmp")
    folder.rmdir()


def test_where_no_place_will_do_they_are_named(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/gone")
    monkeypatch.setattr(cluster, "SOCKET", 200)
    with pytest.raises(
        ValueError, match=r"^Ray finds no place .*: /gone \(No such file or directory\), .*/tmp \(AF_UNIX path too long\).*; set RAY_TMPDIR"
    ):
        cluster.room()
    assert not [f for f in Path("/tmp").glob("egomill-????????") if f.stat().st_uid == os.getuid() and not list(f.iterdir())]


def test_a_ray_that_does_not_come_up_says_why_in_one_line(tmp_path):
    program = """
import sys
import ray
tries = []
def init(*_, **options):
    tries.append(options["_temp_dir"])
    raise eval(sys.argv[1])
ray.init = init
from pathlib import Path
from egomill.tasks.lake.cluster import connect
try:
    connect()
except ValueError as error:
    print(len(tries), any(Path(t).parent.exists() for t in tries), error)
"""
    for error, tries, says in (
        ("Exception('The current node timed out during startup.\\nmore')", 3, "The current node timed out during startup. ("),
        ("OSError(11, 'Resource temporarily unavailable')", 1, "Resource temporarily unavailable ("),
    ):
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        done = subprocess.run([sys.executable, "-c", program, error], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{tries} False Ray does not start on this machine: "), done.stdout
        assert says in done.stdout
        assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", r"RAY_ADDRESS=127\.0\.0\.1:1: .*Connection refused; name a cluster that answers"),
        ("no-such-host.invalid:6379", r"RAY_ADDRESS=no-such-host\.invalid:6379: .*; name a cluster"),
    ],
)
def test_a_cluster_that_does_not_answer_is_said_so(monkeypatch, address, says):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("it cannot be reached"))
    with pytest.raises(ValueError, match=says):
        cluster.connect()


def test_nothing_is_left_behind_when_it_ends(tmp_path):
    program = "from egomill.tasks.lake.cluster import connect; connect(); import ray; print(ray._private.worker._global_node.temp_dir)"
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_TMPDIR": "/var/tmp"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.splitlines()[-1]).parent
    assert folder.parent == Path("/var/tmp")
    assert not folder.exists(), shutil.rmtree(folder)
