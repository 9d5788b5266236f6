"""A cluster of two machines on this one: raylets with different resources, as `ray start` makes them, that listen to 127.0.0.1 only.

They know nothing of this package but what is installed, and each has an environment of its own, where `MACHINE` is its name.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Ray takes 127.0.0.1 to mean the machine's other address, on which it would listen; unless clusters are switched off, as on laptops.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
START = """
from ray._private import services
services.get_node_ip_address = lambda address=None: "127.0.0.1"
from ray.scripts.scripts import main
main()
"""
PATIENCE = {"RAY_raylet_start_wait_time_s": "150", "RAY_agent_register_timeout_ms": "120000"}  # where others keep the machine busy
MEMORY = 150 * 2**20  # of a machine's object store


class Cluster:
    """Machine "one" holds the head and a CPU, machine "two" a CPU and what it says is a GPU."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = tempfile.mkdtemp(prefix="egomill-ray-")  # short: names of sockets are
        self.machines: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Cluster:
        try:
            port = self.address.rpartition(":")[2]
            self._start("one", "--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false", "--num-cpus=1")
            self._start("two", f"--address={self.address}", "--num-cpus=1", "--num-gpus=1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, name: str, *options: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "EGOMILL_", "RAY_", "MLFLOW_"))}
        env |= {"RAY_AUTH_MODE": "disabled", "MACHINE": name, "OMP_NUM_THREADS": "1", **PATIENCE}
        log = Path(self.folder, f"{name}.log")
        with log.open("w") as out:
            options = (*options, "--node-ip-address=127.0.0.1", f"--object-store-memory={MEMORY}", "--block", "--disable-usage-stats")
            command = [sys.executable, "-P", "-c", START, "start", *options]
            started = subprocess.Popen(command, env=env, cwd=self.folder, stdout=out, stderr=out, start_new_session=True)
        self.machines[name] = started
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in log.read_text():
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """As when the plug is pulled: everything of a machine at once, and no farewell."""
        started = self.machines.pop(name)
        for pid in (*_below(started.pid), started.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        started.wait()

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.machines)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)


def _below(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in found.splitlines())}
    below = [pid]
    for parent in below:
        below += [child for child, its in parents.items() if its == parent]
    return below[1:]
