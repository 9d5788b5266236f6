"""`egomill housekeeping`: says what it freed, to people and to programs, and bounds the number of files."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from egomill.flows.cli import app
from egomill.tasks.lake.tables import Lake


@pytest.fixture
def lake(tmp_path, monkeypatch) -> Lake:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    lake = Lake(str(tmp_path / "lake"))
    for i in range(12):
        lake.commit("captions", lake.write_fragments("captions", [{"clip_id": f"{i % 4}", "fingerprint": f"{i}", "text": f"{i}"}]))
    return lake


def test_it_tells_what_was_freed(lake):
    done = CliRunner().invoke(app, ["housekeeping", "--lake", lake.uri, "--days", "0", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    captions = next(t for t in told["tables"] if t["table"] == "captions")
    assert captions["rows"] == 4
    assert (captions["files_before"], captions["files"]) == (12, 1)
    assert told["freed_mb"] == pytest.approx(sum(t["freed_mb"] for t in told["tables"]))
    assert told["freed_mb"] > 0
    assert {r["clip_id"]: r["text"] for r in lake.read("captions").to_pylist()} == {"0": "8", "1": "9", "2": "10", "3": "11"}


def test_young_versions_stay_unless_one_says_so(lake):
    before = lake.open("captions").versions()
    assert CliRunner().invoke(app, ["housekeeping", "--lake", lake.uri]).exit_code == 0
    assert len(lake.open("captions").versions()) >= len(before)
