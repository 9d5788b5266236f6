"""What stands on a flow run's page, on a real Prefect server."""

from __future__ import annotations

import functools
import logging
import time

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from egomill.flows.steps import make
from egomill.schemas.config import Profile
from egomill.tasks.lake.runs import recorded
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from tests.tasks.lake.test_stage import add_clips


def talkative() -> Stage:
    def make() -> object:  # nested, so that Ray's workers get it by value
        def work(row: dict) -> dict:
            name = row["clips"]["take_name"]
            logging.getLogger("egomill.captions").info("I look at %s", name)
            logging.getLogger("somebody.else").info("chatter about %s", name)
            logging.getLogger("somebody.else").warning("%s is odd", name)
            if name == "b":
                raise ZeroDivisionError("our own")
            return {"text": name, "source": "toy"}

        return work

    return Stage("captions", {"clips": ("take_name",)}, {}, functools.partial(make), where="chosen")


@pytest.mark.usefixtures("ray_cluster")
def test_what_workers_log_and_what_failed_is_on_the_flow_run_s_page(server, tmp_path):
    env, _ = server
    lake, profile = Lake(str(tmp_path / "lake")), Profile.load("local", ["resources.failure_threshold=1.0"])
    add_clips(lake, ["a", "b"])

    @flow(name="talk")
    def talk() -> None:
        with recorded(lake, "rebuild", profile) as run:
            make(run, talkative())

    def page() -> str:
        answer = httpx.post(f"{env['PREFECT_API_URL']}/logs/filter", json={"limit": 200}, timeout=30).raise_for_status()
        return "\n".join(line["message"] for line in answer.json())

    with temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}):
        talk()
        deadline = time.monotonic() + 240
        while "captions: 2 in" not in page() and time.monotonic() < deadline:
            time.sleep(0.5)
    lines = page()
    for line in ("captions c0: I look at a", "captions c0: a is odd", "captions c1: I look at b", "captions c1 failed: ZeroDivisionError"):
        assert line in lines
    assert "in = 1 made + 0 rejected + 1 failed" in lines
    assert "1 ZeroDivisionError" in lines
    assert "chatter" not in lines
