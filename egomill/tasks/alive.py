"""Whether a run that says "running" still does.

A run's row is written when it starts and when it ends, so after kill -9 it says "running" for ever. So while a driver lives, a thread of it
writes a small text beside the tables every `BEAT` seconds: host, process, time. A run whose process is gone from this host is dead; one on
another host is dead when its text has not been written for `QUIET` seconds (clocks of hosts may differ by less than that).
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from egomill.tasks.lake import Lake, one_of

log = logging.getLogger(__name__)
BEAT, QUIET = 20.0, 180.0  # seconds


@contextmanager
def beating(lake: Lake, run_id: str) -> Iterator[None]:
    """While this lasts, `alive(lake, run_id)` holds, on whichever machine it is asked."""
    ended, me = threading.Event(), psutil.Process()
    about = {"host": socket.gethostname(), "pid": me.pid, "born": me.create_time()}

    def beat() -> None:
        lake.note(_place(run_id), json.dumps({**about, "at": time.time()}))

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
    text = lake.noted(_place(run_id))
    if text is None:
        return False
    found = json.loads(text)
    if found["host"] == socket.gethostname():
        try:
            return abs(psutil.Process(found["pid"]).create_time() - found["born"]) < 1
        except psutil.NoSuchProcess:
            return False
    return time.time() - found["at"] < QUIET


def sweep(lake: Lake) -> list[str]:
    """Call the runs whose driver died what they are: their rows say "died". Returns their ids."""
    running = lake.read("runs", where="status = 'running'").to_pylist()
    dead = [row["run_id"] for row in running if not alive(lake, row["run_id"])]
    for row in lake.read("runs", where=f"status = 'running' AND {one_of('run_id', dead)}").to_pylist():  # it may have ended meanwhile
        lake.upsert("runs", [{**row, "status": "died", "detail": "its driver was killed, or its machine went"}])
        lake.drop_note(_place(row["run_id"]))
    return dead


def _place(run_id: str) -> str:
    return f"alive/{run_id}.json"
