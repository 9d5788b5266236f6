"""Connect to Ray: the cluster at RAY_ADDRESS where there is one, else a Ray of our own on this machine.

Rows are fingerprinted by the driver's code, so on a cluster that code has to run, whatever copy of this package the machines' image holds:
the driver's travels with the job, in Ray's runtime environment. Addresses and settings travel as arguments. Nothing of the driver's
environment is sent along: who may look at a cluster may look at that too, and it is no place for keys. What a worker reads from its
environment (`AWS_*`, `HF_*`, `OPENAI_API_KEY`, `MLFLOW_TRACKING_TOKEN`, a proxy) its own machine has to set.

Whoever may talk to a Ray runs code as its user. A cluster is guarded by those who run it; a Ray of our own listens on the loopback
interface alone, asks for a token that only its own processes have, and keeps its sockets and files in a folder that is its user's alone.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

PACKAGE = Path(__file__).parents[2]
PRIVATE = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # for all that this process starts: Ray reads it once
    "RAY_enable_metrics_collection": "0",  # metrics would be told without a token
    "AUTOSCALER_METRIC_PORT": "-1",  # which cannot be: Ray notes so in its log, and goes on without
    "DASHBOARD_METRIC_PORT": "-1",
    "GLOO_SOCKET_IFNAME": "lo",  # on which the workers of a training listen to one another
    "NCCL_SOCKET_IFNAME": "lo",
}
LOOPBACK = "127.0.0.1"
TRIES = 3  # to start a Ray of our own
SOCKET = len("ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")  # the longest that Ray puts into its folder


def address() -> str:
    """Of the cluster; "" where this machine works alone."""
    named = os.environ.get("RAY_ADDRESS", "")
    return "" if named == "local" else named


def connect() -> None:
    """Idempotent. A local Ray runs without dashboard and ends with this process, and this process soon after a Ray that dies: to go on
    is to start again.

    Errors: ValueError, in one line, where a local Ray does not come up or a cluster does not let us in.
    """
    import ray
    import ray.data

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its errors reach us as exceptions; the rest is noise on a terminal
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # a report waits for the next poll: 2 s by default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of it, and no process comes up to count
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if cluster := address():
        _join(cluster)
    else:
        _start()
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of the one by which Prefect cancels
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _join(cluster: str) -> None:
    """The cluster at this address."""
    import ray

    host, _, port = cluster.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()  # Ray itself would ask for a minute
        with tempfile.TemporaryDirectory() as empty:
            ray.init(cluster, runtime_env=code(empty), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ValueError(
            f"RAY_ADDRESS={cluster}: {_first_line(error)}; name a cluster that answers, or unset it to work here alone"
        ) from error


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _start() -> None:
    """A Ray of our own."""
    import ray

    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # nobody restarts a local one; 60 s by default
    os.environ.setdefault("RAY_agent_register_timeout_ms", "60000")  # 15 s by default, in which a busy machine imports little
    folder = room()
    atexit.register(_end, folder)
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 512 * 1024**2, "_temp_dir": str(folder / "ray")}
    why = None
    for _ in range(TRIES):
        try:
            with socket.create_server((LOOPBACK, 0)) as probe:  # in some containers there is none
                socket.create_connection(probe.getsockname(), timeout=10).close()
            with _private():
                ray.init("local", log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # a busy machine may need longer than the 30 s that Ray gives itself
            why = error
            ray.shutdown()
            if isinstance(error, (OSError, ValueError)):  # which it is told at once, and would be told again
                break
    shutil.rmtree(folder, ignore_errors=True)
    load = f"{os.getloadavg()[0]:.0f} processes wait for {os.cpu_count()} CPUs"
    what_to_do = "try again when it has less to do, or name a cluster: RAY_ADDRESS"
    raise ValueError(f"Ray does not start on this machine: {_first_line(why)} ({load}); {what_to_do}") from why


def _end(folder: Path) -> None:
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def room() -> Path:
    """A new folder for a local Ray, which nobody but its user may enter: Ray lets everybody write to its own, its sockets among them.

    Not in every place for temporary files is room: sockets need a short path, and a file system that knows them.
    Errors: ValueError that names the places that were tried.
    """
    no = {}
    for place in filter(None, (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm")):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="egomill-", dir=os.path.abspath(place)))
            if folder.stat().st_mode & 0o077:
                raise OSError("does not keep files private")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(folder / ("s" * SOCKET)))
            (folder / "full").write_bytes(bytes(1024**2))
            for file in folder.iterdir():
                file.unlink()
            return folder
        except OSError as error:
            no[place] = error.strerror or str(error)
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
    tried = ", ".join(f"{place} ({why})" for place, why in no.items())
    raise ValueError(
        f"Ray finds no place for its sockets and files: {tried}; set RAY_TMPDIR to a folder with a short path that you may write to"
    )


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
def _private() -> Iterator[None]:
    """Ray's processes started meanwhile are this process' alone, and get process groups of their own.

    Ray takes 127.0.0.1 to mean the machine's other address, unless clusters are switched off, as they are on laptops.

    Prefect cancels by a signal to the whole group of a flow run, and a Ray that dies of it takes the driver along, before the driver could
    say how it ended. They still die with the driver: the kernel sees to that.
    """
    from ray._private import ray_constants, services
    from ray._raylet import Config  # type: ignore[attr-defined]

    apart = partial(services.ConsolePopen, process_group=0)
    alone = patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False)
    with patch.dict(os.environ, PRIVATE), patch.object(services, "ConsolePopen", apart), alone:
        Config.initialize("")  # read once when it was imported: this process asks for the token, too
        yield


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
    import ray

    has = ray.cluster_resources()
    if not address() and (cpus > has.get("CPU", 0) or gpus > has.get("GPU", 0)):
        here = f"here are {has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
        raise ValueError(f"{what} takes {cpus:g} CPUs and {gpus:g} GPUs; {here}: ask for less, or name a cluster (RAY_ADDRESS)")


def cpus() -> float:
    """Of this machine, as a local Ray counts them: in a container, those that it may use."""
    from ray._private.utils import get_num_cpus

    return get_num_cpus()
