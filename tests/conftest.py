"""Fixtures for all rooms: real data where it is named, one local Ray for the session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")


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

    from egomill.tasks.cluster import connect

    connect()
    yield
    ray.shutdown()
