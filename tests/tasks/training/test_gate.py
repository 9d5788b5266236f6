"""Paired comparison over takes, and who becomes champion."""

import math

import numpy as np
import pytest

from egomill.schemas.fingerprint import content_of
from egomill.schemas.tables import NO_CONTENT, TABLES, as_stored
from egomill.schemas.tensors import TENSOR
from egomill.tasks.lake.tables import Damaged, Lake
from egomill.tasks.lake.tracking import Adapter
from egomill.tasks.training.gate import compare, decide

NOISE = np.random.default_rng(0).normal(0, 2, 9)  # what a clip's content does to every adapter alike


def score(clip, adapter, value, metric="psnr.all", why=""):
    return {"clip_id": clip, "adapter": adapter, "metric": metric, "value": value, "why": why, "fingerprint": "f", "run_id": "r"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    names = [f.name for f in TABLES["clips"] if f.type not in (TENSOR,)]
    clip = dict.fromkeys(names) | {"chosen": True}
    clips = [{**clip, "clip_id": f"c{i}", "take_uid": f"t{i // 3}", "split": "test"} for i in range(9)]
    lake.upsert("clips", [*clips, {**clip, "clip_id": "seen", "take_uid": "t9", "split": "train"}])
    gains = {"base": 0.0, "egox@v1": 0.5, "egox@v2": 0.3, "egox@v3": 0.9}
    rows = []
    for i in range(9):
        rows += [score(f"c{i}", a, 15 + NOISE[i] + g + 0.01 * (i % 3) + 0.1 * (i // 3) * (a != "base")) for a, g in gains.items()]
    rows += [score("seen", "egox@v1", 99.0), score("c0", "base", None, "lpips", "not computed: no weights")]
    lake.upsert("scores", rows)
    return lake


def test_paired_over_takes(lake):
    found = compare(lake, ["base", "egox@v1"])
    (pair,) = found["pairs"]
    assert (found["n_clips"], found["n_takes"], pair["n"], pair["better"]) == (9, 3, 3, 1.0)
    assert pair["mean"] == pytest.approx(0.6)
    assert pair["se"] == pytest.approx(0.1 / math.sqrt(3))  # the clips' own scatter, 2 dB, cancels
    assert found["means"]["base"]["psnr.all"]["se"] > 0.3
    assert found["not_computed"] == {"lpips": "not computed: no weights"}


def test_only_the_better_becomes_champion(lake):
    first, worse, better = (Adapter("egox", v, "run", "folder") for v in "123")
    assert decide(lake, first, None) == (True, "psnr.all +0.600 (± 0.058, 3 takes) against base")
    assert decide(lake, worse, first) == (False, "psnr.all -0.200 (± 0.000, 3 takes) against egox@v1")
    assert decide(lake, better, first)[0]
    assert decide(lake, first, first) == (False, "it is the champion")
    nothing = Adapter("egox", "9", "run", "folder")
    assert decide(lake, nothing, None)[0]
    assert not decide(lake, nothing, first)[0]


def test_nobody_becomes_champion_by_a_damaged_score(tmp_path):
    lake = Lake(str(tmp_path))
    (row,) = as_stored("scores", [score("c0", "base", 15.0)])
    lake.upsert("scores", [{**row, "content": content_of(row, NO_CONTENT), "value": 25.0}])
    lake.upsert("clips", [{"clip_id": "c0", "take_uid": "t", "split": "test"}])
    with pytest.raises(Damaged, match=r"row c0 base psnr.all of table scores"):
        compare(lake, ["base"])
