"""Fixtures for all rooms: real data where it is named, one local Ray for the session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
hypothesis.settings.register_profile("unhurried", deadline=None)  # no test fails because a machine is slow
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real clips; tests that need it skip, visibly, without it."""
    folder = os.environ.get("EGOMILL_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EGOMILL_REAL_DATA does not name a folder with real clips")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster():
    """Stages of one session share a local Ray."""
    import ray

    from egomill.tasks.lake.cluster import connect

    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    """A server of the S3 protocol on this machine, which the standard environment names: (ours has no other way to name one)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
    names |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield names["AWS_ENDPOINT_URL"]
    server.terminate()
    server.wait()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def s3_lake(s3_server) -> str:
    """The URI of a lake in a bucket of its own."""
    import boto3

    bucket = f"lake-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/lake"
