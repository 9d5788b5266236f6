"""A lake of format 1 becomes one of the present format: nothing is computed, each release holds its rows, and killed it goes on."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from egomill.flows.verbs import verify
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import content_of, digest
from egomill.schemas.tables import NO_CONTENT, RELEASED
from egomill.tasks.keeping import upgrade
from egomill.tasks.lake import recipes, releases, runner
from egomill.tasks.lake import tables as lakes
from egomill.tasks.lake.rows import opened
from egomill.tasks.lake.tables import Lake, Upgrading
from egomill.tasks.stages import generations
from tests.flows.conftest import SMALL, Small


def state(lake: Lake) -> dict:
    """What must be as it was: the releases, and rows with what made them; `at` aside, when a failure was written down."""
    found = {table: sorted(map(repr, lake.read(table).to_pylist())) for table in (*RELEASED, "generations")}
    told = {r["name"]: (r["content"], r["clips"]) for r in releases.every(lake)}
    for name in told:
        assert releases.get(lake, name)["name"] == name
    return found | {"releases": told}


def to_format_1(lake: Lake) -> None:
    """Put the lake into the form that format 1 has: latents in one row a clip, at the versions of its releases; names that follow."""
    at, before = Upgrading(lake.uri), {}
    for release in reversed(releases.every(lake)):
        wide = [as_wide(rows) for rows in by_clip(lake, release["tables"]["latents"]).values()]
        data = lance.write_dataset(pa.Table.from_pylist(wide, upgrade._WIDE), f"{lake.uri}/latents.lance", mode="overwrite")
        row = lake.rows("releases", [release["name"]])[0]
        content = release["content"] | {"latents": digest(sorted([r["clip_id"], r["model"], r["content"]] for r in wide))}
        tables = json.dumps(release["tables"] | {"latents": data.version})
        lake.upsert("releases", [{**row, "tables": tables, "content": json.dumps(content)}])
        before = {r["clip_id"]: r["content"] for r in wide}
    for name, parts in recipes.read(lake, FORMER).items():
        recipes.record(lake, {**parts, "columns": str(upgrade._WIDE)})
        lake.commit("recipes", None, replace=f"recipe = '{name}'")
    rows = lake.read("generations").to_pylist()
    for row in rows:
        row["inputs"][0] = before[row["clip_id"]]
        row["fingerprint"] = digest(row["recipe"], row["inputs"])
    lake.upsert("generations", rows)
    shutil.rmtree(lake.path("latents"))
    at.drop_note(lakes.FORMAT_NOTE)
    lakes._FORMATS.discard(lake.uri)


def by_clip(lake: Lake, version: int) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in lake.read("latents", version=version).to_pylist():
        found.setdefault(row["clip_id"], []).append(row)
    return found


def as_wide(rows: list[dict]) -> dict:
    first = rows[0]
    recipe = FORMER.setdefault(first["recipe"], "")
    wide = {"image": None, **opened("latents", rows), **{name: first[name] for name in ("model", "run_id", "inputs")}}
    return {**wide, "content": content_of(wide, NO_CONTENT), "recipe": recipe, "fingerprint": digest(recipe, first["inputs"])}


FORMER: dict[str, str] = {}


@pytest.fixture(scope="module")
def former(made_once, tmp_path_factory) -> tuple[Small, dict]:
    """A lake of format 1 with two releases, videos by the base, and what its rows were before."""
    folder = tmp_path_factory.mktemp("former")
    shutil.copytree(made_once.lake.uri, folder / "lake")
    small = Small(made_once.source, Lake(str(folder / "lake")))
    profile = Profile.load("local", SMALL)
    runner.run(generations.stage(profile, "base"), small.lake, "night", profile.resources)
    small.rebuild("captions.source=descriptions", "priors.edge=0.2", release="second")
    runner.run(generations.stage(Profile.load("local", [*SMALL, "priors.edge=0.2"]), "base"), small.lake, "night", profile.resources)
    known = recipes.read(small.lake, small.lake.read("recipes", ["recipe"])["recipe"].to_pylist())
    FORMER.update({name: digest({**p, "columns": str(upgrade._WIDE)}) for name, p in known.items() if p["stage"] == "latents"})
    was = state(small.lake)
    to_format_1(small.lake)
    return small, was


@pytest.fixture
def copied(former, tmp_path) -> Small:
    shutil.copytree(former[0].lake.uri, tmp_path / "lake")
    return Small(former[0].source, Lake(str(tmp_path / "lake")))


def check(small: Small, was: dict) -> None:
    assert state(small.lake) == was
    assert not Path(small.lake.uri, "latents.lance").exists()
    assert not Path(small.lake.uri, upgrade.STATE).exists()
    steps = small.plan("priors.edge=0.2")
    assert not any(step["compute"] or step["may"] or step["blocked"] for step in steps.values()), steps
    profile = Profile.load("local", [*SMALL, "priors.edge=0.2"])
    assert runner.run(generations.stage(profile, "base"), small.lake, "again", profile.resources).computed == 0


def test_nothing_is_computed_and_nothing_lost(former, copied):
    with pytest.raises(ValueError, match=r"is of format 1, .*: `egomill lake upgrade --lake"):
        copied.lake.count("clips")
    answer = upgrade.upgrade(copied.lake.uri)
    assert (answer["was"], answer["format"], answer["versions"]) == (1, 2, 2)
    check(copied, former[1])
    for name in ("first", "second"):
        told = verify(copied.lake.uri, name, sample=1, seed=0)
        assert (told["ok"] > 0, told["differs"]) == (True, 0), told
    assert upgrade.upgrade(copied.lake.uri)["was"] == 2
    check(copied, former[1])


STEPS = ("_look", "_recipes", "_copy", "_to", "_contents", "_restamp", "_releases", "_carried")


@pytest.mark.parametrize("step", STEPS)
def test_it_goes_on_after_it_died_at_any_step(former, copied, monkeypatch, step):
    class Died(BaseException):
        pass

    whole, calls = getattr(upgrade, step), []

    def dies(*arguments):
        answer = whole(*arguments)
        calls.append(step)
        if len(calls) == 2 or step not in ("_to", "_carried"):
            raise Died
        return answer

    monkeypatch.setattr(upgrade, step, dies)
    with pytest.raises(Died):
        upgrade.upgrade(copied.lake.uri)
    with pytest.raises(ValueError, match="is of format 1"):
        copied.lake.count("clips")
    monkeypatch.setattr(upgrade, step, whole)
    upgrade.upgrade(copied.lake.uri)
    check(copied, former[1])


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(former, copied):
    chance, program = random.Random(0), "import sys; from egomill.tasks.keeping.upgrade import upgrade; upgrade(sys.argv[1])"
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", program, copied.lake.uri])
        time.sleep(chance.uniform(2, 6))
        process.kill()
        process.wait()
    upgrade.upgrade(copied.lake.uri)
    check(copied, former[1])


def test_what_cannot_be_carried_is_refused_before_anything_is_written(former, copied):
    data = lance.dataset(f"{copied.lake.uri}/latents.lance")
    data.add_columns(pa.schema([pa.field("mine", pa.string())]))
    with pytest.raises(ValueError, match=r"no format has the columns mine\. Nothing was changed"):
        upgrade.upgrade(copied.lake.uri)
    assert not Path(copied.lake.path("latents")).exists()


def test_a_lake_of_a_format_that_nobody_knows_is_left_alone(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    lake.open("clips")
    assert json.loads(lake.noted(lakes.FORMAT_NOTE) or "") == {"format": 2}
    for said, words in (('{"format": 3}', "is of format 3 "), ("cut", "nobody knows which")):
        lake.note(lakes.FORMAT_NOTE, said)
        lakes._FORMATS.discard(lake.uri)
        with pytest.raises(ValueError, match=words):
            lake.count("clips")
        with pytest.raises(ValueError, match=r"Nothing was changed|no format"):
            upgrade.upgrade(lake.uri)
    with pytest.raises(ValueError, match="no lake at"):
        upgrade.upgrade(str(tmp_path / "nowhere"))
