"""How a flow takes a step: as a Prefect task inside a flow run, as a plain call outside one. The same recipes serve both.

Ray owns retries, so Prefect's are zero. Each stage leaves a table artifact and an asset event (`lance://<lake>/<table>`), on which other
deployments may trigger; a warning line says what was rejected or failed, and what workers logged stands among the flow run's logs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow, get_run_logger, task
from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from egomill.flows.progress import Meter
from egomill.flows.terminal import Terminal
from egomill.schemas.outcome import Report, StageFailed
from egomill.schemas.text import plain
from egomill.tasks.lake import runner
from egomill.tasks.lake.runs import Run
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake

console = Terminal(stderr=True)


def greet(api: str) -> None:
    """Ask Prefect's server, once and briefly, whether it answers and lets us in; later its client waits and asks again.

    Errors: OSError that says what is wrong, where, and what to do.
    """
    what, todo = "", "start it (`egomill up`), name another with PREFECT_API_URL, or unset that to do without"
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True, httpx_settings={"timeout": 5}) as client:
            client.api_version()
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            what, todo = "does not let us in", "set PREFECT_API_AUTH_STRING (`egomill up` prints it) or PREFECT_API_KEY"
        elif code == 404 or code >= 500:
            what = f"answers {code} {error.response.reason_phrase}"
    except httpx.TimeoutException:
        what = "does not answer (nothing within 5 s)"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
        what = f"does not answer ({error})"
    except ValueError:
        what = "answers, but is no Prefect"
    if what:
        raise OSError(f"the Prefect server {api} {what}: {todo}") from None


def orchestrated() -> bool:
    """Whether Prefect is running this."""
    return FlowRunContext.get() is not None


def say(text: str, style: str = "", level: int = logging.INFO) -> None:
    """A line for whoever watches: on the flow run's page under Prefect, else on the terminal."""
    if orchestrated():
        get_run_logger().log(level, "%s", plain(text))
    else:
        console.print(text, style=style, highlight=False)


def meter(name: str) -> Meter:
    """How far a step is (flows/progress.py)."""
    return Meter(name, say, console)


def call(flow: Flow, **parameters: Any) -> Any:
    """A flow as a step of another: a subflow run under Prefect, else the plain function."""
    return flow(**parameters) if orchestrated() else flow.fn(**parameters)


def do(name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """A plain function as a step: a Prefect task under Prefect (no retries, no caching: the tables remember), else a call."""
    if not orchestrated():
        return function(*args, **kwargs)
    ours = logging.getLogger("egomill")  # what stages log, that of their workers included, belongs on the flow run's page
    if not any(isinstance(handler, APILogHandler) for handler in ours.handlers):
        handler = APILogHandler()
        handler.addFilter(_plainly)
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
    return task(name=name, retries=0, persist_result=False)(lambda: function(*args, **kwargs))()


def make(run: Run, stage: Stage, **inputs: Any) -> Report:
    """Run a stage and keep its report, whether it succeeds or fails."""
    with meter(stage.id) as advance:
        try:
            report = do(stage.id, runner.run, stage, run.lake, run.id, run.profile.resources, progress=advance, **inputs)
        except StageFailed as error:
            _tell(run, run.add(error.args[0]))
            raise
    _tell(run, run.add(report))
    return report


def link(key: str, url: str, text: str) -> None:
    """A link on the flow run's page (nothing outside Prefect)."""
    if orchestrated():
        create_link_artifact(key=key, link=url if "://" in url else Path(url).absolute().as_uri(), link_text=_markdown(text))


def show(key: str, draw: Callable[[], str], text: str) -> None:
    """A picture (what `draw` returns: an address, "" for none) on the flow run's page; outside Prefect nothing is drawn."""
    if orchestrated() and (picture := draw()):
        create_image_artifact(image_url=picture, key=key, description=_markdown(text))


def announce(lake: Lake, release: str) -> None:
    """Tell Prefect of a new release, so that deployments may start on it. A rebuild within another flow says nothing: that flow goes on."""
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.parent_task_run_id is None:
        emit_event("egomill.release.published", resource={"prefect.resource.id": f"egomill.release.{release}", "egomill.lake": lake.uri})


def _tell(run: Run, report: Report) -> None:
    line = f"{report.stage}: {report.inputs} in = {report.outputs} made + {report.rejected} rejected + {report.failed} failed"
    line += f" ({report.computed} now, {report.retired} retired, {report.seconds:.1f} s)"
    say(line, "yellow" if report.rejected or report.failed else "green")
    if report.reasons:
        reasons = ", ".join(f"{n} {reason}" for reason, n in report.reasons.most_common())
        say(f"  warning: {reasons}", "yellow", logging.WARNING)
    if not orchestrated():
        return
    table = [{k: v for k, v in report.to_dict().items() if k != "reasons"}]
    key = f"stage-{report.stage}".lower()
    create_table_artifact(table=table, key="".join(c if c.isalnum() else "-" for c in key), description=_markdown(line))
    if report.computed:
        resource = {"prefect.resource.id": f"lance://{run.lake.path(report.stage.split('/')[0])}", "prefect.resource.name": report.stage}
        emit_event("prefect.asset.materialization.succeeded", resource=resource, payload={"run_id": run.id, "rows": report.computed})


def _plainly(record: logging.LogRecord) -> bool:
    record.msg, record.args = plain(record.getMessage(), most=None, lines=True), ()
    return True


def _markdown(text: str) -> str:
    """Words that mean nothing in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", plain(text))
