"""Whether a run that says "running" still does.

A run's row is written when it starts and when it ends, so after kill -9 it says "running" for ever. So while a driver lives, a thread of it
writes a small text beside the tables every `BEAT` seconds: host and process. A run whose process is gone from this host is dead; one on
another host, or whose text cannot be read, is dead when it has not been written for `QUIET` seconds. That is told by the clock of the
disk or the store alone: hosts' clocks may be wrong.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from egomill.tasks.lake.tables import Lake, one_of

log = logging.getLogger(__name__)
BEAT, QUIET = 20.0, 180.0  # seconds


@contextmanager
def beating(lake: Lake, run_id: str) -> Iterator[None]:
    """While this lasts, `alive(lake, run_id)` holds, on whichever machine it is asked."""
    ended = threading.Event()
    about = json.dumps({"host": _host(), "pid": os.getpid(), "born": _born(os.getpid())})

    def beat() -> None:
        lake.note(_place(run_id), about)

    def go_on() -> None:
        while not ended.wait(BEAT):
            try:
                beat()
            except OSError as error:  # the run itself will meet a store that is gone for good
                log.warning("run %s: no sign of life could be left: %s", run_id, error)

    beat()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        lake.drop_note(_place(run_id))


def alive(lake: Lake, run_id: str) -> bool:
    """Whether the driver of a run that has not ended is still there."""
    place = _place(run_id)
    with suppress(ValueError, TypeError, KeyError, OverflowError):  # cut off, or written by nobody of ours
        found = json.loads(lake.noted(place) or "")
        if found["host"] == _host():
            return abs((_born(int(found["pid"])) or -1.0) - float(found["born"])) < 1
    written = lake.noted_at(place)
    if written is None:
        return False
    lake.note("alive/clock", "")
    return abs((lake.noted_at("alive/clock") or 0.0) - written) < QUIET  # it lies ahead where the clock was put back since


def sweep(lake: Lake) -> list[str]:
    """Call the runs whose driver died what they are: their rows say "died". Returns their ids."""
    running = lake.read("runs", where="status = 'running'").to_pylist()
    dead = [row["run_id"] for row in running if not alive(lake, row["run_id"])]
    for row in lake.read("runs", where=f"status = 'running' AND {one_of('run_id', dead)}").to_pylist():  # it may have ended meanwhile
        lake.upsert("runs", [{**row, "status": "died", "detail": "its driver was killed, or its machine went"}])
        lake.drop_note(_place(row["run_id"]))
    return dead


def _host() -> str:
    """This machine since it was started, and who counts processes there: containers count their own, and may all have one name."""
    told = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            told.append(read())
    return " ".join(told)


def _born(pid: int) -> float | None:
    """When a process began, in seconds since the machine did: a clock that is put right does not change it. None where it is no more, or
    has ended and nobody asked how."""
    try:
        started = psutil.boot_time()  # first: what `create_time` adds is what this read last
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time() - started
    except (psutil.NoSuchProcess, ValueError):
        return None


def _place(run_id: str) -> str:
    return f"alive/{run_id}.json"
