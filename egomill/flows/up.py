"""A place to look, on this machine: Prefect server, a worker with the deployments, the MLflow page. Ctrl-C ends all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml
from rich.console import Console

console = Console(stderr=True)
POOL, AUTOMATIONS = "egomill", "prefect-automations.yaml"


def up(lake: str, host: str, prefect_port: int, mlflow_port: int) -> None:
    """Start everything, print the addresses, wait. Errors: RuntimeError where a server does not come up."""
    home = Path(lake if "://" not in lake else ".").absolute()  # MLflow's database cannot lie in an object store
    home.mkdir(parents=True, exist_ok=True)
    api = f"http://{host}:{prefect_port}/api"
    env = {**os.environ, "PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    env["EGOMILL_LAKE"] = lake if "://" in lake else str(home)
    store = ["--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
    started: list[subprocess.Popen] = []

    def start(*command: str) -> None:
        started.append(subprocess.Popen([sys.executable, "-m", *command], env=env, start_new_session=True))

    def prefect(*command: str) -> None:
        subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *command], env=env, check=True, stdout=subprocess.DEVNULL)

    def known() -> bool:
        names = [automation["name"] for automation in httpx.post(f"{api}/automations/filter", json={}).raise_for_status().json()]
        return all(automation["name"] in names for automation in yaml.safe_load(Path(AUTOMATIONS).read_text())["automations"])

    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        start("prefect", "server", "start", "--host", host, "--port", str(prefect_port))
        start("mlflow", "server", *store, "--host", host, "--port", str(mlflow_port))
        wait_for(f"{api}/health", started[0])
        prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        if Path("prefect.yaml").is_file():
            prefect("deploy", "--all")
        if Path(AUTOMATIONS).is_file() and not known():
            prefect("automation", "create", "--from-file", AUTOMATIONS)
        start("prefect", "worker", "start", "--pool", POOL)
        wait_for(f"http://{host}:{mlflow_port}/health", started[1])
        console.print(f"Prefect  http://{host}:{prefect_port}    (export PREFECT_API_URL={api})", soft_wrap=True)
        console.print(f"MLflow   http://{host}:{mlflow_port}\nCtrl-C ends both.")
        while all(p.poll() is None for p in started):
            time.sleep(1)
        raise RuntimeError("a server ended; see its messages above")
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        signal.signal(signal.SIGTERM, previous)
        stop(started)


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Until the address answers 200. RuntimeError where its process ends or the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(map(str, process.args))} ended with code {process.returncode}")  # type: ignore[arg-type]
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"no answer from {url} within {seconds:.0f} s")


def stop(processes: list[subprocess.Popen]) -> None:
    """End process groups: ask, wait, insist."""
    for signum, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        alive = [p for p in processes if p.poll() is None]
        for p in alive:
            try:
                os.killpg(p.pid, signum)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(p.poll() is None for p in alive):
            time.sleep(0.1)
