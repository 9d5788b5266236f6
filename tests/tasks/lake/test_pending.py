"""The ledger over several tables, in whatever pieces Arrow holds them."""

import pyarrow as pa
import pytest

from egomill.tasks.lake.pending import pending
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake


@pytest.mark.parametrize("commits", [1, 3])
def test_what_is_missing_upstream_is_named_however_many_files_there_are(tmp_path, commits):
    lake = Lake(str(tmp_path))
    for i in range(commits):
        rows = [{"clip_id": f"{i}{c}", "content": c, "chosen": True} for c in "ab"]
        lake.upsert("clips", rows)
        lake.upsert("depth", [{"clip_id": f"{i}a", "content": "d"}])
    lake.upsert("priors", [{"clip_id": "0a", "content": "p"}])
    stage = Stage("latents", {"clips": ("chosen",), "depth": ("depth",), "priors": ("video",)}, {}, lambda: lambda row: row, where="chosen")
    ledger = {row["key"]: row["missing"] for row in pending(stage, lake).to_pylist()}
    assert ledger == {f"{i}{c}": lacking(i, c) for i in range(commits) for c in "ab"}
    assert pending(stage, lake, keys=[]).num_rows == 0
    assert pending(stage, lake, keys=["0b"])["missing"] == pa.chunked_array([["depth, priors"]])


def lacking(i: int, c: str) -> str | None:
    return "depth, priors" if c == "b" else None if i == 0 else "priors"
