"""How far something is: a bar on a terminal, elsewhere a line a minute; what is done within a minute says nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from egomill.flows.terminal import Terminal
from egomill.schemas.text import plain

EVERY = 60.0  # seconds between two lines

Advance = Callable[..., None]  # (done, total, words to go with it)


class Meter:
    """Entered, it gives a function to say how far things are: (done, total) or (done, total, words). `tell` takes the lines."""

    def __init__(self, name: str, tell: Callable[[str], None], console: Terminal) -> None:
        self.name, self.tell, self.shown = plain(name), tell, sys.stderr.isatty()
        words = TextColumn("{task.fields[words]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, TimeRemainingColumn(), words, console=console, transient=True, disable=not self.shown)
        self.task = self.bar.add_task(self.name, total=None, words="")
        self.began = self.told = time.monotonic()
        self.first: int | None = None

    def __enter__(self) -> Advance:
        self.bar.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, done: int, total: int, words: str = "") -> None:
        self.bar.update(self.task, completed=done, total=total, words=plain(words))
        now = time.monotonic()
        if self.first is None:
            self.first, self.began = done, now
        if self.shown or now - self.told < EVERY or done >= total:
            return
        self.told = now
        made = done - self.first
        left = f", about {_minutes((now - self.began) / made * (total - done))} left" if made > 0 else ""
        self.tell(f"{self.name}: {done} of {total}{f', {words}' if words else ''}{left}")


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
