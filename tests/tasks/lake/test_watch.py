"""Blame and bounds, without Ray and without deaths: what a journal makes of what it is told."""

from __future__ import annotations

import faulthandler
from contextlib import nullcontext

import pytest

from egomill.tasks.lake.watch import DEATHS, UNEXPLAINED, Journal, Watch, lasts


def watch(tmp_path, journal: Journal) -> Watch:
    return Watch(tmp_path / "words", lambda method, *arguments: getattr(journal, method)(*arguments), 0)


def die_at(tmp_path, journal: Journal, key: str, words: str = "") -> dict:
    """A process takes up the shard a, b, c and dies at one of its rows; what it had to leave alone."""
    here = watch(tmp_path, journal)
    here.ask = lambda method, *arguments: None if method == "end" else getattr(journal, method)(*arguments)  # the dead say no goodbye
    shard = here.shard(["a", "b", "c"])
    lost = shard.__enter__()
    with here.row(key) if key else nullcontext():
        here.words.write(words)
        here.words.flush()
        left = here.file.read_text()
    shard.__exit__(None, None, None)
    here.file.write_text(left)  # but leave their file
    return lost


def test_a_row_that_hangs_or_kills_is_blamed_when_it_does_it_again(tmp_path):
    journal = Journal()
    for _ in range(DEATHS):
        assert not die_at(tmp_path, journal, "b", "Timeout (0:00:02)!\nThread")
    for _ in range(DEATHS):
        assert set(die_at(tmp_path, journal, "c")) == {"b"}
    with watch(tmp_path, journal).shard(["a", "b", "c"]) as lost:
        assert {key: reason for key, (reason, _) in lost.items()} == {"b": "Timeout", "c": "WorkerDied"}
    assert not (tmp_path / "words").exists()


def test_deaths_that_no_row_explains_are_bounded_too(tmp_path):
    journal = Journal()
    for _ in range(UNEXPLAINED):
        assert die_at(tmp_path, journal, "") == {}
    with watch(tmp_path, journal).shard(["a", "b", "c"]) as lost:
        assert {reason for reason, _ in lost.values()} == {"WorkerDied"}
        assert len(lost) == 3


def test_a_row_that_ends_leaves_no_word_and_an_exception_is_no_death(tmp_path):
    journal = Journal()
    here = watch(tmp_path, journal)
    with pytest.raises(ZeroDivisionError), here.shard(["a"]), here.row("a"):
        raise ZeroDivisionError
    assert not here.file.exists()
    assert not journal.begun


def test_a_worker_that_cannot_be_made_is_given_up(tmp_path):
    journal = Journal()
    for _ in range(UNEXPLAINED):
        watch(tmp_path, journal).making("worker 1")
    with pytest.raises(RuntimeError, match="out of memory"):
        watch(tmp_path, journal).making("worker 1")


def test_a_take_may_take_longer_by_its_seconds(tmp_path, monkeypatch):
    armed = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append(round(seconds)))
    here = watch(tmp_path, Journal())
    lasts(3600.0)  # nobody watches
    for seconds, more, limits in ((100.0, 10.0, [100, 36100]), (100.0, 0.0, [100, 100]), (0.0, 10.0, [])):
        here.seconds, here.more = seconds, more
        armed.clear()
        with here.shard(["a"]), here.row("a"):
            lasts(3600.0)
        assert armed == limits
    lasts(3600.0)
    assert armed == []
