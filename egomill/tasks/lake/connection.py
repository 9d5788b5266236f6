"""Whether an MLflow server answers, asked before anything waits for it; a client of one; and values in words that it takes."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from egomill.schemas.text import plain

PATIENCE = 5  # seconds for a server's first answer; what comes later waits and tries again, as MLflow does: some four minutes


@lru_cache(maxsize=4)
def greet(uri: str) -> None:
    """Whether the server at `uri` answers, and answers us, asked once a process: an outage later is waited for, as MLflow does.

    Errors: OSError that says what is wrong, where, and what to do.
    """
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        place = urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"the MLflow server {uri!r} is no address ({error}): name it as http://host:port") from None
    shown = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()  # without a password
    what, todo = "", "start it, or name another with --tracking or MLFLOW_TRACKING_URI"
    try:
        ask = {"max_retries": 0, "timeout": PATIENCE, "raise_on_status": False}
        answer: Any = http_request(get_default_host_creds(uri), "/api/2.0/mlflow/experiments/search?max_results=1", "GET", **ask)
        if answer.status_code in (401, 403):
            what, todo = "does not let us in", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        elif answer.status_code not in (200, 429):  # 429: it is there, and busy
            what = f"answers {answer.status_code} {answer.reason}"
        elif answer.status_code == 200 and "json" not in answer.headers.get("content-type", ""):
            what = "answers, but is no MLflow"
    except (MlflowException, OSError) as error:  # what requests raises is an OSError
        what = "has a name that is not found" if "resolve" in str(error) else f"does not answer ({brief(error)})"
    if what:
        raise OSError(f"the MLflow server {shown} {what}: {todo}") from None


def brief(error: BaseException) -> str:
    text = str(error)
    known = {
        "aborted": "it hangs up",
        "refused": "connection refused",
        "timed out": f"nothing within {PATIENCE} s",
        "SSL": "no secure connection could be made",
    }
    return next((words for sign, words in known.items() if sign in text), text.rpartition(": ")[2][:200])


@lru_cache(maxsize=4)
def connected(uri: str, database: Path | None) -> Any:
    """A client of the store, one a process; `database` is its file, where it has one. OSError where that cannot be opened."""
    from mlflow import MlflowClient

    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
        try:  # MLflow would try again for minutes what no trying mends
            with contextlib.closing(sqlite3.connect(database)) as opened:
                opened.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            raise OSError(f"MLflow's database {database}: {error}") from None
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: plain(str(value), most=5000) for key, value in values.items()}  # MLflow takes 6,000 characters


def quoted(value: str) -> str:
    """As MLflow's filters write a text, in which nothing can be escaped."""
    mark = '"' if "'" in value else "'"
    if mark in value:
        raise ValueError(f"{plain(value)}: nothing in MLflow has a name with both kinds of quotation marks")
    return f"{mark}{plain(value, most=5000)}{mark}"


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
