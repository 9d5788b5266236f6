"""What people see of a command: one line of an error that others made, no control over their terminal, a place to write."""

import errno
import io
import logging
import os
import sqlite3
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import MlflowException
from rich.table import Table

from egomill.flows.terminal import Terminal, explain, settle


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "x", "/lake/a"), "No space left on device: /lake/a: make room, or take another place"),
        (PermissionError(errno.EACCES, "Permission denied", "/lake"), "Permission denied: /lake: let this user in, or take another place"),
        (
            OSError("LanceError(IO): Permission denied (os error 13), /home/runner/rust/lance-io/src/object_store.rs:1013:21"),
            "Permission denied (os error 13): let this user in, or take another place",
        ),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused: is it up, and is its address right?"),
        (httpx.ConnectError("nobody there"), "nobody there"),
        (
            MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]"),
            "(sqlite3.OperationalError) database or disk",
        ),
        (sqlite3.OperationalError("database is locked"), "database is locked"),
        (MemoryError(), "out of memory"),
        (KeyError("our own"), ""),
        (RuntimeError("our own"), ""),
    ],
)
def test_errors_of_machines_and_servers_are_a_line_and_ours_are_not(error, line):
    told = explain(error)
    assert line in told if line else told == ""
    assert "\n" not in told


def test_the_cause_and_the_table_are_told():
    try:
        try:
            inner = OSError(errno.EROFS, "Read-only file system")
            inner.add_note("table /lake/takes.lance")
            raise inner
        except OSError as error:
            raise RuntimeError("the run failed") from error
    except RuntimeError as error:
        told = explain(error)
    assert told == "Read-only file system, table /lake/takes.lance: let this user in, or take another place"


def test_a_terminal_shows_markup_and_controls_and_obeys_none():
    written = io.StringIO()
    terminal = Terminal(file=written, force_terminal=True, width=200)
    table = Table("[red]head\x1b[2J", title="t\x07\u202e")
    table.add_row("kitchen[/takes/2]", ":smile: \x1b]0;x\x07")
    for shown in ("kitchen[/takes/2] \x1b[2J", table):
        terminal.print(shown, highlight=False)
    text = written.getvalue()
    for words in ("kitchen[/takes/2] \\x1b[2J", "[red]head\\x1b[2J", "\\x07\\u202e", ":smile: \\x1b]0;x\\x07"):
        assert words in text
    assert "\x1b[2J" not in text
    assert not set("\x07\u202e") & set(text)


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_who_has_no_home_gets_one_that_is_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: os.environ["NOBODY"])
    for name in ("HOME", "USER", "PREFECT_HOME", "NOBODY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("USER", "")
    monkeypatch.setattr(logging, "lastResort", None)
    settle()
    (made,) = tmp_path.iterdir()
    assert os.environ["HOME"] == str(made)
    assert made.stat().st_mode & 0o077 == 0
    assert os.environ["USER"] == str(os.getuid())
    made.chmod(0o777)
    with pytest.raises(ValueError, match="set HOME"):
        settle()
    made.chmod(0o700)
    made.rename(tmp_path / "elsewhere")
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="set HOME"):
        settle()
