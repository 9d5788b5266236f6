"""The same lake in an object store: a real S3 protocol server, everything a lake does, and writers at once."""

from __future__ import annotations

from datetime import timedelta

import boto3
import pytest
from botocore.exceptions import ClientError

from egomill.schemas.fingerprint import digest
from egomill.tasks.keeping import repair
from egomill.tasks.lake import damage, upkeep
from egomill.tasks.lake.tables import Damaged, Lake, one_of
from tests.tasks.lake.test_lake_concurrent import check_every_version
from tests.tasks.lake.writers import at_once, upsert, write


def test_the_server_honours_what_commits_stand_on(s3_lake):
    """Put-if-absent; without it, two commits could become one version."""
    client, bucket = boto3.client("s3"), s3_lake.split("/")[2]
    client.put_object(Bucket=bucket, Key="version", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="version", Body=b"2", IfNoneMatch="*")


def test_what_a_lake_does(s3_lake):
    lake = Lake(s3_lake)
    assert not lake.is_local
    assert lake.count("captions") == 0

    def captions(texts: dict[str, str]) -> str:
        return lake.write_fragments("captions", [{"clip_id": k, "fingerprint": v, "text": v} for k, v in texts.items()])

    def content(version: int | None = None) -> dict[str, str]:
        return {r["clip_id"]: r["text"] for r in lake.read("captions", version=version).to_pylist()}

    fragments = captions({"a": "1", "b": "1"})
    assert content() == {}
    first = lake.commit("captions", fragments)
    assert lake.commit("captions", fragments) == first
    upkeep.tag(lake, "captions", first, "release-one")
    for i in range(5):
        lake.commit("captions", captions({"b": f"{i}", f"c{i}": "2"}), replace=one_of("clip_id", ["a"]))
    expected = {"b": "4", **{f"c{i}": "2" for i in range(5)}}
    assert content() == expected
    lake.upsert("failures", [{"key": "it's", "stage": "s", "attempt": 1}])
    lake.upsert("failures", [{"key": "it's", "stage": "s", "attempt": 2}])
    assert [r["attempt"] for r in lake.rows("failures", ["it's"])] == [2]

    young, before = captions({"z": "young"}), upkeep.files(lake, "captions")
    assert upkeep.compact(lake, "captions")
    gone = upkeep.clean(lake, "captions", timedelta(0))
    assert gone["versions"] > 3
    assert upkeep.files(lake, "captions") < before
    assert content() == expected
    assert content(first) == {"a": "1", "b": "1"}  # tagged
    lake.commit("captions", young)
    assert content() == {**expected, "z": "young"}


def test_damage_is_noticed_and_a_forgotten_take_refused(s3_lake):
    lake, client, bucket = Lake(s3_lake), boto3.client("s3"), s3_lake.split("/")[2]
    for clip in ("a.cam01.0", "b.cam01.0"):
        lake.upsert("captions", [{"clip_id": clip, "text": clip}])
    digests = {path: damage.sha256(lake, "captions", path) for path in damage.files_of(lake, "captions")}
    assert all(digests.values())
    assert len(digests) == 3
    assert damage.lacking(lake, "captions") == damage.altered(lake, "captions") == {}
    path = next(path for path in digests if path.startswith("data/"))
    client.put_object(Bucket=bucket, Key=f"some/lake/captions.lance/{path}", Body=b"")
    assert path in damage.lacking(lake, "captions")
    assert damage.sha256(lake, "captions", path) not in ("", digests[path])
    with pytest.raises(Damaged, match="egomill repair"):
        lake.read("captions")
    assert [m["rows"] for m in repair.repair(lake)["mended"]] == [1]
    assert lake.count("captions") == 1
    client.put_object(Bucket=bucket, Key=f"some/lake/captions.lance/{min(damage.files_of(lake, 'captions'))}", Body=b"cut")
    assert repair.repair(lake)["mended"][0]["what"] == "stands at version 3 again"

    lake.upsert("forgotten", [{"take": digest("c")}])
    before = upkeep.files(lake, "captions")
    with pytest.raises(ValueError, match="was forgotten"):
        lake.upsert("captions", [{"clip_id": "c.cam01.0"}])
    assert upkeep.files(lake, "captions") == before


def test_two_writers_of_overlapping_keys(s3_lake):
    lake = Lake(s3_lake)
    told = at_once(write, lake.uri, writers=2, commits=10)
    assert len(told) == 20
    check_every_version(lake, told)


def test_upserts_at_once(s3_lake):
    lake = Lake(s3_lake)
    at_once(upsert, lake.uri, writers=3, commits=4)
    assert len(lake.read("failures")) == 4
