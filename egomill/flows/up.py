"""A place to look, on this machine: Prefect server, a worker with the deployments, the MLflow page. Ctrl-C ends all of it.

Whoever reaches Prefect's API runs code as the user. So both servers ask for a secret, made anew at each start unless one is set, which
processes are told by their environment, where other users cannot read it. A browser's other pages do not know it either, and are refused
besides: Prefect wants a CSRF token and allows no foreign origin; MLflow, which trusts every page of this machine, stands behind `guarded`.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from egomill.flows.terminal import Terminal
from egomill.tasks.lake.tracking import Tracker

console = Terminal(stderr=True)
POOL, AUTOMATIONS = "egomill", "prefect-automations.yaml"
AUTH, STORE = "PREFECT_SERVER_API_AUTH_STRING", "EGOMILL_UP_STORE"
# What a deployment or a run may change of the command that a worker starts: nothing.
TEMPLATE = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def up(lake: str, host: str, prefect_port: int, mlflow_port: int) -> None:
    """Start everything, print the addresses, wait. Errors: OSError where a server does not come up."""
    home = Path(lake if "://" not in lake else ".").absolute()  # MLflow's database cannot lie in an object store
    for name, port in (("prefect", prefect_port), ("mlflow", mlflow_port)):
        free(host, port, f"--{name}-port")
    at = f"[{host}]" if ":" in host else host
    page, mlflow = f"http://{at}:{prefect_port}", f"http://{at}:{mlflow_port}"
    secret = os.environ.get(AUTH) or f"egomill:{secrets.token_urlsafe(24)}"
    user, _, password = secret.partition(":")
    env = {**os.environ, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env |= {"PREFECT_API_URL": f"{page}/api", AUTH: secret, "PREFECT_API_AUTH_STRING": secret}
    origins = f"{page},http://localhost:{prefect_port}"  # one page by two names
    env |= {"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins}
    env[STORE] = Tracker.beside(str(home)).uri
    if host in ("127.0.0.1", "localhost", "::1"):
        env["MLFLOW_SERVER_ALLOWED_HOSTS"] = f"{at}:{mlflow_port},localhost:{mlflow_port}"
    env["EGOMILL_LAKE"] = lake if "://" in lake else str(home)
    started: list[subprocess.Popen] = []

    def start(*command: str) -> None:
        started.append(subprocess.Popen([sys.executable, "-m", *command], env=env, start_new_session=True))

    def prefect(*command: str, must: bool = True) -> bool:
        whole = [sys.executable, "-m", "prefect", "--no-prompt", *command]
        done = subprocess.run(whole, env=env, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode and must:
            raise OSError(f"`prefect {' '.join(command)}` ended with code {done.returncode}: {done.stdout.strip()[-500:]}")
        return not done.returncode

    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        start("prefect", "server", "start", "--host", host, "--port", str(prefect_port))
        start("uvicorn", "--factory", "egomill.flows.up:mlflow_page", "--host", host, "--port", str(mlflow_port), "--log-level", "warning")
        wait_for(f"{page}/api/health", started[0])
        with tempfile.NamedTemporaryFile("w", suffix=".json") as template:
            json.dump(TEMPLATE, template)
            template.flush()
            prefect("work-pool", "create", POOL, "--type", "process", "--overwrite", "--base-job-template", template.name)
        if Path("prefect.yaml").is_file():
            prefect("deploy", "--all")
        if Path(AUTOMATIONS).is_file():
            names = [automation["name"] for automation in yaml.safe_load(Path(AUTOMATIONS).read_text())["automations"]]
            if not all(prefect("automation", "inspect", name, must=False) for name in names):
                prefect("automation", "create", "--from-file", AUTOMATIONS)
        start("prefect", "worker", "start", "--pool", POOL)
        wait_for(f"{mlflow}/health", started[1])
        console.print(f"Prefect  {page}    password: {secret}", soft_wrap=True)
        console.print(f"MLflow   {mlflow}    user: {user}  password: {password}", soft_wrap=True)
        console.print("For commands in another shell, whose long ones are flow runs then (this text is a secret):", soft_wrap=True)
        console.print(f"  export PREFECT_API_URL={page}/api PREFECT_API_AUTH_STRING={secret}", soft_wrap=True)
        console.print("Ctrl-C ends both.")
        while all(p.poll() is None for p in started):
            time.sleep(1)
        raise OSError("a server ended; see its messages above")
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        signal.signal(signal.SIGTERM, previous)
        stop(started)


def free(host: str, port: int, option: str) -> None:
    """OSError where somebody listens on the port already: who asks there would ask them."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise OSError(f"port {port} of {host} cannot be had ({error.strerror or error}): name another with {option}") from None


def mlflow_page() -> Any:
    """MLflow's application behind `guarded`, as the environment says that `up` makes."""
    return guarded(Tracker(os.environ[STORE]).page(), os.environ[AUTH])


def guarded(app: Any, secret: str) -> Callable[..., Awaitable[None]]:
    """An ASGI application that answers only who knows the secret ("user:password", HTTP's basic authentication), and no request that
    another page makes: a browser says of each where it comes from. Links may be followed.
    """
    wanted = b"Basic " + base64.b64encode(secret.encode())

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"] == "/health":
            return await app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        said = {name: value.decode("latin-1") for name, value in scope["headers"]}
        link = (scope["method"], said.get(b"sec-fetch-mode"), said.get(b"sec-fetch-dest")) == ("GET", "navigate", "document")
        own = said.get(b"sec-fetch-site", "none") in ("none", "same-origin") or link
        if b"origin" in said and urlsplit(said[b"origin"]).netloc != said.get(b"host"):
            own = False
        if not own:
            return await refuse(send, 403, b"Another page's requests are refused.\n")
        if not hmac.compare_digest(said.get(b"authorization", "").encode("latin-1"), wanted):
            return await refuse(send, 401, b"`egomill up` printed user and password.\n", (b"www-authenticate", b'Basic realm="egomill up"'))
        await app(scope, receive, send)

    return guard


async def refuse(send: Any, status: int, why: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain"), *headers]})
    await send({"type": "http.response.body", "body": why})


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Until the address answers 200. OSError where its process ends or the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OSError(f"{' '.join(map(str, process.args))} ended with code {process.returncode}")  # type: ignore[arg-type]
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise OSError(f"no answer from {url} within {seconds:.0f} s")


def stop(processes: list[subprocess.Popen], patience: float = 10.0) -> None:
    """End process groups: ask, wait so many seconds, insist."""
    for signum, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        alive = [p for p in processes if p.poll() is None]
        for p in alive:
            try:
                os.killpg(p.pid, signum)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(p.poll() is None for p in alive):
            time.sleep(0.1)
