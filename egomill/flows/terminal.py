"""What people get to see of a command: text that cannot drive their terminal, errors in one line, exit codes.

0: done. 1: the answer is no, or rows failed; with a traceback: a fault of Egomill's own. 2: the call is wrong. 3: `verify` cannot tell.
4: this machine, or a server that it needs, does not do its part. 130: interrupted. 141: nobody reads the answer any more (`| head`).
"""

from __future__ import annotations

import errno
import getpass
import logging
import os
import re
import select
import stat
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from egomill.schemas.text import plain

MACHINE, UNREAD = 4, 141
SERVERS = {"mlflow": "MLflow", "prefect": "Prefect", "botocore": "the object store", "ray": "Ray"}
OTHERS = {"httpx", "httpcore", "requests", "urllib3", "sqlalchemy", "sqlite3", "pyarrow", "lance"}
ADVICE = {
    "make room, or take another place": (errno.ENOSPC, errno.EDQUOT),
    "let this user in, or take another place": (errno.EACCES, errno.EPERM, errno.EROFS),
    "check the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    "is it up, and is its address right?": (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH),
    "name another port": (errno.EADDRINUSE,),
    "allow more open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
}


class Terminal(Console):
    """A console for names and texts from anywhere: no markup, and what is not printable is shown as its escape."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def explain(error: BaseException | None) -> str:
    """What is wrong, where, and what to do, in one line, where the machine or a server is at fault; "" where we are."""
    while error is not None:
        library = type(error).__module__.partition(".")[0]
        inner = getattr(error, "cause", None)  # Ray's wrapping of what a worker raised
        if library == "ray" and isinstance(inner, BaseException):
            error = inner
            continue
        if isinstance(error, OSError) or library in SERVERS or library in OTHERS:
            return _line(error, SERVERS.get(library, ""))
        if isinstance(error, MemoryError):
            return "out of memory: close something, or ask for less at once"
        error = error.__cause__
    return ""


def _line(error: BaseException, server: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number and getattr(error, "filename", None) is not None:
        text = f"{os.strerror(number)}: {os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename}"  # type: ignore[attr-defined]
    else:
        text = getattr(error, "strerror", None) or next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        text = tidy(text)
        if found := re.search(r"os error (\d+)", text):
            number = int(found[1])
    text = ", ".join([f"{server}: {text}" if server else text, *getattr(error, "__notes__", ())])
    if "disk is full" in text:
        number = errno.ENOSPC
    advice = next((words for words, numbers in ADVICE.items() if number in numbers), "")
    return f"{text}: {advice}" if advice else text


def tidy(text: str) -> str:
    """The text of an error without the places in Lance's own source."""
    return re.sub(r"LanceError\(\w+\): |, \S+\.rs:\d+:\d+\b", "", text.strip())


def unread(descriptor: int) -> bool:
    """Whether it leads into a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def settle() -> None:
    """Make it possible to run where the user has no home, as containers have whose user number is in no list; and what libraries log pass
    through `plain`. ValueError where there is no place to write."""
    try:
        home = Path.home()
    except RuntimeError:
        home = _private(Path(tempfile.gettempdir()) / f"egomill-home-{os.getuid()}")
        os.environ["HOME"] = str(home)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
    if "PREFECT_HOME" not in os.environ and not _writable(home / ".prefect"):  # `docker --user` sets HOME=/
        os.environ["PREFECT_HOME"] = str(_private(Path(tempfile.gettempdir()) / f"egomill-home-{os.getuid()}") / ".prefect")
    if logging.lastResort:
        logging.lastResort.setFormatter(_Plain("%(message)s"))


def _writable(folder: Path) -> bool:
    """Whether one may write into it, or make it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _private(folder: Path) -> Path:
    """A folder that is this user's alone, made where it is not there. ValueError where somebody else made it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ValueError(
            f"this user has no home, and {folder} cannot be made ({error.strerror}): set HOME to a folder to write into"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValueError(f"no home, and {folder} is not this user's alone: set HOME to a folder to write into")
    return folder


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record), most=None, lines=True)
