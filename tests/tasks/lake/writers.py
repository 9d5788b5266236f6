"""Processes that write one table at once, and what they tell of it: enough to replay their commits in order and compare every version."""

from __future__ import annotations

import multiprocessing
import queue
import random
from multiprocessing.synchronize import Barrier, Event

from egomill.tasks.lake import upkeep
from egomill.tasks.lake.tables import Lake

Said = list[tuple[int, str, list[str]]]  # (version, text, keys) of each commit


def write(uri: str, who: int, commits: int, start: Barrier, said: multiprocessing.Queue) -> None:
    """Commit samples of 40 keys, now and then a deletion too, and say what became of each."""
    lake, rng, told = Lake(uri), random.Random(who), []
    start.wait()
    for i in range(commits):
        keys, text = rng.sample([f"k{n:02d}" for n in range(40)], 12), f"{who}.{i}"
        rows = [{"clip_id": key, "fingerprint": text, "text": text} for key in keys]
        told.append((lake.commit("captions", lake.write_fragments("captions", rows), properties={"run_id": text}), text, keys))
    said.put(told)


def upsert(uri: str, who: int, commits: int, start: Barrier, said: multiprocessing.Queue) -> None:
    """Overwrite the same four rows of a table with two key columns."""
    lake = Lake(uri)
    start.wait()
    for i in range(commits):
        lake.upsert("failures", [{"key": f"k{n}", "stage": "s", "detail": f"{who}.{i}"} for n in range(4)])
    said.put([])


def write_for_ever(uri: str, who: int) -> None:
    """Commit shards of three rows, half of them over the keys of the shard before, until somebody kills us."""
    lake, i = Lake(uri), 0
    while True:
        rows = [{"clip_id": f"{who}.{i // 2}.{n}", "fingerprint": f"{i}", "text": f"{who}.{i}"} for n in range(3)]
        lake.commit("captions", lake.write_fragments("captions", rows))
        i += 1


def tidy(uri: str, end: Event) -> None:
    """Compact and index over and over."""
    upkeep.INDEX_ROWS = 1
    while not end.is_set():
        upkeep.compact(Lake(uri), "captions")
        upkeep.index(Lake(uri), "captions")


def at_once(work, uri: str, writers: int, commits: int, tidying: bool = False) -> Said:
    """Run the writers in processes of their own, started together; returns what they said, in the order of versions."""
    context = multiprocessing.get_context("spawn")
    start, said, end = context.Barrier(writers), context.Queue(), context.Event()
    processes = [context.Process(target=work, args=(uri, who, commits, start, said)) for who in range(writers)]
    keeper = context.Process(target=tidy, args=(uri, end))
    for process in (*processes, *([keeper] if tidying else [])):
        process.start()
    told: Said = []
    for _ in processes:
        told += heard(said, processes)
    end.set()
    for process in (*processes, *([keeper] if tidying else [])):
        process.join(60)
        assert process.exitcode == 0
    return sorted(told)


def heard(said: multiprocessing.Queue, processes: list) -> Said:
    """What the next writer to end says. Fails where one of them died without a word."""
    while True:
        try:
            return said.get(timeout=1)
        except queue.Empty:
            assert all(process.exitcode in (None, 0) for process in processes), [process.exitcode for process in processes]


def replayed(told: Said) -> dict[str, str]:
    """What a table holds after these commits, one after the other."""
    content: dict[str, str] = {}
    for _, text, keys in told:
        content |= dict.fromkeys(keys, text)
    return content
