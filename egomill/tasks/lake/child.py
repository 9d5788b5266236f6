"""A stage's worker in a process of our own: what a Ray actor is, for as few rows as are made before a Ray would be up.

The same guarantees: rows that hang, or take their process with them, are found out and lost alone (tasks/lake/watch.py). The processes
die with the driver.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from egomill.tasks.lake.watch import UNEXPLAINED, Journal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def each(shards: list[list[dict]], at_once: int, threads: int, arguments: bytes) -> Iterator[Any]:
    """Have `at_once` processes work on the shards; give what an actor's `work(shard)` returns, as they finish.

    `arguments`: the actor's class and what it is made with, pickled.
    """
    todo = deque(shards)
    busy = [Child(arguments, threads, todo.popleft()) for _ in range(min(at_once, len(shards)))]
    try:
        while busy:
            ready = wait([child.pipe for child in busy])
            for child in [child for child in busy if child.pipe in ready]:
                if (result := child.hear()) is None:
                    continue
                if todo:
                    child.take(todo.popleft())
                else:
                    child.end()
                    busy.remove(child)
                yield result
    finally:
        for child in busy:
            child.end()


class Child:
    """A process at work on a shard; where it dies, the next one."""

    def __init__(self, arguments: bytes, threads: int, shard: list[dict]) -> None:
        self.journal, self.shard, self.unborn = Journal(), shard, 0
        self.arguments, self.name = arguments, uuid.uuid4().hex  # the same after a restart
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}  # as Ray sets it
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.start()

    def start(self) -> None:
        self.pipe, theirs = Pipe()
        call = f"main({theirs.fileno()}, {os.getpid()}, {self.name!r})"
        program = f"import sys; sys.path[:] = {sys.path!r}; from egomill.tasks.lake.child import main; {call}"
        command = [sys.executable, "-P", "-c", program]
        self.errors.seek(0)
        self.errors.truncate()
        # Prefect cancels by a signal to the whole group: who dies of it would be started again.
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": self.errors, "process_group": 0}
        self.process = subprocess.Popen(command, env=self.environment, pass_fds=[theirs.fileno()], **options)
        theirs.close()
        self.born = False
        self.take(self.shard)

    def take(self, shard: list[dict]) -> None:
        self.shard = shard
        try:
            if not self.born:
                self.pipe.send_bytes(self.arguments)
            self.pipe.send_bytes(json.dumps(shard).encode())
        except BrokenPipeError:
            pass  # which `hear` notices

    def hear(self) -> Any:
        """The shard's result, or None: it said something else. Errors: those that the process ran into, by their type and words."""
        try:
            what, *told = json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.end()
            self.unborn += not self.born
            if self.unborn >= UNEXPLAINED:
                self.errors.seek(0)
                said = self.errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise RuntimeError(f"a stage's process ends with {self.process.returncode} before it begins: {said[-1]}") from None
            self.start()
            return None
        self.born = True
        if what == "done":
            return tuple(told[0])
        if what == "raised":
            kind, arguments, trace = told
            error = getattr(builtins, kind, RuntimeError)(*arguments)
            error.add_note(trace)
            raise error
        answer = getattr(self.journal, what)(*told)
        if what == "begin":
            self.pipe.send_bytes(json.dumps(answer).encode())
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def main(descriptor: int, parent: int, me: str) -> None:
    """The process: shards in, results out, until its driver goes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    pipe = Connection(descriptor)

    def tell(*what: Any) -> None:
        pipe.send_bytes(json.dumps(what).encode())

    def ask(method: str, *arguments: Any) -> Any:
        tell(method, *arguments)
        return json.loads(pipe.recv_bytes()) if method == "begin" else None

    (make, arguments), actor = pipe.recv(), None
    while True:
        try:
            shard = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            actor = actor or make(**arguments, me=me, ask=ask)
            tell("done", actor.work(shard))
        except Exception as error:
            plain = type(error).__module__ == "builtins" and all(isinstance(a, str | int) for a in error.args)
            words = list(error.args) if plain else [f"{type(error).__name__}: {error}"]
            tell("raised", type(error).__name__ if plain else "RuntimeError", words, traceback.format_exc())
            return
