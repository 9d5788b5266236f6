"""Connect to Ray: the cluster at RAY_ADDRESS where there is one, else a Ray of our own on this machine.

Rows are fingerprinted by the driver's code, so on a cluster that code has to run, whatever copy of this package the machines' image holds:
the driver's travels with the job, in Ray's runtime environment. Addresses and settings travel as arguments. Nothing of the driver's
environment is sent along: who may look at a cluster may look at that too, and it is no place for keys. What a worker reads from its
environment (`AWS_*`, `HF_*`, `OPENAI_API_KEY`, `MLFLOW_TRACKING_TOKEN`, a proxy) its own machine has to set.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data

PACKAGE = Path(__file__).parent.parent


def address() -> str:
    """Of the cluster; "" where this machine works alone."""
    named = os.environ.get("RAY_ADDRESS", "")
    return "" if named == "local" else named


def connect() -> None:
    """Idempotent. A local Ray runs without dashboard and ends with this process, and this process soon after a Ray that dies: to go on
    is to start again.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its errors reach us as exceptions; the rest is noise on a terminal
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # a report waits for the next poll: 2 s by default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = address()
    if not cluster:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster has its own
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # nobody restarts a local one; 60 s by default
        os.environ.setdefault("RAY_agent_register_timeout_ms", "60000")  # 15 s by default, in which a busy machine imports little
    options = {} if cluster else {"include_dashboard": False, "object_store_memory": 512 * 1024**2, "_node_ip_address": "127.0.0.1"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as empty, nullcontext() if cluster else _out_of_reach():
        if cluster:
            options = {"address": cluster, "runtime_env": code(empty)}
        for left in (2, 1, 0):
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
                break
            except Exception:  # a busy machine may need longer than the 30 s that Ray gives itself
                ray.shutdown()
                if cluster or not left:
                    raise
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of the one by which Prefect cancels
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def interruptible(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises, awaited where a signal's handler is heard: Ray's own waiting goes on, or garbles what it raised."""
    future: Future = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=carry_out, daemon=True).start()
    return future.result()


@contextmanager
def _out_of_reach() -> Iterator[None]:
    """Ray's processes started meanwhile get process groups of their own.

    Prefect cancels by a signal to the whole group of a flow run, and a Ray that dies of it takes the driver along, before the driver could
    say how it ended. They still die with the driver: the kernel sees to that.
    """
    from ray._private import services

    stock: Any = services.ConsolePopen
    services.ConsolePopen = partial(stock, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = stock


def code(empty: str) -> dict[str, Any]:
    """The runtime environment that makes workers import this very package (7 MB, sent once; machines keep it while it does not change).

    Ray puts the driver's working folder before all that it ships, so that a machine with a checkout at the same place would import that;
    it does not where a job has a working folder of its own, which is what `empty` is for. What `ray job submit` was told stands.
    """
    wanted = {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__"], "working_dir": empty}
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return {name: value for name, value in wanted.items() if name not in told}


def require(what: str, cpus: float, gpus: float) -> None:
    """ValueError where this machine, alone, can never give an actor so much: it would wait for ever. A cluster may grow."""
    has = ray.cluster_resources()
    if not address() and (cpus > has.get("CPU", 0) or gpus > has.get("GPU", 0)):
        raise ValueError(f"{what} takes {cpus:g} CPUs and {gpus:g} GPUs; here are {has.get('CPU', 0):g} and {has.get('GPU', 0):g}")
