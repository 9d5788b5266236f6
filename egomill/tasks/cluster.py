"""Connect to Ray: the cluster at RAY_ADDRESS where there is one, else a Ray of our own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading

import ray
import ray.data


def connect() -> None:
    """Idempotent. A local Ray runs without dashboard and ends with this process, and this process soon after a Ray that dies: to go on
    is to start again.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its errors reach us as exceptions; the rest is noise on a terminal
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # a report waits for the next poll: 2 s by default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # nobody restarts a local one; 60 s by default
        os.environ.setdefault("RAY_agent_register_timeout_ms", "60000")  # 15 s by default, in which a busy machine imports little
    on_sigterm = signal.getsignal(signal.SIGTERM)
    options = {} if address else {"include_dashboard": False, "object_store_memory": 512 * 1024**2, "_node_ip_address": "127.0.0.1"}
    for left in (2, 1, 0):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            break
        except Exception:  # a busy machine may need longer than the 30 s that Ray gives itself
            ray.shutdown()
            if address or not left:
                raise
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of the one by which Prefect cancels
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
