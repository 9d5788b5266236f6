"""Rows that hang, or take their process with them: each is found out and lost alone.

Python cannot interrupt a decode that hangs in C, and nothing catches a segfault or the kernel's out-of-memory killer. So a row may end
the process that works on it. Before it touches a row, a process notes its key in a file. When the row's time is up the interpreter's own
fault handler writes every thread's stack behind it and ends the process (it needs no lock that the hung code may hold); when the process
crashes it writes where. The process that Ray starts in its place reads these last words, tells the journal, and tries the shard again
without the rows that the journal calls lost. This costs a row two small writes to a local file, and a shard two calls.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEATHS = 2  # of the process at one row, hung or crashed, before the row is blamed: one may be chance
UNEXPLAINED = 3  # deaths over one shard that no row explains (while reading or writing; or the process came up on another machine)


class Journal:
    """What the processes of a run of a stage left behind. It lives outside of them, and no longer than the run."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.lost: dict[str, tuple[str, str]] = {}
        self.processes: list[Any] = []

    def met(self, process: Any = None) -> list[Any]:
        """Note a process's handle (None: nothing); returns all that were noted."""
        self.processes += [process] if process else []
        return self.processes

    def begin(self, work: str, keys: Sequence[str] = ()) -> tuple[int, dict[str, tuple[str, str]]]:
        """A process starts on a piece of work. Returns how many died over it unexplained, and which keys to leave alone: {key: (reason,
        detail)}.
        """
        unexplained = self.begun[work] - sum(self.deaths[k] for k in keys)
        self.begun[work] += 1
        if unexplained >= UNEXPLAINED:
            why = f"{unexplained} processes died over this row's shard outside of any row: out of memory, or killed"
            self.lost |= {k: ("WorkerDied", why) for k in keys if k not in self.lost}
        return unexplained, {k: self.lost[k] for k in keys if k in self.lost}

    def end(self, work: str) -> None:
        del self.begun[work]

    def mourn(self, key: str, words: str) -> None:
        """A process died while it worked on a row; `words` is what its fault handler wrote, if anything."""
        self.deaths[key] += 1
        if self.deaths[key] >= DEATHS:
            reason = "Timeout" if words.startswith("Timeout") else "WorkerDied"
            said = words or "without a word: out of memory, or killed"
            self.lost[key] = (reason, f"{self.deaths[key]} processes ended while they worked on this row. {said}")


class Watch:
    """A process's side: `ask(method, *arguments)` reaches the journal, `file` is known to the process's successor as well.

    A row may take `seconds` (0: no limit), and so many `more` for every second of a take, once its worker has said how long that lasts.
    """

    at_work: Watch | None = None  # on a row, in this process

    def __init__(self, file: Path, ask: Callable[..., Any], seconds: float, more: float = 0.0) -> None:
        self.file, self.ask, self.seconds, self.more = file, ask, seconds, more
        if file.exists():
            key, _, words = file.read_text(errors="replace").partition("\n")
            if key:
                ask("mourn", json.loads(key), words[:8000])
            file.unlink()

    @contextmanager
    def shard(self, keys: Sequence[str]) -> Iterator[dict[str, tuple[str, str]]]:
        """Around the work on some rows; gives those that are lost."""
        work = f"shard {keys[0]}"
        _, lost = self.ask("begin", work, keys)
        self.file.touch(mode=0o600)
        with self.file.open("a") as self.words:
            faulthandler.enable(self.words)
            try:
                yield lost
            finally:  # an exception is no death
                faulthandler.enable()
                self.file.unlink()
                self.ask("end", work)

    @contextmanager
    def row(self, key: str) -> Iterator[None]:
        """Around the work on one row."""
        self.words.write(json.dumps(key) + "\n")
        self.words.flush()
        self.begun, Watch.at_work = time.monotonic(), self
        self.limit(self.seconds)
        try:
            yield
        finally:
            Watch.at_work = None
            faulthandler.cancel_dump_traceback_later()
            self.words.truncate(0)

    def limit(self, seconds: float) -> None:
        """From the row's beginning on."""
        if self.seconds:
            left = max(1.0, seconds - (time.monotonic() - self.begun))
            faulthandler.dump_traceback_later(left, exit=True, file=self.words)

    def making(self, name: str) -> None:
        """Call before the worker is made. Models that do not fit kill the process again and again: RuntimeError then."""
        deaths, _ = self.ask("begin", name)
        if deaths >= UNEXPLAINED:
            raise RuntimeError(f"{deaths} processes died while they made the worker: out of memory? Try fewer at a time (resources.actors)")

    def made(self, name: str) -> None:
        self.ask("end", name)


def lasts(seconds: float) -> None:
    """A worker's word for how long the take lasts that it works on: its row may take the longer. Where nobody watches: nothing."""
    if Watch.at_work:
        Watch.at_work.limit(Watch.at_work.seconds + Watch.at_work.more * seconds)
