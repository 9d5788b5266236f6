"""The command line. Long commands are Prefect flows, questions answer in text or, with --json, in one JSON document.

Where PREFECT_API_URL (or the active Prefect profile) names a server, long commands run as flow runs there; without one they run as plain
functions, at once and unrecorded by Prefect (the lake records every run either way). Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import io
import os
import sys
import traceback

import typer

# isort: off
from egomill.flows.cli import work, keeping, questions, release  # noqa: F401  (`--help` shows their commands in this order)

# isort: on
from egomill.flows.cli.common import app, err
from egomill.flows.terminal import MACHINE, UNREAD, explain, settle, tidy, unread
from egomill.schemas.text import plain

app.info.help = __doc__


def main() -> None:
    """Run a command; its exit code says how it ended (flows/terminal.py). What others did wrong is one line, what we did a traceback."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names on disk may be no Unicode, and a terminal may know little of it
    try:
        code = _command()
        sys.stdout.flush()
    except OSError as error:  # of writing the answer
        code = UNREAD if unread(sys.stdout.fileno()) else MACHINE
        if code == MACHINE:
            _tell("error", f"the answer could not be written: {explain(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends
    raise SystemExit(code)


def _command() -> int:
    from egomill.schemas.outcome import StageFailed

    try:
        settle()
        command = typer.main.get_command(app)
        with command.make_context("egomill", sys.argv[1:]) as context:
            command.invoke(context)
        return 0
    except typer.Exit as ended:
        return ended.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _tell("error", "interrupted")
        return 130
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            context = getattr(error, "ctx", None)
            _tell("error", f"{error.format_message()} (see {context.command_path if context else 'egomill'} --help)")
        return 2
    except StageFailed as error:
        report = error.args[0]
        _tell("failed", f"{report.failed} of {report.inputs} rows of stage {report.stage}; see `egomill failures`")
        return 1
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 60) : error.end + 20]
        _tell("error", f"...{around}... is no Unicode, which no table can keep: rename it")
        return 2
    except ValueError as error:
        _tell("error", tidy(str(error)))
        return 2
    except Exception as error:
        if isinstance(error, BrokenPipeError) and unread(sys.stdout.fileno()):
            return UNREAD
        if line := explain(error):
            _tell("error", line)
            return MACHINE
        sys.stderr.write(plain(traceback.format_exc(), most=None, lines=True))
        _tell("error", "this is a fault of Egomill's own: please report it, with the lines above and the command")
        return 1


def _tell(what: str, text: str) -> None:
    err.print(what, end=": ", style="red")
    err.print(text, highlight=False, soft_wrap=True)
