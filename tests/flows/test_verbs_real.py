"""The verbs on real clips (skips where none are named): three EgoX examples, small pictures, depth from the files beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from egomill.flows import verbs
from egomill.tasks.keeping.changes import diff
from egomill.tasks.lake.tables import Lake
from tests.flows.conftest import SMALL, Small

TAKE = "iiith_cooking_57_2_2451_2499"


@pytest.mark.slow
def test_real_clips_are_planned_verified_compared_adopted_and_forgotten(real_data, tmp_path, ray_cluster):
    real = Small(real_data / "egox", Lake(str(tmp_path / "lake")))
    assert real.plan("clips.hop=3.0")["takes"]["compute"] == 3
    real.rebuild("clips.hop=3.0", release="first")
    clips = real.lake.count("latents", "name = 'ego'")
    assert clips == 3
    assert sum(step["compute"] + step["may"] for step in real.plan("clips.hop=3.0").values()) == 0

    found = verbs.verify(real.lake.uri, "first", sample=1, seed=0)
    assert (found["ok"], found["differs"], found["cannot"]) == (7, 0, 0), found["tables"]
    assert verbs.adopt(real.lake.uri, "depth", settings=[*SMALL, "clips.hop=3.0"])["candidates"] == 0

    real.rebuild("clips.hop=3.0", "directions.geometry=calibrated", "priors.edge=0.05", release="second")
    changed = diff(real.lake, "first", "second")
    assert {(c["stage"], c["what"]) for clip in changed["changed"] for c in clip["by"]} == {("priors", "edge: 0.1 -> 0.05")}

    answer = verbs.forget(real.lake.uri, TAKE)
    assert answer["left"] == []
    assert (answer["rows"]["takes"], answer["rows"]["latents"], real.lake.count("latents")) == (1, 5, 10)
    files = [p for p in Path(real.lake.uri).rglob("*") if p.is_file()]
    assert not [p for p in files if TAKE.encode() in p.read_bytes()]
    assert (real_data / "egox" / "videos" / TAKE / "exo.mp4").is_file()
